"""What a run will take on disk: said before the first long stage, and refused where the disk cannot hold it."""

from __future__ import annotations

import shutil
from pathlib import Path

from .errors import OutputError

# Bytes a pixel and frame, measured on a hand-held clip of 640x480 (values and sigma together, compressed).
RELATIVE = 2.2
ALIGNED = 1.7
REFINED = 1.7
PRODUCTS = 1.4
KEYFRAME_PIXEL = 2.0  # images and features that structure from motion works on, a keyframe's pixel
CLOUD_BYTES = 15e6
MARGIN = 1.2  # pictures full of detail and noise compress less


def estimated_bytes(frames: int, size: tuple[int, int], keyframes: int, *, refined: bool) -> int:
    """Bytes of a run of `frames` depth maps of `size` (width, height): its cache and its products, without edits."""
    pixels = size[0] * size[1]
    each = RELATIVE + ALIGNED + PRODUCTS + (REFINED if refined else 0.0)
    return int(MARGIN * pixels * (frames * each + keyframes * KEYFRAME_PIXEL) + CLOUD_BYTES)


def require_space(folder: Path, wanted: int) -> None:
    """OutputError unless `folder`'s disk has room for `wanted` bytes; what a run has written there already counts."""
    free = shutil.disk_usage(folder).free
    if wanted > free + used_bytes(folder):
        raise OutputError(
            f"{folder}: this run needs about {wanted / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: make room, choose "
            "another disk with -o, or use --max-side, --stride or --end"
        )


def used_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
