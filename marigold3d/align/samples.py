"""Reading an image at continuous pixel coordinates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..types import Array


def sample(image: NDArray[np.float32], uv: Array) -> NDArray[np.float32]:
    """Values (N,) of `image` (H, W) at the pixels that hold uv (N, 2); NaN outside.

    The nearest pixel, not a blend: at a depth edge a blend is a depth that no surface has.
    """
    height, width = image.shape
    column, row = np.floor(uv[:, 0]).astype(int), np.floor(uv[:, 1]).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    out = np.full(len(uv), np.nan, np.float32)
    out[inside] = image[row[inside], column[inside]]
    return out
