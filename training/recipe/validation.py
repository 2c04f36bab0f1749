"""How good the depth is while it learns: samples never trained on, judged by affine least squares in depth.

Every process judges all of them: no process waits for another, and parameters that are sharded come together in step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from marigold3d.errors import InputError
from training.data.samples import Sample
from training.recipe import latents, noise
from training.recipe.networks import Networks, predict


@dataclass(frozen=True, eq=False)
class Judgement:
    """Means over images of AbsRel and delta1, and some pictures: (3, H, 3 W) in 0..1: image, prediction, truth."""

    abs_rel: float
    delta1: float
    pictures: list[Tensor]


def sample_depth(
    unet: Any, networks: Networks, sampler: Any, rgb: Tensor, steps: int, seed: int, from_zeros: bool = False
) -> Tensor:
    """(N, 1, h, w) float32 depth in 0..1 of rgb (N, 3, h, w) in 0..1, by `steps` steps of a diffusers scheduler.

    Sides must be multiples of the VAE's reduction. All images start from the same noise, that of `seed`, or from zeros,
    as U-Nets trained end to end do.
    """
    image = latents.encode(networks.vae, 2.0 * rgb - 1.0)
    rng = noise.generator(seed, noise.Stream.NOISE, 0)
    start = torch.zeros if from_zeros else partial(torch.randn, generator=rng)
    latent = start((1, *image.shape[1:])).to(image.device).expand_as(image)
    prompt = networks.prompt.to(image.device)
    sampler.set_timesteps(steps, device=image.device)
    for t in sampler.timesteps:
        output = predict(unet, prompt, image, latent, t.expand(len(image)))
        latent = sampler.step(output, t, latent, generator=rng, return_dict=False)[0]
    return (latents.decode(networks.vae, latent).clamp(-1.0, 1.0) + 1.0) / 2.0


def judge(depths: Sequence[Tensor], samples: Sequence[Sample], pictures: int) -> Judgement:
    """Judge depths, each (1, h, w) and affine-invariant, against their samples, cropped to the same h and w.

    Samples with fewer than two valid pixels do not count. Raises InputError if that leaves none.
    """
    errors: list[float] = []
    shares: list[float] = []
    shown: list[Tensor] = []
    for depth, sample in zip(depths, samples, strict=True):
        window = (..., slice(depth.shape[-2]), slice(depth.shape[-1]))
        truth, valid = sample.depth_m[window].cpu(), sample.valid[window].cpu()
        if int(valid.sum()) < 2:
            continue
        fitted = affine_fit(depth, truth, valid)
        abs_rel, delta1 = metrics(fitted, truth, valid)
        errors.append(abs_rel)
        shares.append(delta1)
        if len(shown) < pictures:
            shown.append(_panel(sample.rgb[window].cpu().float() / 255.0, fitted, truth, valid))
    if not errors:
        raise InputError("no validation sample has a valid depth: check validation.sources")
    return Judgement(sum(errors) / len(errors), sum(shares) / len(errors), shown)


def affine_fit(depth: Tensor, truth_m: Tensor, valid: Tensor) -> Tensor:
    """depth (…) brought to metres by the least squares over its valid pixels; float64 inside."""
    d, z = depth[valid].double(), truth_m[valid].double()
    variance = (d - d.mean()).square().mean()
    scale = ((d - d.mean()) * (z - z.mean())).mean() / variance if variance > 1e-12 else d.new_zeros(())
    return (scale * (depth.double() - d.mean()) + z.mean()).float()


def metrics(depth_m: Tensor, truth_m: Tensor, valid: Tensor) -> tuple[float, float]:
    """AbsRel and delta1 (share of ratios below 1.25) over valid pixels; depths are kept above a tenth of the least."""
    truth = truth_m[valid].double()
    depth = depth_m[valid].double().clamp_min(float(truth.min()) / 10.0)
    ratio = torch.maximum(depth / truth, truth / depth)
    return float(((depth - truth).abs() / truth).mean()), float((ratio < 1.25).double().mean())


def _panel(rgb: Tensor, fitted: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """(3, H, 3 W): picture, prediction and truth, near bright, on the truth's own range."""
    near, far = truth[valid].min(), truth[valid].max()
    shades = [1.0 - ((depth - near) / (far - near).clamp_min(1e-6)).clamp(0.0, 1.0) for depth in (fitted, truth)]
    shades[1] = torch.where(valid, shades[1], 0.0)
    return torch.cat([rgb, *(shade.expand(3, -1, -1) for shade in shades)], dim=2)
