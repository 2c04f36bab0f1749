"""From pictures and metric depth to what the U-Net sees: affine-invariant depth, latents and their mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LOW, HIGH = 0.02, 0.98  # quantiles of the valid depths that go to -1 and 1
FAR = 1.0  # what pixels without depth are filled with: most of them are sky, glass, or beyond the sensor


@dataclass(frozen=True, eq=False)
class LatentBatch:
    """N samples on one device. `samples` are their numbers in the run: noise and timesteps follow from them.

    image, depth (N, C, h, w) float32 latents; mask (N, 1, h, w) bool: the latents that count; depth_m, valid
    (N, 1, H, W): the metric truth, None where only latents were kept.
    """

    image: Tensor
    depth: Tensor
    mask: Tensor
    samples: range
    depth_m: Tensor | None = None
    valid: Tensor | None = None


def affine_invariant(depth_m: Tensor, valid: Tensor) -> Tensor:
    """(N, 1, H, W) in -1..1: the 2 % and 98 % quantiles of each image's valid depths become -1 and 1, the rest clipped.

    Ke et al., eq. 3. Invalid pixels become FAR; an image without two different depths becomes FAR everywhere.
    """
    normalised = torch.full_like(depth_m, FAR)
    for image, (depth, mask) in enumerate(zip(depth_m, valid, strict=True)):
        known = depth[mask]
        if known.numel() == 0:
            continue
        low, high = _quantiles(known)
        if high > low:
            scaled = ((depth - low) / (high - low) * 2.0 - 1.0).clamp(-1.0, 1.0)
            normalised[image] = torch.where(mask, scaled, FAR)
    return normalised


def _quantiles(known: Tensor) -> tuple[Tensor, Tensor]:
    """LOW and HIGH quantile, linearly interpolated; `torch.quantile` refuses more than 2^24 numbers."""
    ordered = known.float().sort().values
    place = torch.tensor([LOW, HIGH], device=known.device, dtype=torch.float64) * (len(ordered) - 1)
    below = place.floor().long()
    above = (below + 1).clamp_max(len(ordered) - 1)
    low, high = torch.lerp(ordered[below], ordered[above], (place - below).float())
    return low, high


def pooled_mask(valid: Tensor, reduction: int) -> Tensor:
    """(N, 1, h, w) bool from valid (N, 1, H, W): a latent counts only if all its reduction² pixels are valid."""
    invalid = functional.max_pool2d((~valid).float(), reduction)
    return invalid == 0.0


def encode(vae: Any, picture: Tensor) -> Tensor:
    """(N, C, h, w) float32 latent of a picture (N, 3, H, W) in -1..1: the posterior's mode, scaled."""
    code: Tensor = vae.encode(picture).latent_dist.mode()
    return code.float() * vae.config.scaling_factor


def decode(vae: Any, latent: Tensor) -> Tensor:
    """(N, 1, H, W) float32 depth, about -1..1, of its latent: the mean of the three channels."""
    picture: Tensor = vae.decode(latent / vae.config.scaling_factor, return_dict=False)[0]
    return picture.float().mean(dim=1, keepdim=True)


def encode_pair(vae: Any, rgb: Tensor, depth_m: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image latent, depth latent (N, C, h, w) and mask (N, 1, h, w) of rgb in 0..1 and its depth.

    Sides that are no multiple of the reduction lose their last rows and columns.
    """
    reduction = 2 ** (len(vae.config.block_out_channels) - 1)
    height, width = (side - side % reduction for side in rgb.shape[-2:])
    window = (..., slice(height), slice(width))
    depth = affine_invariant(depth_m[window], valid[window]).expand(-1, 3, -1, -1)
    return encode(vae, 2.0 * rgb[window] - 1.0), encode(vae, depth), pooled_mask(valid[window], reduction)
