"""Depth as a picture for people: near is warm, far is cold, equal steps are equal ratios of depth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..types import BoolImage, FloatImage

SPECTRAL = np.array(  # ColorBrewer's 11-class Spectral (Apache-2.0, colorbrewer2.org), near to far
    [
        (158, 1, 66),
        (213, 62, 79),
        (244, 109, 67),
        (253, 174, 97),
        (254, 224, 139),
        (255, 255, 191),
        (230, 245, 152),
        (171, 221, 164),
        (102, 194, 165),
        (50, 136, 189),
        (94, 79, 162),
    ],
    dtype=np.float64,
)
INVALID_RGB = (0, 0, 0)


def depth_range(depth: FloatImage, valid: BoolImage) -> tuple[float, float]:
    """(near, far) of the colours: the 2nd and 98th percentile of valid depth; (1, 2) when nothing is valid."""
    if not valid.any():
        return 1.0, 2.0
    near, far = np.percentile(depth[valid], [2, 98])
    return float(near), float(max(far, near * 1.001))


def colorize(depth: FloatImage, valid: BoolImage, near_far: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """uint8 RGB (H, W, 3) of depth (H, W); invalid pixels are black.

    near_far: depths at the ends of the colours (one pair for a clip prevents flicker); None: from this map.
    """
    near, far = near_far or depth_range(depth, valid)
    ratio = np.where(valid, depth, np.float32(near)) / near
    position = np.clip(np.log(np.maximum(ratio, 1e-6)) / np.log(far / near), 0, 1) * (len(SPECTRAL) - 1)
    channels = [np.interp(position, np.arange(len(SPECTRAL)), SPECTRAL[:, c]) for c in range(3)]
    rgb = np.round(np.stack(channels, -1)).astype(np.uint8)  # (H, W, 3)
    rgb[~valid] = INVALID_RGB
    return rgb
