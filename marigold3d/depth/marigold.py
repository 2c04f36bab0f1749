"""Depth by latent diffusion: any checkpoint in diffusers' Marigold format.

Ke et al., "Repurposing Diffusion-Based Image Generators for Monocular Depth Estimation" (arXiv 2312.02145): the image
is encoded into a latent, a second latent of pure noise is denoised beside it, and decoded into affine-invariant depth
in 0..1. Few-step sampling with trailing timesteps: Martin Garcia et al. (arXiv 2409.11355).

Every frame starts from the same noise, which the seed alone determines, so that a clip does not flicker and a frame's
depth does not depend on the batch it came in. The noise is drawn on the CPU: all devices start alike. The networks run
in half precision where the device has it; the sampler's arithmetic and the depth itself stay in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Resample
from ..errors import UsageError
from ..types import Domain, FloatImage, RelativeDepth
from .batching import fitting_rows, in_chunks
from .checkpoint import checkpoint_folder, short_sha256
from .device import choose_device, choose_dtype, free_cache, native_dtype, run_within_memory
from .ensemble import merge_ensemble
from .images import check_resample, check_rgb, check_side, fitted_size, resized
from .marigold_model import Noise, load_marigold, weight_paths
from .overlap import check_stopped
from .protocol import ClipPass
from .sampling import Sampler, plain
from .tuning import is_compiler_error

LOG = logging.getLogger("marigold3d")


@dataclass(frozen=True, eq=False)
class Prediction:
    """A member of a frame's ensemble: `depth` (h, w) at the network's size, and the `latent` (C, h', w') behind it."""

    depth: torch.Tensor
    latent: torch.Tensor


class MarigoldEstimator(Sampler):
    """Samples a Marigold checkpoint; its steps on tensors are those of `Sampler`.

    source: folder or hub name. steps, processing_resolution (longest side, px; 0: the frame's own), noise (what the
    depth latent starts from: "zeros" for checkpoints trained end to end on it), timestep_spacing: the checkpoint's own
    unless given. ensemble: predictions merged a frame, whose spread becomes the uncertainty. resample: between the
    frame's size and the network's. dtype: auto, float32, float16 or bfloat16. compiled: by torch.compile. tiny_vae:
    folder or hub name of an AutoencoderTiny that decodes in place of the checkpoint's own. warm_start, sigma_every: as
    `video_mode` says, in `clip_pass` only. domain: of checkpoints that do not say. offline: never contact the hub.

    Raises ModelError for missing or damaged weights, UsageError for settings the checkpoint cannot follow.
    """

    compiled = False
    warm_start = False
    sigma_every = 1

    def __init__(
        self,
        source: str | Path,
        *,
        steps: int | None = None,
        ensemble: int = 1,
        processing_resolution: int | None = None,
        seed: int = 2024,
        noise: Noise | None = None,
        timestep_spacing: str | None = None,
        resample: Resample = "bilinear",
        device: str = "auto",
        dtype: str = "auto",
        compiled: bool = False,
        tiny_vae: str | Path | None = None,
        warm_start: bool = False,
        sigma_every: int = 1,
        domain: Domain | None = None,
        offline: bool = False,
        name: str | None = None,
        licence: str = "unknown",
    ) -> None:
        _check_settings(steps, ensemble, processing_resolution, noise, sigma_every)
        check_resample(resample)
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device, native_dtype())
        self.folder = checkpoint_folder(source, offline)
        self.tiny_vae = None if tiny_vae is None else checkpoint_folder(tiny_vae, offline)
        self.model = load_marigold(
            self.folder,
            self.device,
            self.dtype,
            timestep_spacing,
            domain=domain,
            small_decoder=self.tiny_vae,
            compiled=compiled,
        )
        self.name, self.source, self.licence = name or Path(source).name, str(source), licence
        self.domain = self.model.domain
        self.steps = steps or self.model.default_steps
        self.ensemble, self.seed, self.noise = ensemble, seed, noise or self.model.noise
        self.resample, self.compiled = resample, compiled
        self.warm_start, self.sigma_every = warm_start, sigma_every if ensemble > 1 else 1
        self.processing_resolution = _first(processing_resolution, self.model.default_resolution)
        self._check_noise()
        self.timesteps()  # now, so that an impossible number of steps is reported before any frame is read

    def estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        """Depth of a batch: rgb (N, H, W, 3) uint8 sRGB -> N maps (H, W) in 0..1, independent of the batch.

        The batch is halved while it does not fit in memory, and repeated in float32, as are all that follow, if half
        precision overflows. Raises InputError for anything but such a batch, OutOfMemoryError if a single frame does
        not fit, ModelError if the network yields no finite numbers.
        """
        check_rgb(rgb)
        check_side(rgb)
        return run_within_memory(self._estimate, rgb)

    @property
    def segment(self) -> int:
        """Positions that this divides lean on no frame before them (`protocol.ClipEstimator`)."""
        from .video_mode import segment_length

        return segment_length(self.warm_start, self.sigma_every)

    def batch_size(self, height: int, width: int) -> int:
        """Frames of this size that fit in memory together, each with its ensemble."""
        if self.warm_start:
            return 1  # each waits for the one before
        members = self.ensemble if self.sigma_every == 1 else 1
        return max(1, self._fitting_rows(fitted_size(height, width, self.processing_resolution)) // members)

    def clip_pass(self) -> ClipPass:
        """Estimates of a clip's frames in their order, with warm start and keyframes as set."""
        from .video_mode import MarigoldPass

        return MarigoldPass(self)

    def provenance(self) -> dict[str, str]:
        """Checkpoint, hash of its weights and settings."""
        return {
            "name": self.name,
            "family": "marigold",
            "source": self.source,
            "licence": self.licence,
            "weights_sha256": short_sha256(weight_paths(self.folder, self.tiny_vae)),
            "scheduler": f"{type(self.model.scheduler).__name__}, {self.model.scheduler.config.timestep_spacing}",
            "steps": str(self.steps),
            "ensemble": str(self.ensemble),
            "seed": str(self.seed),
            "noise": self.noise,
            "processing_resolution": str(self.processing_resolution),
            "resample": self.resample,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "decoder": "its own" if self.tiny_vae is None else self.tiny_vae.name,
            "warm_start": str(self.warm_start),
            "sigma_every": str(self.sigma_every),
        }

    def predict(
        self, rgb: NDArray[np.uint8], members: Sequence[int], before: torch.Tensor | None = None
    ) -> list[list[Prediction]]:
        """Of frames rgb (N, H, W, 3), each with so many ensemble members: they pass the networks together.

        before: depth latent (C, h, w) to start from, besides noise. In float32 from the first overflow on. Raises
        ModelError if even there the numbers are not finite.
        """
        try:
            found = self._predict(rgb, members, before)
            if self.dtype != torch.float32 and not _finite(found):
                LOG.warning("%s overflows in %s: from here on it runs in float32", self.name, plain(self.dtype))
                self.to_float32()
                found = self._predict(rgb, members, before)
        except Exception as error:
            if self.compiled and is_compiler_error(error):
                raise UsageError(
                    f"{self.name} cannot be compiled here ({str(error).splitlines()[0][:120]}): leave --compile out"
                ) from error
            raise
        for frame in found:
            for member in frame:
                self.check_finite(member.depth)
        return found

    def merged(self, maps: torch.Tensor, size: tuple[int, int]) -> RelativeDepth:
        """One map of the frame's size from maps (E, h, w); merged first, since that is cheaper at network size."""
        if len(maps) > 1:
            maps = torch.from_numpy(np.stack(merge_ensemble(maps.cpu().numpy(), mode=self.model.mode)))  # depth, sigma
        return self.at_size(maps, size)

    def at_size(self, maps: torch.Tensor, size: tuple[int, int]) -> RelativeDepth:
        """Depth (1, h, w), or depth and its sigma (2, h, w), at a frame's size."""
        full: FloatImage = resized(maps[None].float(), size, antialias=False, resample=self.resample)[0].cpu().numpy()
        return RelativeDepth(full[0], self.domain, full[1] if len(full) > 1 else None)

    def to_float32(self) -> None:
        """Runs in float32 from here on, with the weights as they are."""
        self.dtype = torch.float32
        for network in (self.model.unet, self.model.vae, self.model.decoder):
            network.float()
        free_cache()

    def _estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        frames = self.predict(rgb, [self.ensemble] * len(rgb))
        return [self.merged(torch.stack([m.depth for m in members]), rgb.shape[1:3]) for members in frames]

    def _predict(
        self, rgb: NDArray[np.uint8], members: Sequence[int], before: torch.Tensor | None
    ) -> list[list[Prediction]]:
        with torch.no_grad():
            image_latent, (h, w) = self.image_latent(rgb)

            def run(rows: Sequence[tuple[int, int]]) -> list[Prediction]:
                latent = self.denoise(image_latent[[frame for frame, _ in rows]], [k for _, k in rows], before)
                check_stopped()
                depth = self.decode(latent)[:, 0, :h, :w]  # (rows, h, w), padding cut off
                return [Prediction(*parts) for parts in zip(depth, latent, strict=True)]

            rows = [(frame, k) for frame, count in enumerate(members) for k in range(count)]
            found = iter(in_chunks(run, rows, self._fitting_rows((h, w))))
        return [[next(found) for _ in range(count)] for count in members]

    def _fitting_rows(self, size: tuple[int, int]) -> int:
        return fitting_rows(self.model, self.dtype, self.device, size[0] * size[1])

    def _check_noise(self) -> None:
        if self.noise == "zeros" and self.ensemble > 1:
            raise UsageError(
                "this checkpoint is deterministic, all members of an ensemble would be equal: use --ensemble 1"
            )
        if self.noise == "zeros" and self.warm_start:
            raise UsageError("this checkpoint starts from zeros, as it was trained: leave --warm-start out")


def _check_settings(
    steps: int | None, ensemble: int, processing_resolution: int | None, noise: str | None, sigma_every: int
) -> None:
    if steps is not None and steps < 1:
        raise UsageError(f"--steps must be at least 1, got {steps}")
    if ensemble < 1:
        raise UsageError(f"--ensemble must be at least 1, got {ensemble}")
    if sigma_every < 1:
        raise UsageError(f"--sigma-every must be at least 1, got {sigma_every}")
    if processing_resolution is not None and processing_resolution < 0:
        raise UsageError(f"--processing-resolution must be 0 (the frame's own) or more, got {processing_resolution}")
    if noise not in (None, "gaussian", "zeros"):
        raise UsageError(f"unknown initial noise {noise!r}: use 'gaussian' or 'zeros'")


def _finite(frames: list[list[Prediction]]) -> bool:
    return all(bool(torch.isfinite(member.depth).all()) for members in frames for member in members)


def _first(given: int | None, default: int) -> int:
    return default if given is None else given
