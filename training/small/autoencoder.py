"""Training the small VAE on pictures and depth maps alike, half of each batch: the frozen base of all that follows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marigold3d.progress import Progress, Steps
from training.recipe.latents import affine_invariant
from training.small.networks import autoencoder
from training.small.scenes import PoolSource


@dataclass(frozen=True)
class VaeRecipe:
    """How the VAE is trained."""

    steps: int = 3000
    batch: int = 16
    crop: int = 64  # px, square: a third of the time of whole pictures, and details are as good
    rate: float = 1e-3  # falls linearly to nothing
    warmup_steps: int = 200
    kl_weight: float = 1e-4  # of the mean over latents, against the mean over pixels: regular, hardly noisier
    edge_weight: float = 1.0  # of differences between neighbours: small pictures are mostly edges
    seed: int = 0


def train_vae(source: PoolSource, recipe: VaeRecipe) -> Steps[Any]:
    """An AutoencoderKL trained on `source`, its scaling factor such that latents have a standard deviation of one."""
    torch.manual_seed(recipe.seed)
    vae = autoencoder().to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(vae.parameters(), lr=recipe.rate)
    batches = pictures(source, recipe.batch, recipe.crop, recipe.seed)
    for step in range(recipe.steps):
        share = min((step + 1) / recipe.warmup_steps, 1.0) * (1.0 - step / recipe.steps)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * share
        loss = vae_loss(vae, next(batches), recipe)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        yield Progress("vae", step + 1, recipe.steps, float(loss.detach()))
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=1.0 / latent_deviation(vae, batches))
    return vae


def vae_loss(vae: Any, picture: Tensor, recipe: VaeRecipe) -> Tensor:
    """L1 of pixels and of their differences, and the divergence of the posterior from the unit normal."""
    with torch.autocast("cpu", torch.bfloat16, enabled=picture.device.type == "cpu"):
        posterior = vae.encode(picture).latent_dist
        again = vae.decode(posterior.sample(), return_dict=False)[0].float()
    error = again - picture
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    divergence = posterior.kl().float().mean() / posterior.mean[0].numel()
    return error.abs().mean() + recipe.edge_weight * edges + recipe.kl_weight * divergence


def pictures(source: PoolSource, size: int, crop: int, seed: int) -> Iterator[Tensor]:
    """(size, 3, crop, crop) in -1..1 without end: windows of pictures and depth maps alike, some mirrored."""
    rng = random.Random(seed)
    while True:
        for rgb, depth_m, valid in _shuffled(source, rng):
            depth = affine_invariant(depth_m, valid).expand(-1, 3, -1, -1)
            both = torch.cat([rgb.float() / 127.5 - 1.0, depth])
            order = list(range(len(both)))
            rng.shuffle(order)
            for start in range(0, len(order) - size + 1, size):
                top, left = (rng.randrange(side - crop + 1) for side in both.shape[-2:])
                batch = both[order[start : start + size], :, top : top + crop, left : left + crop]
                batch = batch.flip(-1) if rng.random() < 0.5 else batch
                yield batch.contiguous(memory_format=torch.channels_last)


def _shuffled(source: PoolSource, rng: random.Random) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    numbers = list(range(source.first, source.first + source.count))
    rng.shuffle(numbers)
    for number in numbers:
        yield next(PoolSource(str(source.root), number, 1, *source.size).shards())


def latent_deviation(vae: Any, batches: Iterator[Tensor], count: int = 16) -> float:
    """Standard deviation of the posteriors' modes over some batches."""
    with torch.no_grad():
        return float(torch.cat([vae.encode(next(batches)).latent_dist.mode().flatten() for _ in range(count)]).std())


def round_trip_error(vae: Any, source: PoolSource, count: int) -> tuple[float, float]:
    """Mean absolute error of pictures (0..255) and of valid depth (range -1..1) after encoding and decoding.

    The latter is the floor under every depth that is sampled as a latent.
    """
    rgb, depth_m, valid = (part[:count] for part in next(source.shards()))
    with torch.no_grad():
        picture = rgb.float() / 127.5 - 1.0
        again = vae.decode(vae.encode(picture).latent_dist.mode(), return_dict=False)[0]
        depth = affine_invariant(depth_m, valid)
        back = vae.decode(vae.encode(depth.expand(-1, 3, -1, -1)).latent_dist.mode(), return_dict=False)[0]
    error = (back.mean(dim=1, keepdim=True).clamp(-1.0, 1.0) - depth).abs()
    return float((again - picture).abs().mean() * 127.5), float(error[valid].mean())
