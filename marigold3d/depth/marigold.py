"""Depth by latent diffusion: any checkpoint in diffusers' Marigold format.

Ke et al., "Repurposing Diffusion-Based Image Generators for Monocular Depth Estimation" (arXiv 2312.02145): the image
is encoded into a latent, a second latent of pure noise is denoised beside it, and decoded into affine-invariant depth
in 0..1. Few-step sampling with trailing timesteps: Martin Garcia et al. (arXiv 2409.11355).

Every frame starts from the same noise, which the seed alone determines, so that a clip does not flicker and a frame's
depth does not depend on the batch it came in. The noise is drawn on the CPU: all devices start alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ModelError, UsageError
from ..types import FloatImage, RelativeDepth
from .checkpoint import checkpoint_folder, short_sha256
from .device import choose_device, choose_dtype, run_within_memory
from .ensemble import merge_ensemble
from .images import check_rgb, fitted_size, padded_to_multiple, resized, rgb_tensor
from .marigold_model import load_marigold, weight_paths

Noise = Literal["gaussian", "zeros"]


class MarigoldEstimator:
    """Samples a Marigold checkpoint. `encode`, `predict_noise`, `denoise` and `decode` are its steps on tensors.

    source: folder or hub name. steps, processing_resolution (longest side, px; 0: the frame's own): the checkpoint's
    defaults unless given. ensemble: predictions merged a frame, whose spread becomes the uncertainty. noise: what the
    depth latent starts from; "zeros" for checkpoints trained end to end on it. timestep_spacing: the checkpoint's own
    unless given. dtype: auto, float32, float16 or bfloat16. offline: never contact the hub.

    Raises ModelError for missing or damaged weights, UsageError for settings the checkpoint cannot follow.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        steps: int | None = None,
        ensemble: int = 1,
        processing_resolution: int | None = None,
        seed: int = 2024,
        noise: Noise = "gaussian",
        timestep_spacing: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
        name: str | None = None,
        licence: str = "unknown",
    ) -> None:
        _check_settings(steps, ensemble, processing_resolution, noise)
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.folder = checkpoint_folder(source, offline)
        self.model = load_marigold(self.folder, self.device, self.dtype, timestep_spacing)
        self.name, self.source, self.licence = name or Path(source).name, str(source), licence
        self.domain = self.model.domain
        self.steps = steps or self.model.default_steps
        self.ensemble, self.seed, self.noise = ensemble, seed, noise
        self.processing_resolution = _first(processing_resolution, self.model.default_resolution)
        self.timesteps()  # now, so that an impossible number of steps is reported before any frame is read

    def estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        """Depth of a batch: rgb (N, H, W, 3) uint8 sRGB -> N maps (H, W) in 0..1, independent of the batch.

        The batch is halved while it does not fit in memory. Raises InputError for anything but such a batch,
        OutOfMemoryError if a single frame does not fit, ModelError if the network yields no finite numbers.
        """
        check_rgb(rgb)
        return run_within_memory(self._estimate, rgb)

    def provenance(self) -> dict[str, str]:
        """Checkpoint, hash of its weights and settings."""
        return {
            "name": self.name,
            "family": "marigold",
            "source": self.source,
            "licence": self.licence,
            "weights_sha256": short_sha256(weight_paths(self.folder)),
            "scheduler": f"{type(self.model.scheduler).__name__}, {self.model.scheduler.config.timestep_spacing}",
            "steps": str(self.steps),
            "ensemble": str(self.ensemble),
            "seed": str(self.seed),
            "noise": self.noise,
            "processing_resolution": str(self.processing_resolution),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
        }

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Latent (N, C, h, w) float32 of an image (N, 3, 8h, 8w) in -1..1."""
        code = self.model.vae.encode(image.to(self.dtype))
        latent = code.latent_dist.mode() if hasattr(code, "latent_dist") else code.latents
        return latent.float() * self.model.vae.config.scaling_factor  # type: ignore[no-any-return]

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Depth (N, 1, 8h, 8w) float32 in 0..1 of a depth latent (N, C, h, w)."""
        return self.decode_unclipped(latent).clip(0.0, 1.0)

    def decode_unclipped(self, latent: torch.Tensor) -> torch.Tensor:
        """The same, free to leave 0..1: clipped pixels would pass no gradient on."""
        code = (latent / self.model.vae.config.scaling_factor).to(self.dtype)
        image = self.model.vae.decode(code, return_dict=False)[0].float()  # (N, 3, 8h, 8w): depth, three times over
        return (image.mean(dim=1, keepdim=True) + 1.0) / 2.0

    def predict_noise(self, image_latent: torch.Tensor, latent: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The U-Net's output (N, C, h, w) float32 at timestep t: noise, velocity or sample, as trained."""
        both = torch.cat([image_latent, latent], dim=1).to(self.dtype)  # (N, 2C, h, w)
        prompt = self.model.empty_prompt.expand(len(both), -1, -1)  # (N, tokens, channels)
        return self.model.unet(both, t, encoder_hidden_states=prompt, return_dict=False)[0].float()  # type: ignore[no-any-return]

    def denoise(self, image_latent: torch.Tensor, member: int = 0) -> torch.Tensor:
        """Depth latent (N, C, h, w) of ensemble member `member` beside an image latent (N, C, h, w)."""
        latent, generators = self.start(image_latent, member)
        for t in self.timesteps():
            output = self.predict_noise(image_latent, latent, t)
            # LCM adds noise between its steps; it takes it from the same generators, one a frame.
            latent = self.model.scheduler.step(output, t, latent, generator=generators, return_dict=False)[0]
        return latent

    def image_latent(self, rgb: NDArray[np.uint8]) -> tuple[torch.Tensor, tuple[int, int]]:
        """Latent (N, C, ...) of frames (N, H, W, 3), and the size (h, w) they have at the network, without padding."""
        h, w = fitted_size(rgb.shape[1], rgb.shape[2], self.processing_resolution)
        image = resized(2.0 * rgb_tensor(rgb, self.device) - 1.0, (h, w), antialias=True)
        return self.encode(padded_to_multiple(image, self.model.reduction)), (h, w)

    def start(self, image_latent: torch.Tensor, member: int = 0) -> tuple[torch.Tensor, list[torch.Generator]]:
        """Noise (N, C, h, w) that ensemble member `member` starts from, and the generators for what follows."""
        generators = self._generators(len(image_latent), member)
        return self._initial(image_latent, generators), generators

    def timesteps(self, steps: int | None = None) -> torch.Tensor:
        """(steps,) from noise to depth, the estimator's number unless given; resets the scheduler.

        Raises UsageError for a number the scheduler cannot take.
        """
        steps = steps or self.steps
        try:
            self.model.scheduler.set_timesteps(steps, device=self.device)
        except ValueError as error:
            raise UsageError(f"{self.name} cannot take {steps} steps: lower --steps") from error
        return self.model.scheduler.timesteps

    def check_finite(self, depth: torch.Tensor) -> None:
        """Raises ModelError unless all numbers are finite."""
        if not bool(torch.isfinite(depth).all()):
            precision = str(self.dtype).removeprefix("torch.")
            remedy = "its weights are damaged" if self.dtype == torch.float32 else "use float32"
            raise ModelError(f"{self.name} yields no finite depth in {precision}: {remedy}")

    def _estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        height, width = rgb.shape[1:3]
        with torch.no_grad():
            image_latent, (h, w) = self.image_latent(rgb)
            members = [self.decode(self.denoise(image_latent, member)) for member in range(self.ensemble)]
            depth = torch.cat(members, dim=1)[:, :, :h, :w]  # (N, E, h, w), padding cut off
        self.check_finite(depth)
        return [self._merged(maps, (height, width)) for maps in depth]

    def _merged(self, maps: torch.Tensor, size: tuple[int, int]) -> RelativeDepth:
        """One map of the frame's size from maps (E, h, w); merged first, since that is cheaper at network size."""
        if len(maps) == 1:
            return RelativeDepth(_at_size(maps, size)[0], self.domain)
        merged = np.stack(merge_ensemble(maps.cpu().numpy()))  # (2, h, w): depth and its uncertainty
        values, uncertainty = _at_size(torch.from_numpy(merged), size)
        return RelativeDepth(values, self.domain, uncertainty)

    def _generators(self, frames: int, member: int) -> list[torch.Generator]:
        """One generator a frame, all in the same state: the frames of a batch get the same noise."""
        return [torch.Generator().manual_seed(self.seed + member) for _ in range(frames)]

    def _initial(self, image_latent: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        shape = (1, self.model.latent_channels, *image_latent.shape[2:])
        if self.noise == "zeros":
            return torch.zeros_like(image_latent)
        return torch.cat([torch.randn(shape, generator=g) for g in generators]).to(self.device)  # (N, C, h, w)


def _check_settings(steps: int | None, ensemble: int, processing_resolution: int | None, noise: str) -> None:
    if steps is not None and steps < 1:
        raise UsageError(f"--steps must be at least 1, got {steps}")
    if ensemble < 1:
        raise UsageError(f"--ensemble must be at least 1, got {ensemble}")
    if processing_resolution is not None and processing_resolution < 0:
        raise UsageError(f"--processing-resolution must be 0 (the frame's own) or more, got {processing_resolution}")
    if noise not in ("gaussian", "zeros"):
        raise UsageError(f"unknown initial noise {noise!r}: use 'gaussian' or 'zeros'")
    if noise == "zeros" and ensemble > 1:
        raise UsageError(
            "this checkpoint is deterministic, all members of an ensemble would be equal: use --ensemble 1"
        )


def _first(given: int | None, default: int) -> int:
    return default if given is None else given


def _at_size(maps: torch.Tensor, size: tuple[int, int]) -> FloatImage:
    """(M, *size) float32 from maps (M, h, w)."""
    return resized(maps[None].float(), size, antialias=False)[0].cpu().numpy()  # type: ignore[no-any-return]
