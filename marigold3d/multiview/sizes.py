"""Depth maps and pictures at other sizes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..types import DepthMap


def reduced(depth: DepthMap, width: int, height: int) -> DepthMap:
    """The map at another size by nearest pixels: no depth is made up between two surfaces."""
    sigma = None if depth.sigma is None else resized(depth.sigma, width, height)
    return DepthMap(resized(depth.depth, width, height), resized(depth.valid, width, height), sigma)


def resized(image: NDArray, width: int, height: int) -> NDArray:  # type: ignore[type-arg]
    """An image (h, w) at (height, width) by nearest pixels."""
    rows, columns = (
        ((np.arange(target) + 0.5) * source / target).astype(np.intp)
        for source, target in zip(image.shape, (height, width), strict=True)
    )
    return image[np.ix_(rows, columns)]


def shrunk(rgb: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """rgb (H, W, 3) as (height, width, 3), area-filtered."""
    if rgb.shape[:2] == (height, width):
        return rgb
    image = torch.tensor(rgb, dtype=torch.float32).permute(2, 0, 1)[None]
    small = F.interpolate(image, size=(height, width), mode="area")[0].permute(1, 2, 0)
    return small.round_().to(torch.uint8).numpy()  # type: ignore[no-any-return]
