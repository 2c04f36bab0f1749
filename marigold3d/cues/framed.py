"""Cues that belong to single frames, whatever file they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import Array, SparseCues, Units
from .clip_frames import NOT_USED, ClipFrames
from .tally import Tally

METRIC_SIGMA = (0.01, 0.005)  # of cues in metres without one: a share of the depth, and metres beside it
ARBITRARY_SIGMA = 0.02  # of cues in other units: a share of the depth


@dataclass(frozen=True, eq=False)
class FramedCues:
    """A `CueSource`: the cues of each position, at the depth maps' size, and the point 0..count-1 behind each of them.

    `tally` counts what the file held that is not here.
    """

    name: str
    units: Units
    count: int
    by_position: Mapping[int, SparseCues]
    points: Mapping[int, NDArray[np.int64]]
    tally: Tally
    of_single_frames: bool = True

    def cues(self, position: int, T_world_camera: Array) -> tuple[SparseCues, NDArray[np.int64]]:
        """See `align.sources.CueSource`; the pose is not needed."""
        if position not in self.by_position:
            return SparseCues.empty(self.name), np.zeros(0, np.int64)
        return self.by_position[position], self.points[position]


@dataclass(frozen=True, eq=False)
class CueRows:
    """Cues as a file gives them, one a row, nothing checked yet.

    position (N,) among the used frames or NOT_USED; uv (N, 2) px of the depth maps; depth (N,); sigma (N,), NaN where
    unknown; point (N,): rows with the same number are the same point of the world.
    """

    position: NDArray[np.int64]
    uv: Array
    depth: Array
    sigma: Array
    point: NDArray[np.int64]


def default_sigma(depth: Array, units: Units, share: float | None) -> Array:
    """Standard deviation (N,) of depths (N,): `share` of them; without it 1 % + 5 mm in metres, 2 % in other units."""
    if share is not None:
        return share * depth
    return METRIC_SIGMA[0] * depth + METRIC_SIGMA[1] if units == "m" else ARBITRARY_SIGMA * depth


def framed(
    name: str,
    origin: str,
    units: Units,
    rows: CueRows,
    clip: ClipFrames,
    share: float | None,
    *,
    before: Tally | None = None,
) -> FramedCues:
    """Drop and count what cannot be used, and group the rest by frame.

    name: of the kind, as the cues' source; origin: of the file, for messages; share: sigma of cues without one, see
    `default_sigma`; before: of the sifting that left these rows. Raises InputError when nothing is left.
    """
    finite = np.isfinite(rows.uv).all(1) & np.isfinite(rows.depth)
    keep, tally = Tally.sift(
        len(rows.depth),
        (
            ("not a number", ~finite),
            ("of frames not in use", rows.position == NOT_USED),
            ("without a positive depth", ~(rows.depth > 0)),
            ("outside the image", ~clip.inside(rows.uv)),
        ),
    )
    if before is not None:
        tally = Tally(before.total, {**before.dropped, **tally.dropped})
    if not keep.any():
        raise InputError(f"{origin}: {nothing_left(tally, clip)}")
    return group(name, units, rows, keep, tally, share)


def group(
    name: str, units: Units, rows: CueRows, keep: NDArray[np.bool_], tally: Tally, share: float | None
) -> FramedCues:
    """The kept rows (N,), which are known to be good, by frame."""
    at = np.flatnonzero(keep)
    at = at[np.argsort(rows.position[at], kind="stable")]
    known = np.isfinite(rows.sigma[at]) & (rows.sigma[at] > 0)
    depth = rows.depth[at].astype(float)
    cues = SparseCues(rows.uv[at], depth, np.where(known, rows.sigma[at], default_sigma(depth, units, share)), name)
    distinct, point = np.unique(rows.point[at], return_inverse=True)
    positions, starts = np.unique(rows.position[at], return_index=True)
    parts = {int(p): slice(a, b) for p, a, b in zip(positions, starts, [*starts[1:], len(at)], strict=True)}
    return FramedCues(
        name,
        units,
        len(distinct),
        {p: cues.select(np.arange(s.start, s.stop)) for p, s in parts.items()},
        {p: point[s].astype(np.int64) for p, s in parts.items()},
        tally,
    )


def nothing_left(tally: Tally, clip: ClipFrames) -> str:
    """What to do about a file none of whose cues is used, by the reason most of them were dropped for."""
    if not tally.total:
        return "it holds no cues; write it again"
    remedies = {
        "not a number": "write numbers with decimal points",
        "of frames not in use": f"the clip uses {clip.range_text()}, and frames are numbered from 0 in the source",
        "without a positive depth": "depth is z along the viewing direction, positive in front of the camera",
        "outside the image": f"u and v are pixels of the clip's own {clip.source_size[0]}x{clip.source_size[1]} frames",
    }
    worst = max(tally.dropped, key=lambda reason: tally.dropped[reason])
    return f"{tally}; {remedies.get(worst, 'check the file')}"
