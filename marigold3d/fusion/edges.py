"""Flying pixels: depth that hangs between a near and a far surface. They are found before anything is resampled."""

from __future__ import annotations

import numpy as np

from ..types import BoolImage, DepthMap


def edge_mask(depth: DepthMap, ratio: float) -> BoolImage:
    """(H, W) True where the depth changes by more than `ratio` of itself to an adjacent pixel, or is not valid.

    Both sides of a step are marked: a network blurs the step over a few pixels, and any of them may fly.
    """
    z = np.where(depth.valid, depth.depth, np.nan)
    mask = ~depth.valid
    with np.errstate(invalid="ignore"):
        for axis in (0, 1):
            a, b = (z[:-1], z[1:]) if axis == 0 else (z[:, :-1], z[:, 1:])
            step = ~(np.abs(a - b) <= ratio * np.fmin(a, b))  # also True next to an invalid pixel
            if axis == 0:
                mask[:-1] |= step
                mask[1:] |= step
            else:
                mask[:, :-1] |= step
                mask[:, 1:] |= step
    return mask
