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

GROUP = 16  # views encoded at once


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
    picture = rgb.float() / 255.0
    parts = [
        _rows(vae, picture[i : i + GROUP], depth_m[i : i + GROUP], valid[i : i + GROUP])
        for i in range(0, len(rgb), GROUP)
    ]
    image, depth, mask = (torch.cat(part) for part in zip(*parts, strict=True))
    tensors = {"image": image.half(), "depth": depth.half(), "mask": mask}
    if with_pixels:
        height, width = (side * 2 ** (len(vae.config.block_out_channels) - 1) for side in mask.shape[-2:])
        window = (..., slice(height), slice(width))
        tensors |= {"depth_m": depth_m[window].contiguous(), "valid": valid[window].contiguous()}
    return tensors


def _rows(vae: Any, rgb: Tensor, depth_m: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    both = [torch.stack([part, part.flip(-1)], dim=1).flatten(0, 1) for part in (rgb, depth_m, valid)]  # (2 n, …)
    with torch.no_grad(), torch.autocast(rgb.device.type, torch.bfloat16):
        return encode_pair(vae, *both)
