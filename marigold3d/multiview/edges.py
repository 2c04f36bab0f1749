"""Smoothing that stops at image edges: the domain transform (Gastal and Oliveira, SIGGRAPH 2011, recursive filter).

Walking from pixel to pixel along rows and columns costs one a pixel, and more where the colour changes: what lies
behind an edge is far away. Any number of channels is smoothed by the distances of one image, in time linear in the
pixels whatever the reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..types import FloatImage

ITERATIONS = 3  # of rows then columns: fewer leave stripes


@dataclass(frozen=True, eq=False)
class Edges:
    """Distances (H, W) of each pixel to the one on its left and the one above, at least 1, and the reach in pixels."""

    left: FloatImage
    above: FloatImage
    reach_px: float

    @classmethod
    def of(cls, rgb: NDArray[np.uint8], reach_px: float, contrast: float) -> Edges:
        """From rgb (H, W, 3). A colour change of `contrast` (sum over channels of 0..1) is as far as the reach."""
        colours = rgb.astype(np.float32) / 255
        per_change = reach_px / contrast
        left, above = (np.ones(rgb.shape[:2], np.float32) for _ in range(2))
        left[:, 1:] += per_change * np.abs(np.diff(colours, axis=1)).sum(2)
        above[1:] += per_change * np.abs(np.diff(colours, axis=0)).sum(2)
        return cls(left, above, reach_px)

    def smoothed(self, channels: NDArray[np.float32]) -> NDArray[np.float32]:
        """(C, H, W) averaged over each pixel's surroundings; to average where there are weights, smooth them too."""
        across = np.ascontiguousarray(channels.transpose(2, 0, 1))  # (W, C, H)
        for i in range(ITERATIONS):
            reach = self.reach_px * np.sqrt(3) * 2 ** (ITERATIONS - i - 1) / np.sqrt(4**ITERATIONS - 1)  # eq. 14
            kept = np.float32(np.exp(-np.sqrt(2) / reach))
            _recurse(across, (kept**self.left).T)
            down = np.ascontiguousarray(across.transpose(2, 1, 0))  # (H, C, W)
            _recurse(down, kept**self.above)
            across = np.ascontiguousarray(down.transpose(2, 1, 0))
        return np.ascontiguousarray(across.transpose(1, 2, 0))


def _recurse(lines: NDArray[np.float32], kept: FloatImage) -> None:
    """Mix each of lines (N, C, M) with the one before, then with the one after, by kept (N, M), in place (eq. 21)."""
    for i in range(1, len(lines)):
        lines[i] += kept[i] * (lines[i - 1] - lines[i])
    for i in range(len(lines) - 2, -1, -1):
        lines[i] += kept[i + 1] * (lines[i + 1] - lines[i])
