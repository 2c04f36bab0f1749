"""The steps of a latent diffusion sampler on tensors: encode, predict noise, denoise, decode.

The networks run in half precision where they are in it; what the sampler computes, and depth, stay in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Resample
from ..errors import ModelError, UsageError
from .batching import TILED_PX
from .images import fitted_size, padded_to_multiple, rgb_at_size
from .marigold_model import MarigoldModel, Noise
from .overlap import check_stopped

WARMTH = 0.1  # share of the frame before in a warm start


class Sampler:
    """A checkpoint's networks with their settings; `MarigoldEstimator` makes depth maps of it."""

    name: str
    model: MarigoldModel
    device: torch.device
    dtype: torch.dtype
    steps: int
    seed: int
    noise: Noise
    processing_resolution: int
    resample: Resample = "bilinear"

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Latent (N, C, h, w) float32 of an image (N, 3, 8h, 8w) in -1..1."""
        vae = _tiled(self.model.vae, image.shape[2] * image.shape[3])
        code = vae.encode(self._input(image))
        latent = code.latent_dist.mode() if hasattr(code, "latent_dist") else code.latents
        return latent.float() * vae.config.scaling_factor  # type: ignore[no-any-return]

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Depth (N, 1, 8h, 8w) float32 in 0..1 of a depth latent (N, C, h, w)."""
        return self.decode_unclipped(latent).clip(0.0, 1.0)

    def decode_unclipped(self, latent: torch.Tensor) -> torch.Tensor:
        """The same, free to leave 0..1: clipped pixels would pass no gradient on."""
        decoder = _tiled(self.model.decoder, latent.shape[2] * latent.shape[3] * self.model.reduction**2)
        code = self._input(latent / decoder.config.scaling_factor)
        image = decoder.decode(code, return_dict=False)[0].float()  # (N, 1, 8h, 8w), or depth three times over
        return (image.mean(dim=1, keepdim=True) + 1.0) / 2.0

    def predict_noise(self, image_latent: torch.Tensor, latent: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The U-Net's output (N, C, h, w) float32 at timestep t: noise, velocity or sample, as trained."""
        both = self._input(torch.cat([image_latent, latent], dim=1))  # (N, 2C, h, w)
        prompt = self.model.empty_prompt.to(self.dtype).expand(len(both), -1, -1)  # (N, tokens, channels)
        return self.model.unet(both, t, encoder_hidden_states=prompt, return_dict=False)[0].float()  # type: ignore[no-any-return]

    def denoise(
        self, image_latent: torch.Tensor, members: int | Sequence[int] = 0, before: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Depth latent (N, C, h, w) beside an image latent (N, C, h, w), of an ensemble's member, one for all or each.

        before: depth latent of the frame before, which is mixed into the noise (`video_mode`).
        """
        latent, generators = self.start(image_latent, members)
        if before is not None:
            latent = (1.0 - WARMTH) * latent + WARMTH * before
        for t in self.timesteps():
            check_stopped()
            output = self.predict_noise(image_latent, latent, t)
            # LCM adds noise between its steps; it takes it from the same generators, one a frame.
            latent = self.model.scheduler.step(output, t, latent, generator=generators, return_dict=False)[0]
        return latent

    def image_latent(self, rgb: NDArray[np.uint8]) -> tuple[torch.Tensor, tuple[int, int]]:
        """Latent (N, C, ...) of frames (N, H, W, 3), and the size (h, w) they have at the network, without padding."""
        h, w = fitted_size(rgb.shape[1], rgb.shape[2], self.processing_resolution)
        image = 2.0 * rgb_at_size(rgb, (h, w), self.device, self.resample) - 1.0
        return self.encode(padded_to_multiple(image, self.model.reduction)), (h, w)

    def start(
        self, image_latent: torch.Tensor, members: int | Sequence[int] = 0
    ) -> tuple[torch.Tensor, list[torch.Generator]]:
        """Noise (N, C, h, w) that ensemble members start from, and the generators for what follows."""
        each = [members] * len(image_latent) if isinstance(members, int) else members
        # Frames get the same noise: generators of one member are all in the same state.
        generators = [torch.Generator().manual_seed(self.seed + member) for member in each]
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
            remedy = "its weights are damaged" if self.dtype == torch.float32 else "use float32"
            raise ModelError(f"{self.name} yields no finite depth in {plain(self.dtype)}: {remedy}")

    def _input(self, tensor: torch.Tensor) -> torch.Tensor:
        """In the networks' precision and layout."""
        return tensor.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def _initial(self, image_latent: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        shape = (1, self.model.latent_channels, *image_latent.shape[2:])
        if self.noise == "zeros":
            return torch.zeros_like(image_latent)
        return torch.cat([torch.randn(shape, generator=g) for g in generators]).to(self.device)  # (N, C, h, w)


def _tiled(autoencoder: Any, pixels: int) -> Any:
    """The autoencoder, set to pass pictures of so many pixels in overlapping tiles if they are very large."""
    autoencoder.use_tiling = pixels > TILED_PX
    return autoencoder


def plain(dtype: torch.dtype) -> str:
    """Its name as users write it."""
    return str(dtype).removeprefix("torch.")
