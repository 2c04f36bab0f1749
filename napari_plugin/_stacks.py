"""Depth maps of a run, and their standard deviations, as arrays that are read when indexed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from marigold3d.lazy import LazyStack
from marigold3d.store import Run
from marigold3d.types import DepthMap


class DepthStack(LazyStack):
    """(T, H, W) float32 z-depth over the frames of the source clip, NaN where unknown.

    Indexed like the clip, so that one time slider moves both: a frame that was not used shows the nearest one that was.
    """

    def __init__(self, run: Run, source_frames: int | None = None) -> None:
        self.run = run
        self._used = np.array(run.frame_indices)
        camera = run.camera()
        count = source_frames if source_frames is not None else int(self._used[-1]) + 1
        super().__init__((count, camera.height, camera.width), np.float32)

    @property
    def used(self) -> list[int]:
        """Source frames that have depth of their own, in order."""
        return [int(index) for index in self._used]

    def depth_map(self, position: int) -> DepthMap:
        """What is known of source frame `position`, or of the nearest that was used."""
        return self.run.depth(self.nearest_used(position))

    def nearest_used(self, position: int) -> int:
        """The used source frame nearest to source frame `position`."""
        return int(self._used[np.abs(self._used - position).argmin()])

    def depth_range(self, samples: int = 5) -> tuple[float, float]:
        """Values between which nearly all pixels of a few frames lie, for one colour scale over the whole clip."""
        chosen = self._used[np.linspace(0, len(self._used) - 1, min(samples, len(self._used))).astype(int)]
        return display_range(np.concatenate([self._frame(int(i)).ravel() for i in chosen]))

    def _read(self, position: int) -> NDArray[np.float32]:
        depth = self.run.depth(self.nearest_used(position), sigma=False)
        return np.where(depth.valid, depth.depth, np.float32(np.nan))


class SigmaStack(DepthStack):
    """(T, H, W) float32 standard deviation of the depth, scene units, over the same frames.

    NaN where it is unknown, which is everywhere in a run that keeps none.
    """

    def _read(self, position: int) -> NDArray[np.float32]:
        depth = self.depth_map(position)
        if depth.sigma is None:
            return np.full(self.shape[1:], np.nan, np.float32)
        return np.where(depth.valid & np.isfinite(depth.sigma), depth.sigma, np.float32(np.nan)).astype(np.float32)


def display_range(values: NDArray[np.float32]) -> tuple[float, float]:
    """2nd and 98th percentile of the finite values, apart from each other even where all are equal."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, [2, 98])
    return float(low), float(max(high, low + 1e-6 * max(1.0, abs(low))))
