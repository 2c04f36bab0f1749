"""Surveyed control points: where they are in the world, and at which pixels of which frames they are seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..rigid import Similarity
from ..types import Array, SparseCues, Units
from .clip_frames import NOT_USED, ClipFrames
from .framed import default_sigma, nothing_left
from .tally import Tally


@dataclass(frozen=True, eq=False)
class ControlPoints:
    """P points and O observations; a `CueSource` once `placed` says how the world of the poses lies in the survey's.

    names (P,); survey_m (P, 3): metres in the survey's frame; position (O,) among the used frames, point (O,) in
    0..P-1 and uv (O, 2) px of the depth maps: who sees which point where; tally: observations read and dropped;
    origin_lla: degrees, degrees, metres of the survey frame's origin, where it is east, north, up about a place.
    """

    names: tuple[str, ...]
    survey_m: Array
    position: NDArray[np.int64]
    point: NDArray[np.int64]
    uv: Array
    tally: Tally
    origin_lla: tuple[float, float, float] | None = None
    share: float | None = None
    T_survey_world: Similarity | None = None
    error_m: float = 0.0
    trusted: frozenset[str] | None = None
    name: str = "control points"
    units: Units = "m"
    of_single_frames: bool = False

    @property
    def count(self) -> int:
        return len(self.names)

    def placed(
        self, T_survey_world: Similarity, *, error_m: float = 0.0, wrong: frozenset[str] = frozenset()
    ) -> ControlPoints:
        """The same points as cues for poses in the world that `T_survey_world` starts from.

        error_m: standard deviation of that transformation and the survey; wrong: names of points to leave out.
        """
        return replace(self, T_survey_world=T_survey_world, error_m=error_m, trusted=frozenset(self.names) - wrong)

    def cues(self, position: int, T_world_camera: Array) -> tuple[SparseCues, NDArray[np.int64]]:
        """See `align.sources.CueSource`; none before the points are `placed`. Depth is in metres always."""
        if self.T_survey_world is None:
            return SparseCues.empty(self.name), np.zeros(0, np.int64)
        T_survey_camera = self.T_survey_world.apply_to_poses(T_world_camera[None])[0]
        seen = np.flatnonzero(self.position == position)
        z = (self.survey_m[self.point[seen]] - T_survey_camera[:3, 3]) @ T_survey_camera[:3, 2]
        trusted = self.trusted or frozenset()
        keep = (z > 0) & np.array([self.names[p] in trusted for p in self.point[seen]], bool)
        seen, z = seen[keep], z[keep]
        sigma = np.hypot(default_sigma(z, "m", self.share), self.error_m)
        return SparseCues(self.uv[seen], z, sigma, self.name), self.point[seen]


@dataclass(frozen=True, eq=False)
class Observations:
    """One row an observation, unchecked: labels (O,) of frames, names (O,) of points, uv (O, 2) px of the maps."""

    frames: list[str]
    names: list[str]
    uv: Array


def control_points(
    origin: str,
    places: dict[str, Array],
    seen: Observations,
    clip: ClipFrames,
    share: float | None,
    origin_lla: tuple[float, float, float] | None = None,
) -> ControlPoints:
    """Points at `places` (3,) metres by name, with those observations that can be used; InputError when there are none.

    origin: of the file, for messages. A point without finite coordinates is dropped with its observations.
    """
    known = {name: row for row, name in enumerate(n for n, xyz in places.items() if np.all(np.isfinite(xyz)))}
    position = clip.positions_of(seen.frames)
    keep, tally = Tally.sift(
        len(seen.frames),
        (
            ("of points without coordinates", np.array([name not in known for name in seen.names], bool)),
            ("not a number", ~np.isfinite(seen.uv).all(1)),
            ("of frames not in use", position == NOT_USED),
            ("outside the image", ~clip.inside(seen.uv)),
        ),
    )
    if not keep.any():
        raise InputError(f"{origin}: {nothing_left(tally, clip)}")
    point = np.array([known.get(name, 0) for name in seen.names], np.int64)
    survey_m = np.array([places[name] for name in known])
    return ControlPoints(tuple(known), survey_m, position[keep], point[keep], seen.uv[keep], tally, origin_lla, share)
