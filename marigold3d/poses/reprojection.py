"""Whether imported poses explain how the pictures move, and which of the usual mistakes would explain it better.

Matches come from optical flow between nearby keyframes. Under a right reading, a match lies where its ray passes at
some positive depth: on a half-line in the other picture, or at a point if the camera only turned. So chirality counts,
and a turn on the spot is judged by the same measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..camera import normalised, pixel_grid
from ..errors import InputError
from ..flow import ClipFlow, thumbnails_steps
from ..progress import Steps
from ..rigid import inverse
from ..types import Array, Intrinsics
from ..video import VideoSource
from .convention import Convention, reread

SIDE = 480  # px, longest side of the pictures that are compared
EVERY = 2  # keyframes apart: those next to each other may have moved by 3 % of the width only
KEYFRAMES = 80  # looked at, from the first posed one: a wrong reading is wrong from the start, and decoding takes time
PAIRS = 12
GRID = 6  # px between the pixels that are matched
CLOSE = 0.006  # of the width: matches so near to where they may lie are explained; 0.3 degrees of noise make less
MOVED = 4.0  # times that: the median motion of a pair that can tell readings apart
ENOUGH = 300  # matches
CLEARLY, BETTER = (
    0.6,
    0.6,
)  # of the matches another reading must explain, and the most the given one may, as a share of that
ALIKE = 0.03  # shares so close do not tell two readings apart
FOCAL_FACTORS = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 2, 2.0, 3.0, 4.0)  # of clips reduced or enlarged after calibration
OFF_CENTRE = 0.15  # of the principal point's share of the size: beyond, the camera may be meant for another size


@dataclass(frozen=True, eq=False)
class Matches:
    """Pixels (N, 2) of one frame and where they are in another: rows i and j of the poses."""

    i: int
    j: int
    uv_i: Array
    uv_j: Array


@dataclass(frozen=True)
class Mistake:
    """A reading that differs in `changes` ways and explains `share` of the matches: in words, and how to ask for it."""

    share: float
    changes: int
    reading: str
    remedy: str


def check_reading(
    video: VideoSource,
    positions: NDArray[np.int64],
    T_world_camera: Array,
    camera: Intrinsics,
    read_as: Convention,
    file: Path,
    *,
    standard: Convention,
    camera_stated: bool,
) -> Steps[None]:
    """Raise InputError if frames (M,) with poses (M, 4, 4) move as another reading of the file says, not as this one.

    camera: at any size; standard: the convention of the file's format, which the remedy is told in terms of;
    camera_stated: someone claims that the camera is right, so that may be the mistake.
    """
    chosen = np.arange(min(len(positions), KEYFRAMES))[:: EVERY if len(positions) > 2 * EVERY else 1]
    found = yield from _matches(video, positions[chosen], chosen)
    scaled = camera.scaled_to(*video.size(SIDE))
    told = sum(len(m.uv_i) for m in found)
    if told < ENOUGH:
        return
    given = explained(found, T_world_camera, scaled)
    if given > CLEARLY:
        return
    clip_width = video.info.width if camera_stated else None
    others = _mistakes(found, T_world_camera, scaled, read_as, standard, clip_width)
    better = [m for m in others if m.share > CLEARLY]
    if not better or given > BETTER * (share := max(m.share for m in better)):
        return
    near = [m for m in better if m.share > share - ALIKE]
    likely = [m for m in near if m.changes == min(n.changes for n in near)][:2]
    other, remedy = " or ".join(m.reading for m in likely), " or ".join(m.remedy for m in likely)
    raise InputError(
        f"{file}: the poses as read explain {given:.0%} of {told} matches between frames, {likely[0].share:.0%} if "
        f"read {other}: {remedy}"
    )


def explained(found: list[Matches], T_world_camera: Array, camera: Intrinsics) -> float:
    """Share of the matches that lie where poses (M, 4, 4) and camera allow."""
    return float(np.mean(np.concatenate([_is_explained(m, T_world_camera, camera) for m in found])))


def _is_explained(m: Matches, T_world_camera: Array, camera: Intrinsics) -> NDArray[np.bool_]:
    """(N,): the distance of each match from the half-line of its ray at depths from infinity to nothing is small."""
    T = inverse(T_world_camera[m.j]) @ T_world_camera[m.i]
    R, t = T[:3, :3], T[:3, 3]
    xy_i, xy_j = normalised(m.uv_i, camera), normalised(m.uv_j, camera)
    far = np.concatenate([xy_i, np.ones_like(xy_i[:, :1])], 1) @ R.T  # the ray in the other camera
    with np.errstate(divide="ignore", invalid="ignore"):
        at_infinity = far[:, :2] / far[:, 2:]
        way = t[:2] - t[2] * at_infinity  # towards the epipole as depth shrinks
        length = np.linalg.norm(way, axis=1, keepdims=True)
        way = np.where(length > 0, way / length, 0.0)
        most = length[:, 0] / t[2] if t[2] > 0 else np.inf  # the epipole lies at t_xy / t_z
        along = np.clip(np.sum((xy_j - at_infinity) * way, 1), 0.0, most)
        off = np.linalg.norm(at_infinity + along[:, None] * way - xy_j, axis=1) * np.sqrt(camera.fx * camera.fy)
        return np.asarray((far[:, 2] > 0) & (off < CLOSE * camera.width))


def _matches(video: VideoSource, positions: NDArray[np.int64], rows: NDArray[np.int64]) -> Steps[list[Matches]]:
    """Matches of up to PAIRS pairs of successive frames at `positions` that have moved enough."""
    if len(positions) < 2:
        return []
    starts = np.unique(np.linspace(0, len(positions) - 2, PAIRS).round().astype(int))
    used = np.union1d(starts, starts + 1)
    grays = yield from thumbnails_steps(video, SIDE, positions[used].tolist())
    flow, found = ClipFlow(grays), []
    uv = pixel_grid(grays.shape[2], grays.shape[1])[GRID // 2 :: GRID, GRID // 2 :: GRID]
    for a, b in pairwise(range(len(used))):
        step = flow(a, b) if used[b] == used[a] + 1 else None
        if step is None:
            continue
        keep = step.valid[GRID // 2 :: GRID, GRID // 2 :: GRID]
        motion = (step.displacement * grays.shape[:0:-1])[GRID // 2 :: GRID, GRID // 2 :: GRID]
        if keep.any() and np.median(np.linalg.norm(motion[keep], axis=1)) > MOVED * CLOSE * grays.shape[2]:
            found.append(Matches(int(rows[used[a]]), int(rows[used[b]]), uv[keep], uv[keep] + motion[keep]))
    return found


def _mistakes(
    found: list[Matches],
    T: Array,
    camera: Intrinsics,
    read_as: Convention,
    standard: Convention,
    clip_width: int | None,
) -> Iterator[Mistake]:
    """The usual mistakes and what they would explain; of the camera only where `clip_width`, px, says it was stated."""
    for words in _other_readings(read_as):
        wanted = read_as.told(words)
        changes, option = wanted.words_from(read_as), wanted.words_from(standard)
        remedy = f"give --poses-convention {','.join(option)}" if option else "leave --poses-convention out"
        share = explained(found, reread(T, read_as, wanted), camera)
        yield Mistake(share, len(changes), f"as {','.join(changes)}", remedy)
    if clip_width is None:
        return
    for factor, other in _other_cameras(camera):
        what = "focal length" if other.cx == camera.cx else "focal length and centre"
        size = f"{clip_width / factor:.0f} px wide, the clip's are {clip_width}"
        reading = f"with {factor:.3g} times the {what}"
        remedy = f"the camera seems to be that of images {size}; state it at the clip's size"
        yield Mistake(explained(found, T, other), 1, reading, remedy)


def _other_readings(read_as: Convention) -> Iterator[list[str]]:
    axes = "opencv" if read_as.opengl else "opengl"
    way = "camera-to-world" if read_as.world_to_camera else "world-to-camera"
    order = {"xyzw": ["wxyz"], "wxyz": ["xyzw"], None: []}[read_as.quaternion]
    yield [way]
    yield [axes]
    yield [way, axes]
    for word in order:
        yield from ([word], [word, way], [word, axes], [word, way, axes])


def _other_cameras(camera: Intrinsics) -> Iterator[tuple[float, Intrinsics]]:
    """(factor, camera) as they would be, had the one given been meant for another size."""
    fx, fy, cx, cy = camera.fx, camera.fy, camera.cx, camera.cy
    factor = camera.width / (2 * cx) if cx > 0 else 1.0
    if abs(np.log(factor)) > OFF_CENTRE:
        yield factor, replace(camera, fx=factor * fx, fy=factor * fy, cx=factor * cx, cy=factor * cy)
        return
    for factor in FOCAL_FACTORS:
        yield factor, replace(camera, fx=factor * fx, fy=factor * fy)
