"""From RGB frames to a network's input, and from its output back to the frame's size."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..errors import InputError


def check_rgb(rgb: NDArray[np.uint8]) -> None:
    """Raises InputError unless rgb is a batch (N, H, W, 3) of uint8 frames."""
    if rgb.ndim != 4 or rgb.shape[3] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise InputError(f"a batch of frames must be (N, H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")


def rgb_tensor(rgb: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """(N, 3, H, W) float32 in 0..1 on `device` from rgb (N, H, W, 3) uint8."""
    image = torch.from_numpy(np.ascontiguousarray(rgb)).to(device)
    return image.permute(0, 3, 1, 2).float() / 255.0  # (N, 3, H, W)


def fitted_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """(h, w) with the longer side `longest` px and the aspect kept, rounded down; 0 keeps the size."""
    if longest == 0:
        return height, width
    h, w = height * longest // max(height, width), width * longest // max(height, width)
    if h == 0 or w == 0:
        raise InputError(f"a {width}x{height} frame is too narrow to be processed at {longest} px: crop it")
    return h, w


def resized(image: torch.Tensor, size: tuple[int, int], antialias: bool) -> torch.Tensor:
    """Bilinear (N, C, *size) from (N, C, H, W); `antialias` filters when the image shrinks."""
    return F.interpolate(image, size, mode="bilinear", antialias=antialias)


def padded_to_multiple(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """(N, C, H, W) grown at the bottom and right, edge pixels repeated, until both sides are multiples."""
    h, w = image.shape[-2:]
    return F.pad(image, (0, -w % multiple, 0, -h % multiple), mode="replicate")
