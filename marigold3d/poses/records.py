"""What a pose file holds, whatever its format, before its poses find their frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..lens import Lens
from ..types import Array, Intrinsics
from .convention import Convention, reread
from .matching import ClipFrames, PosedFrames, Rows, match_names, match_rows, match_times, posed


@dataclass(frozen=True, eq=False)
class PoseRecords:
    """Poses of a file as read: `T_world_camera` (M, 4, 4), OpenCV axes, if the file means what its `convention` says.

    names or times_s (M,): what each pose belongs to; neither: one a row. camera: the one the file states, at the size
    it states. lens: what frames are to be undistorted from before `camera` holds; None where they can stay as they are.
    """

    path: Path
    T_world_camera: Array
    convention: Convention
    names: tuple[str, ...] | None = None
    times_s: Array | None = None
    camera: Intrinsics | None = None
    lens: Lens | None = None

    def told(self, words: Sequence[str]) -> PoseRecords:
        """The same file read in another convention; UsageError for `words` that mean nothing to it."""
        wanted = self.convention.told(words)
        T = self.T_world_camera.copy()
        known = np.isfinite(T).all((1, 2))
        T[known] = reread(T[known], self.convention, wanted)
        return replace(self, T_world_camera=T, convention=wanted)

    def of(self, clip: ClipFrames) -> PosedFrames:
        """The poses of the clip's frames; InputError when none can be matched, or one is no rigid matrix."""
        return posed(self.path, self.T_world_camera, self._rows(clip), self.camera)

    def _rows(self, clip: ClipFrames) -> Rows:
        if self.times_s is not None:
            return match_times(self.path, self.times_s, clip)
        if self.names is not None:
            return match_names(self.path, self.names, clip)
        rows = match_rows(self.path, len(self.T_world_camera), clip)
        return np.where(np.isnan(self.T_world_camera[rows, :3]).all((1, 2)), -1, rows)
