"""Depth maps of a run as an array that is read when indexed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from marigold3d.lazy import LazyStack
from marigold3d.store import Run


class DepthStack(LazyStack):
    """(T, H, W) float32 z-depth over the frames of the source clip, NaN where unknown.

    Indexed like the clip, so that one time slider moves both: a frame that was not used shows the nearest one that was.
    """

    def __init__(self, run: Run, source_frames: int | None = None) -> None:
        self._run = run
        self._used = np.array(run.frame_indices)
        camera = run.camera()
        count = source_frames if source_frames is not None else int(self._used[-1]) + 1
        super().__init__((count, camera.height, camera.width), np.float32)

    def nearest_used(self, position: int) -> int:
        """The used source frame nearest to source frame `position`."""
        return int(self._used[np.abs(self._used - position).argmin()])

    def depth_range(self, samples: int = 5) -> tuple[float, float]:
        """Depths between which nearly all pixels of a few frames lie, for one colour scale over the whole clip."""
        chosen = self._used[np.linspace(0, len(self._used) - 1, min(samples, len(self._used))).astype(int)]
        return display_range(np.concatenate([self._frame(int(i)).ravel() for i in chosen]))

    def _read(self, position: int) -> NDArray[np.float32]:
        depth = self._run.depth(self.nearest_used(position))
        return np.where(depth.valid, depth.depth, np.float32(np.nan))


def display_range(values: NDArray[np.float32]) -> tuple[float, float]:
    """2nd and 98th percentile of the finite values, apart from each other even where all are equal."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, [2, 98])
    return float(low), float(max(high, low + 1e-6 * max(1.0, abs(low))))
