"""Rendered pools (training/pool.py) as a source of small pictures with depth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from marigold3d.errors import InputError, UsageError
from training import pool
from training.data.samples import Sample

SKY_LOG_DEPTH = math.log(pool.FAR_M) - 0.01


class PoolSource:
    """Shards `first` … `first + count - 1` of a pool, brought to height x width; the sky has no depth.

    Colours are averaged, depth takes the nearest, so that none lies between two surfaces. Raises InputError if shards
    are missing, UsageError if the size is no whole fraction of theirs.
    """

    def __init__(self, root: str, first: int = 0, count: int = 1, height: int = 96, width: int = 128) -> None:
        self.name = "pool"
        self.root, self.first, self.count, self.size = Path(root), first, count, (height, width)
        missing = [n for n in range(first, first + count) if not pool.shard_path(self.root, n).is_file()]
        if missing:
            raise InputError(
                f"{root} lacks {len(missing)} of {count} shards (number {missing[0]} first): render them with "
                f"python -m training.pool --out {root} --first {missing[0]} --shards {missing[-1] - missing[0] + 1}"
            )
        views, _, rows, columns = _shard(pool.shard_path(self.root, first))[0].shape
        if rows % height or columns % width:
            raise UsageError(f"{width}x{height} is no whole fraction of the pool's {columns}x{rows} px")
        self.views = views

    def __len__(self) -> int:
        return self.count * self.views

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard, view = divmod(index, self.views)
        rgb, log_depth = _shard(pool.shard_path(self.root, self.first + shard))
        rgb, depth_m, valid = shrunk(rgb[view : view + 1], log_depth[view : view + 1], self.size)
        return Sample(rgb[0], depth_m[0], valid[0], f"{self.first + shard:05d}/{view:03d}")

    def shards(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A shard after the other: rgb (V, 3, h, w) uint8, depth_m and valid (V, 1, h, w)."""
        for number in range(self.first, self.first + self.count):
            yield shrunk(*_shard(pool.shard_path(self.root, number)), self.size)


def shrunk(rgb: Tensor, log_depth: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """rgb (N, 3, h, w) uint8, depth_m and valid (N, 1, h, w) from a pool's larger views; depth 0 in the sky."""
    rgb = functional.interpolate(rgb.float(), size, mode="area").round().to(torch.uint8)
    log_depth = functional.interpolate(log_depth.float(), size, mode="nearest-exact")
    valid = log_depth < SKY_LOG_DEPTH
    return rgb, torch.where(valid, log_depth.exp(), 0.0), valid


@lru_cache(maxsize=2)
def _shard(path: Path) -> tuple[Tensor, Tensor]:
    arrays = load_file(path)
    return arrays["rgb"], arrays["log_depth"]
