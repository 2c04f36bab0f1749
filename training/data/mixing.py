"""Endless batches from several sources, each batch from one of them; batch k follows from the settings and k alone.

So a run resumes from its position, and any number of processes share out the same batches.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from marigold3d.errors import InputError, Marigold3DError, UsageError
from training.data.samples import ENDLESS, CorruptSample, Sample, Source

BLOCK = 1000  # batches in which every source has its exact share
MOST_CORRUPT = 0.01  # share of samples that may be damaged
FEWEST_CORRUPT = 20  # before this many, a share says little; so many in a row are too many at once

_log = logging.getLogger(__name__)


class _Stream(IntEnum):
    """What random numbers are for: streams never share them."""

    CHOICE = 0
    ORDER = 1
    FLIP = 2


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's b samples of a batch, on their source's device.

    rgb (b, 3, H, W) float32 sRGB in 0..1; depth_m (b, 1, H, W) float32; valid (b, 1, H, W) bool. `problems`: what was
    skipped on the way to these samples.
    """

    rgb: Tensor
    depth_m: Tensor
    valid: Tensor
    names: tuple[str, ...]
    problems: tuple[str, ...] = ()


class MixedBatches:
    """`batch(k)` for k = 0, 1, …: each from one source, chosen by `weights` (any positive numbers).

    Of every BLOCK batches each source has its exact share, in random order. A source is shuffled anew every epoch and
    none of its samples comes twice in one; an endless source is read in its own order. Samples are mirrored with
    probability `flip`. Of the `batch_size` samples of a batch, process `rank` of `world_size` gets its even part: all
    parts, one after the other, are the same batch for any world size.

    A damaged sample is replaced by the one that follows it. `skipped` counts those that this process met in
    `batch`; above MOST_CORRUPT of the samples it drew, by more than chance, InputError.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        *,
        flip: float = 0.5,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise UsageError(f"batch_size ({batch_size}) must be a multiple of the number of processes ({world_size})")
        if not 0 <= rank < world_size:
            raise UsageError(f"rank {rank} is not one of {world_size} processes: give 0 to {world_size - 1}")
        if not 0.0 <= flip <= 1.0:
            raise UsageError(f"flip={flip} is no probability: give 0 to 1")
        if seed < 0:
            raise UsageError(f"seed={seed} is negative: give 0 or more")
        for source in sources:
            if len(source) == 0:
                raise InputError(f"{source.name} holds no samples: check its root and split")
        self.sources = tuple(sources)
        self.shares = batches_a_block(weights, [source.name for source in sources])
        self.batch_size, self.seed, self.flip = batch_size, seed, flip
        self.rows = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.drawn = self.skipped = 0

    def batch(self, k: int) -> Batch:
        """This process's part of batch k, its skipped samples counted."""
        return self.counted(self.read(k))

    def read(self, k: int) -> Batch:
        """This process's part of batch k, without side effects: for workers. Raises InputError, UsageError."""
        block, place = divmod(k, BLOCK)
        choice, turn = _plan(self.shares, self.seed, block)
        chosen = int(choice[place])
        first = (block * self.shares[chosen] + int(turn[place])) * self.batch_size  # of this source's endless sequence
        read = [self._readable(chosen, first + row) for row in self.rows]
        mirrored = _rng(self.seed, _Stream.FLIP, k).random(self.batch_size) < self.flip
        samples = [_mirrored(s) if mirrored[row] else s for row, (s, _) in zip(self.rows, read, strict=True)]
        problems = tuple(problem for _, skipped in read for problem in skipped)
        return _stacked(samples, problems, self.sources[chosen].name)

    def counted(self, batch: Batch) -> Batch:
        """`batch`, after adding what it skipped to the count. Raises InputError above MOST_CORRUPT (by three
        standard deviations of a Poisson count, so that a share just below it is borne).
        """
        self.skipped += len(batch.problems)
        self.drawn += len(batch.names) + len(batch.problems)
        for problem in batch.problems:
            _log.warning("skipped: %s", problem)
        expected = MOST_CORRUPT * self.drawn
        if self.skipped >= FEWEST_CORRUPT and self.skipped > expected + 3 * math.sqrt(expected):
            raise InputError(
                f"{self.skipped} of {self.drawn} samples cannot be read, more than {MOST_CORRUPT:.0%}; "
                f"the last: {batch.problems[-1] if batch.problems else 'see above'}"
            )
        return batch

    def _readable(self, chosen: int, number: int) -> tuple[Sample, list[str]]:
        """Sample `number` of a source's endless sequence, or the first after it that can be read; and the problems."""
        source = self.sources[chosen]
        problems: list[str] = []
        for following in range(number, number + FEWEST_CORRUPT):
            try:
                return source[self._index(chosen, following)], problems
            except CorruptSample as error:
                problems.append(str(error))
        raise InputError(f"{source.name}: {FEWEST_CORRUPT} samples in a row cannot be read; the first: {problems[0]}")

    def _index(self, chosen: int, number: int) -> int:
        length = len(self.sources[chosen])
        if length >= ENDLESS:
            return number
        epoch, place = divmod(number, length)
        return int(_order(length, self.seed, chosen, epoch)[place])


def batches_a_block(weights: Sequence[float], names: Sequence[str]) -> tuple[int, ...]:
    """How many of BLOCK batches each source gets: its weight's share, rounded by largest remainder.

    Raises UsageError where there are no sources, a weight is missing or not positive, or a share is less than one.
    """
    if not names:
        raise UsageError("no data: give at least one source")
    if len(weights) != len(names):
        raise UsageError(f"{len(weights)} weights for {len(names)} sources: give one each")
    for weight, name in zip(weights, names, strict=True):
        if not (math.isfinite(weight) and weight > 0):
            raise UsageError(f"the weight of {name} is {weight}: give a positive number, or leave the source out")
    exact = [BLOCK * weight / math.fsum(weights) for weight in weights]
    shares = [math.floor(part + 1e-9) for part in exact]  # 0.7 / (0.7 + 0.2 + 0.1) may fall short by rounding
    by_remainder = sorted(range(len(exact)), key=lambda s: shares[s] - exact[s])
    for s in by_remainder[: BLOCK - sum(shares)]:
        shares[s] += 1
    for share, name in zip(shares, names, strict=True):
        if share == 0:
            raise UsageError(f"the weight of {name} is less than 1/{BLOCK} of all: raise it, or leave the source out")
    return tuple(shares)


def _rng(seed: int, stream: _Stream, *numbers: int) -> np.random.Generator:
    return np.random.default_rng((seed, int(stream), *numbers))


@lru_cache(maxsize=8)
def _plan(shares: tuple[int, ...], seed: int, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of a block's batches (BLOCK,): the source, and how many of the block were from the same source before."""
    choice = np.repeat(np.arange(len(shares)), shares)
    choice = _rng(seed, _Stream.CHOICE, block).permutation(choice)
    turn = np.empty_like(choice)
    for source, share in enumerate(shares):
        turn[choice == source] = np.arange(share)
    return choice, turn


@lru_cache(maxsize=16)
def _order(length: int, seed: int, source: int, epoch: int) -> NDArray[np.int64]:
    """The samples (length,) of a source in the order of one epoch."""
    return _rng(seed, _Stream.ORDER, source, epoch).permutation(length)


def _mirrored(sample: Sample) -> Sample:
    return Sample(sample.rgb.flip(-1), sample.depth_m.flip(-1), sample.valid.flip(-1), sample.name)


def _stacked(samples: Sequence[Sample], problems: tuple[str, ...], source: str) -> Batch:
    first = samples[0]
    for sample in samples:
        if sample.rgb.shape != first.rgb.shape:
            (h, w), (other_h, other_w) = first.rgb.shape[1:], sample.rgb.shape[1:]
            raise UsageError(
                f"{source}: {first.name} is {w}x{h} but {sample.name} is {other_w}x{other_h}, and a batch needs one "
                "size: give the source crop: [height, width] or resize: [height, width]"
            )
    return Batch(
        torch.stack([sample.rgb for sample in samples]).float() / 255.0,
        torch.stack([sample.depth_m for sample in samples]),
        torch.stack([sample.valid for sample in samples]),
        tuple(sample.name for sample in samples),
        problems,
    )


def read_by_workers(batches: MixedBatches, numbers: Iterable[int], workers: int) -> Iterator[Batch]:
    """`batches.batch(k)` for every k of `numbers`, read ahead by `workers` processes: for sources bound by the disk or
    by decoding. Closing the iterator ends them. Sources on an accelerator cannot be read so.
    """
    loader = DataLoader(_Read(batches), batch_size=None, sampler=numbers, num_workers=workers)
    for read in loader:
        if isinstance(read, Marigold3DError):
            raise read
        yield batches.counted(read)


class _Read(Dataset["Batch | Marigold3DError"]):
    """What workers do. Errors travel as values: raised, they would arrive wrapped in a traceback."""

    def __init__(self, batches: MixedBatches) -> None:
        self.batches = batches

    def __getitem__(self, k: int) -> Batch | Marigold3DError:
        try:
            return self.batches.read(k)
        except Marigold3DError as error:
            return error
