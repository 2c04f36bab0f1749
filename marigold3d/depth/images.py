"""From RGB frames to a network's input, and from its output back to the frame's size."""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..config import Resample
from ..errors import InputError, UsageError

LEAST_SIDE = 8  # px; a network would see nothing but its own padding
_WHOLE_PX = 1 << 23  # pictures of more pixels are shrunk a strip at a time: as float32 they would fill the memory


def check_rgb(rgb: NDArray[np.uint8]) -> None:
    """Raises InputError unless rgb is a batch (N, H, W, 3) of uint8 frames."""
    if rgb.ndim != 4 or rgb.shape[3] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise InputError(f"a batch of frames must be (N, H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")


def check_side(rgb: NDArray[np.uint8]) -> None:
    """Raises InputError for frames too small to hold a scene."""
    if min(rgb.shape[1:3]) < LEAST_SIDE:
        size = f"{rgb.shape[2]}x{rgb.shape[1]}"
        raise InputError(f"a {size} frame is too narrow for depth: give at least {LEAST_SIDE}x{LEAST_SIDE} pixels")


def check_resample(resample: str) -> None:
    """Raises UsageError for an unknown way of resampling."""
    if resample not in get_args(Resample):
        raise UsageError(f"unknown resampling {resample!r}: use {', '.join(get_args(Resample))}")


def rgb_tensor(rgb: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """(N, 3, H, W) float32 in 0..1 on `device` from rgb (N, H, W, 3) uint8."""
    image = torch.from_numpy(np.ascontiguousarray(rgb)).to(device)
    return image.permute(0, 3, 1, 2).float() / 255.0  # (N, 3, H, W)


def rgb_at_size(
    rgb: NDArray[np.uint8], size: tuple[int, int], device: torch.device, resample: Resample
) -> torch.Tensor:
    """(N, 3, *size) float32 in 0..1 from rgb (N, H, W, 3) uint8, filtered where it shrinks.

    The filters are separable: very large pictures are first shrunk along their rows, a strip at a time, to the same
    values.
    """
    height, width = rgb.shape[1:3]
    if height * width <= _WHOLE_PX or size[1] >= width:
        return resized(rgb_tensor(rgb, device), size, antialias=True, resample=resample)
    rows = max(1, _WHOLE_PX // width)
    strips = [
        resized(rgb_tensor(strip, device), (strip.shape[1], size[1]), antialias=True, resample=resample)
        for strip in np.split(rgb, range(rows, height, rows), axis=1)
    ]
    return resized(torch.cat(strips, dim=2), size, antialias=True, resample=resample)


def fitted_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """(h, w) with the longer side `longest` px and the aspect kept, rounded down; 0 keeps the size."""
    if longest == 0:
        return height, width
    h, w = height * longest // max(height, width), width * longest // max(height, width)
    if h == 0 or w == 0:
        raise InputError(f"a {width}x{height} frame is too narrow to be processed at {longest} px: crop it")
    return h, w


def resized(
    image: torch.Tensor, size: tuple[int, int], antialias: bool, resample: Resample = "bilinear"
) -> torch.Tensor:
    """(N, C, *size) from (N, C, H, W); `antialias` filters when the image shrinks, unless `resample` is nearest."""
    return F.interpolate(image, size, mode=resample, antialias=antialias and resample != "nearest")


def padded_to_multiple(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """(N, C, H, W) grown at the bottom and right, edge pixels repeated, until both sides are multiples."""
    h, w = image.shape[-2:]
    return F.pad(image, (0, -w % multiple, 0, -h % multiple), mode="replicate")
