"""Where known depths come from: one interface for structure from motion, sensors, files and surveyed points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..types import Array, SparseCues, Units


class CueSource(Protocol):
    """Known depths of a clip's frames, at the size and with the camera of its depth maps.

    `count` distinct points stand behind them: a point seen by many frames is one, and is held out as one.
    """

    @property
    def name(self) -> str: ...

    @property
    def units(self) -> Units: ...

    @property
    def count(self) -> int: ...

    @property
    def of_single_frames(self) -> bool:
        """Whether a frame's cues were measured in it alone, so that the frames around it can gain from them."""
        ...

    def cues(self, position: int, T_world_camera: Array) -> tuple[SparseCues, NDArray[np.int64]]:
        """Cues of the used frame at `position`, whose pose is (4, 4), and the point 0..count-1 behind each (N,)."""
        ...


@dataclass(frozen=True, eq=False)
class FrameCues:
    """Cues that belong to single frames, by position: depth maps of a sensor, tables of pixels; every one a point."""

    name: str
    units: Units
    by_position: Mapping[int, SparseCues]
    measured: bool = True  # False: made from other cues, so none of it can be held out
    of_single_frames: bool = True

    @property
    def count(self) -> int:
        return sum(len(c) for c in self.by_position.values())

    def cues(self, position: int, T_world_camera: Array) -> tuple[SparseCues, NDArray[np.int64]]:
        """See `CueSource`; the pose is not needed."""
        if position not in self.by_position:
            return SparseCues.empty(self.name), np.zeros(0, np.int64)
        before = sum(len(c) for p, c in self.by_position.items() if p < position)
        found = self.by_position[position]
        return found, before + np.arange(len(found))
