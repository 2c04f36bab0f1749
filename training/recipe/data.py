"""Micro-batches of latents by number: encoded on the way from any source, or read from a pool encoded once.

Micro-batch k of a run is the same whatever the number of processes: process r of W takes k = r, r + W, ….
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import tee
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from marigold3d.errors import InputError, UsageError
from training.data import open_sources
from training.data.mixing import Batch, MixedBatches, read_by_workers
from training.data.samples import Sample, Source
from training.recipe.config import DataConfig, Recipe
from training.recipe.latents import LatentBatch, encode_pair
from training.recipe.networks import Networks

T = TypeVar("T")


class LatentBatches(Protocol):
    """Micro-batches ready for the U-Net."""

    def stream(self, numbers: Iterable[int]) -> Generator[LatentBatch, None, None]:
        """Micro-batch k on the device for every k of `numbers`, read ahead; closing it ends the readers."""
        ...


def latent_batches(recipe: Recipe, networks: Networks, device: torch.device, with_pixels: bool) -> LatentBatches:
    """The batches that a recipe's `data` names. Raises UsageError or InputError where they cannot be had."""
    kinds = [source.get("kind") for source in recipe.data.sources]
    if "latents" not in kinds:
        return EncodedBatches(mixed_batches(recipe.data, recipe), networks.vae, device, recipe.data.workers)
    if len(kinds) > 1:
        raise UsageError("data: a source of kind latents must be the only one: encode the others into it")
    settings = {key: value for key, value in recipe.data.sources[0].items() if key not in ("kind", "weight")}
    if set(settings) != {"root"}:
        raise UsageError(f"data: a source of kind latents takes root alone, got {', '.join(settings) or 'nothing'}")
    pool = LatentPool(Path(settings["root"]), with_pixels)
    if pool.channels != networks.latent_channels:
        raise UsageError(
            f"{settings['root']} holds latents of {pool.channels} channels, the VAE has {networks.latent_channels}"
        )
    return CachedBatches(pool, recipe.micro_batch, recipe.seed, recipe.data.flip, device)


def mixed_batches(data: DataConfig, recipe: Recipe) -> MixedBatches:
    """Sources mixed by their weights, each micro-batch from one of them."""
    weights = [float(source.get("weight", 1.0)) for source in data.sources]
    sources = open_all(data.sources)
    return MixedBatches(sources, weights, recipe.micro_batch, recipe.seed, flip=data.flip)


def open_all(mappings: Sequence[Mapping[str, Any]]) -> list[Source]:
    """Sources by their mappings: {kind: pool, …} here, all other kinds by `training.data.open_sources`."""
    opened: list[Source] = []
    for mapping in mappings:
        if mapping.get("kind") == "pool":
            opened.append(_pool_source(mapping))
        else:
            opened += open_sources([mapping])
    return opened


def _pool_source(mapping: Mapping[str, Any]) -> Source:
    from training.small.scenes import PoolSource

    try:
        return PoolSource(**{key: value for key, value in mapping.items() if key not in ("kind", "weight")})
    except TypeError as error:
        raise UsageError(f"data: a source of kind pool takes root, first, count, height and width: {error}") from None


class EncodedBatches:
    """Pictures and depth from `source`, read by processes (`workers`) or a thread (0), encoded by the frozen VAE."""

    def __init__(self, source: MixedBatches, vae: Any, device: torch.device, workers: int) -> None:
        self.source, self.vae, self.device, self.workers = source, vae, device, workers

    def stream(self, numbers: Iterable[int]) -> Generator[LatentBatch, None, None]:
        own, again = tee(numbers)
        read: Any = (
            read_by_workers(self.source, own, self.workers) if self.workers else read_ahead(self.source.batch, own)
        )
        with closing(read):
            for k, batch in zip(again, read, strict=True):
                yield self.encoded(k, batch)

    def encoded(self, k: int, read: Batch) -> LatentBatch:
        """Micro-batch k as latents."""
        rgb, depth_m, valid = (part.to(self.device) for part in (read.rgb, read.depth_m, read.valid))
        with torch.no_grad():
            image, depth, mask = encode_pair(self.vae, rgb, depth_m, valid)
        height, width = (side * (rgb.shape[-1] // mask.shape[-1]) for side in mask.shape[-2:])
        window = (..., slice(height), slice(width))
        return LatentBatch(image, depth, mask, _numbers(k, len(rgb)), depth_m[window], valid[window])


class LatentPool:
    """Latents encoded once, `root/latents*.safetensors`; row 2 i is sample i, row 2 i + 1 its mirror image.

    Each file: image, depth (2 n, C, h, w) float16, mask (2 n, 1, h, w) bool; depth_m (n, 1, H, W) float32 and valid,
    read only if `with_pixels`.
    """

    def __init__(self, root: Path, with_pixels: bool = False) -> None:
        files = sorted(root.glob("latents*.safetensors"))
        if not files:
            raise InputError(
                f"{root} holds no latents*.safetensors: encode a pool with python -m training.small encode"
            )
        names = ("image", "depth", "mask", *(("depth_m", "valid") if with_pixels else ()))
        parts = [_tensors(path, names) for path in files]
        self.tensors: dict[str, Tensor] = {name: torch.cat([part[name] for part in parts]) for name in names}
        self.channels = self.tensors["image"].shape[1]

    def __len__(self) -> int:
        return len(self.tensors["image"]) // 2


def _tensors(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            missing = set(names) - set(file.keys())
            if missing:
                raise InputError(f"{path} lacks {', '.join(sorted(missing))}: encode the pool again with --pixels")
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it and encode the pool again") from error


class CachedBatches:
    """Random rows of a latent pool: shuffled epochs without repetition, mirrored as often as `flip` says."""

    def __init__(self, pool: LatentPool, size: int, seed: int, flip: float, device: torch.device) -> None:
        self.pool, self.size, self.seed, self.flip, self.device = pool, size, seed, flip, device
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def stream(self, numbers: Iterable[int]) -> Generator[LatentBatch, None, None]:
        for k in numbers:
            yield self.batch(k)

    def batch(self, k: int) -> LatentBatch:
        """Micro-batch k."""
        rows = torch.tensor([self._row(sample) for sample in _numbers(k, self.size)])
        t = self.pool.tensors
        image, depth, mask = (t[name][rows].to(self.device) for name in ("image", "depth", "mask"))
        pixels = {name: self._pixels(name, rows) for name in ("depth_m", "valid") if name in t}
        return LatentBatch(image.float(), depth.float(), mask, _numbers(k, self.size), **pixels)

    def _row(self, sample: int) -> int:
        epoch, place = divmod(sample, len(self.pool))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed, epoch)).permutation(len(self.pool))
        mirrored = np.random.default_rng((self.seed, sample, 1)).random() < self.flip
        return 2 * int(self._order[place]) + int(mirrored)

    def _pixels(self, name: str, rows: Tensor) -> Tensor:
        chosen = self.pool.tensors[name][rows // 2]
        mirrored = (rows % 2 == 1).view(-1, 1, 1, 1)
        return torch.where(mirrored, chosen.flip(-1), chosen).to(self.device)


def _numbers(k: int, size: int) -> range:
    return range(k * size, (k + 1) * size)


def read_ahead(read: Callable[[int], T], numbers: Iterable[int]) -> Generator[T, None, None]:
    """read(k) for every number in turn; while the caller works with one, a thread reads the next."""
    with ThreadPoolExecutor(1) as pool:
        pending: Future[T] | None = None
        for k in numbers:
            following = pool.submit(read, k)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def validation_samples(mappings: Sequence[Mapping[str, Any]], count: int) -> list[Sample]:
    """`count` samples for validation, taken in turn from the sources, from their beginnings."""
    sources = open_all(mappings)
    samples = []
    for number in range(count):
        turn, source = divmod(number, len(sources))
        if turn < len(sources[source]):
            samples.append(sources[source][turn])
    return samples
