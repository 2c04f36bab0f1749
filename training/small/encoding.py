"""A pool of scenes, encoded once: the VAE is frozen, so nothing is lost, and a step costs the U-Net alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from marigold3d.atomic import atomic_path
from marigold3d.progress import Progress, Steps
from training.recipe.latents import encode_pair
from training.small.scenes import PoolSource


def encode_pool(vae: Any, source: PoolSource, out: Path, with_pixels: bool = False) -> Steps[int]:
    """Write `out/latents*.safetensors`, a file a shard, as `training.recipe.data.LatentPool` reads them.

    Files that are there already stay. Returns the number of samples.
    """
    for done in range(source.count):
        number = source.first + done
        path = out / f"latents{number:05d}.safetensors"
        if not path.exists():
            shard = PoolSource(str(source.root), number, 1, *source.size)
            with atomic_path(path) as partial:
                save_file(encoded(vae, *next(shard.shards()), with_pixels), partial)
        yield Progress("encode", done + 1, source.count)
    return len(source)


def encoded(vae: Any, rgb: Tensor, depth_m: Tensor, valid: Tensor, with_pixels: bool) -> dict[str, Tensor]:
    """The tensors of one file: every sample and, after it, its mirror image, encoded as such."""
    rows = [_rows(vae, *(part[i : i + 1] for part in (rgb, depth_m, valid))) for i in range(len(rgb))]
    image, depth, mask = (torch.cat(parts) for parts in zip(*rows, strict=True))
    tensors = {"image": image.half(), "depth": depth.half(), "mask": mask}
    if with_pixels:
        height, width = (side * 2 ** (len(vae.config.block_out_channels) - 1) for side in mask.shape[-2:])
        window = (..., slice(height), slice(width))
        tensors |= {"depth_m": depth_m[window].contiguous(), "valid": valid[window].contiguous()}
    return tensors


def _rows(vae: Any, rgb: Tensor, depth_m: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    both = [torch.cat([part, part.flip(-1)]) for part in (rgb.float() / 255.0, depth_m, valid)]  # (2, …)
    with torch.no_grad():
        return encode_pair(vae, *both)
