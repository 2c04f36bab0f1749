"""Camera poses, and the focal length, brought in line with the pictures; and whether they were in line before.

Textured points of every keyframe, placed by its depth map, are found in its neighbours (`matches`), and poses, focal
length and the points' depths are adjusted until they lie where they were found (`bundle`). A share of the points takes
no part; what does not improve those clearly is not kept.

Gauge: as a whole, the path stays where it was given (mean rotation, mean of the camera centres), and the points' median
depth stays that of the depth maps. So what was measured in the scene keeps its length, even if the path had none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..depth.device import choose_device
from ..errors import InputError
from ..progress import Steps
from ..rigid import Similarity
from ..types import Array, DepthMap, Intrinsics
from .bundle import Prior, Seen, State, residual_of_unused, solve
from .matches import Matches, find_matches
from .points import CELL, Picture, Points, find_points, neighbours

NEIGHBOURS = 6  # that a keyframe's points are sought in
MOST_OBSERVATIONS = 200_000  # points are taken more sparsely beyond this
MOST_ROUNDS = 5  # of matching and solving: later ones match from better poses
SETTLED_PX = 0.5  # median distance of matches from where they were expected that makes a round the last
HELD_OUT = 0.2  # share of the points
TRIMMED = 0.9  # share of the held-out residuals, the smallest, that count: the rest moves, is hidden or mistaken
# Of the held-out RMS, for anything to be kept. Poses alone: exact ones gain 1 %, structure from motion 2 to 5 % and no
# better depth by it, those of two depth sensors 37 and 74 %; exact ones under a focal length 2 % off gain 7 %.
LEAST_GAIN = 0.05
LEAST_GAIN_PX = 0.01  # and so much: points are not found more finely, and where nearly nothing is off, all is noise
LEAST_FOCAL_GAIN = 0.005  # for the focal length besides: poses make up for most of its error
LEAST_MATCHES = 30  # a keyframe
CHECKED_KEYFRAMES, CHECKED_NEIGHBOURS = 12, 3  # of `photometric_residual`
# Across epipolar lines, pictures of 320 px: exact poses and those of structure from motion leave 0.13 to 0.20, those of
# two depth sensors, which spoil a plane sweep, 0.39 and 0.42; rotations 0.1 degrees off 0.32 to 0.41.
INCONSISTENT_PX = 0.3

Grays = Sequence[NDArray[np.uint8]]
DepthOf = Callable[[int], DepthMap]


@dataclass(frozen=True, eq=False)
class Adjusted:
    """Poses (M, 4, 4) and camera: the very ones given unless `kept`; `reason` says why not.

    rms and median: reprojection residual, px, of points that took no part, their depths fitted under either poses; NaN
    if it did not come to that. matches: observations found. focal_factor: adjusted over given focal length.
    """

    T_world_camera: Array
    camera: Intrinsics
    kept: bool = False
    reason: str = ""
    rms_before_px: float = float("nan")
    rms_after_px: float = float("nan")
    median_before_px: float = float("nan")
    median_after_px: float = float("nan")
    matches: int = 0
    focal_factor: float = 1.0


@dataclass(frozen=True, eq=False)
class Consistency:
    """across_px: median displacement across epipolar lines, which no depth explains; NaN without matches.

    along_px: median along them, which a wrong depth makes too. `matches` of `tried` points were found in others.
    """

    across_px: float
    along_px: float
    matches: int
    tried: int


def adjust_poses(
    grays: Grays,
    T_world_camera: Array,
    camera: Intrinsics,
    depth: DepthOf,
    *,
    focal: bool = True,
    device: str = "cpu",
    seed: int = 0,
) -> Steps[Adjusted]:
    """Adjust poses T_world_camera (M, 4, 4) to the keyframes' pictures `grays`, (H, W) uint8 each.

    camera: of the pictures' size; depth(i): keyframe i's depth map, any size, in the poses' unit; focal: adjust the
    focal length too, if that alone improves held-out points clearly. Raises InputError where sizes do not fit.
    """
    _check(grays, T_world_camera, camera)
    given = Adjusted(T_world_camera, camera)
    pictures = {i: Picture.of(gray) for i, gray in enumerate(grays)}
    cell = max(CELL, int(np.sqrt(camera.width * camera.height * len(grays) * NEIGHBOURS / MOST_OBSERVATIONS)))
    points = Points.joined([find_points(i, picture, depth(i), cell) for i, picture in pictures.items()])
    pairs = _pairs(T_world_camera, camera, points, range(len(grays)), NEIGHBOURS)
    match = partial(find_matches, pictures, pairs=pairs, device=choose_device(device))
    start = State(T_world_camera, camera, points.inverse_depth, points.median_depth)
    matches = yield from match(points, T_world_camera=T_world_camera, camera=camera)
    given = replace(given, matches=len(matches))
    if len(matches) < LEAST_MATCHES * max(len(grays), 1):
        return replace(given, reason=f"too few matches between keyframes: {len(matches)}")
    held_out = np.random.default_rng(seed).random(len(points)) < HELD_OUT
    test = matches.of_points(held_out)  # measured from the given poses: if that favours any, it is these
    state, used = yield from _solved(match, matches, start, ~held_out)
    before, after = residual_of_unused(test, start), residual_of_unused(test, state)
    if focal:
        zoomed = solve(used, state, Prior(points, T_world_camera, camera, focal=True))
        residual = residual_of_unused(test, zoomed)
        if rms(residual) < (1 - LEAST_FOCAL_GAIN) * rms(after):
            state, after = zoomed, residual
    given = replace(
        given,
        rms_before_px=rms(before),
        rms_after_px=rms(after),
        median_before_px=float(np.median(before)),
        median_after_px=float(np.median(after)),
    )
    if not given.rms_after_px < min((1 - LEAST_GAIN) * given.rms_before_px, given.rms_before_px - LEAST_GAIN_PX):
        return replace(given, reason="held-out points do not fit clearly better")
    seen = np.unique(used.point)
    scale = float(np.median(state.inverse_depth[seen] / points.inverse_depth[seen]))
    T = carried_onto(state.T_world_camera, T_world_camera, scale)
    return replace(given, T_world_camera=T, camera=state.camera, kept=True, focal_factor=state.camera.fx / camera.fx)


def _solved(
    match: Callable[..., Steps[Matches]], matches: Matches, start: State, chosen: NDArray[np.bool_]
) -> Steps[tuple[State, Matches]]:
    """Poses from the chosen points (P,), and their matches in the end.

    They are found anew from better poses until they lie about where they were expected.
    """
    points = matches.points
    prior = Prior(points, start.T_world_camera, start.camera, focal=False)
    state = start
    for left in reversed(range(MOST_ROUNDS)):
        used = matches.of_points(chosen)
        off_px = np.linalg.norm(Seen.of(used, state).residual_px, axis=1)
        state = solve(used, state, prior)
        if not left or np.median(off_px) < SETTLED_PX:
            break
        placed = replace(points, inverse_depth=state.inverse_depth)
        matches = yield from match(placed, T_world_camera=state.T_world_camera, camera=state.camera)
    return state, used


def photometric_residual(
    grays: Grays, T_world_camera: Array, camera: Intrinsics, depth: DepthOf, *, device: str = "cpu"
) -> Steps[Consistency]:
    """How far pictures disagree with poses (M, 4, 4), from a few keyframes spread over the clip; nothing is solved.

    Arguments and errors as for `adjust_poses`. Poses whose across_px is above INCONSISTENT_PX need adjusting.
    """
    _check(grays, T_world_camera, camera)
    chosen = np.unique(np.linspace(0, len(grays) - 1, min(CHECKED_KEYFRAMES, len(grays))).round().astype(int)).tolist()
    pictures = {i: Picture.of(grays[i]) for i in chosen}
    points = Points.joined([find_points(i, pictures[i], depth(i)) for i in chosen])
    pairs = _pairs(T_world_camera, camera, points, chosen, CHECKED_NEIGHBOURS)
    pictures |= {j: Picture.of(grays[j]) for _, others in pairs for j in others if j not in pictures}
    matches = yield from find_matches(pictures, points, pairs, T_world_camera, camera, choose_device(device))
    if not len(matches):
        return Consistency(float("nan"), float("nan"), 0, matches.tried)
    seen = Seen.of(matches, State(T_world_camera, camera, points.inverse_depth, points.median_depth))
    line, off = seen.by_inverse_depth, seen.residual_px  # (O, 2): an epipolar line is where depth moves a point
    line = line / np.maximum(np.linalg.norm(line, axis=1, keepdims=True), 1e-12)
    along = np.abs((line * off).sum(1))
    across = np.sqrt(np.maximum((off**2).sum(1) - along**2, 0))  # all of it where the camera only turned
    return Consistency(float(np.median(across)), float(np.median(along)), len(matches), matches.tried)


def carried_onto(T_world_camera: Array, target: Array, scale: float) -> Array:
    """Poses (M, 4, 4), `scale` times as large, turned and shifted as one to be nearest to `target` (M, 4, 4).

    The rotation is the one between the orientations, in the mean: unlike Umeyama's, it is determined for any path.
    """
    U, _, Vt = np.linalg.svd(np.einsum("nij,nkj->ik", target[:, :3, :3], T_world_camera[:, :3, :3]))
    R = U @ np.diag([1.0, 1.0, np.linalg.det(U @ Vt)]) @ Vt
    shift = target[:, :3, 3].mean(0) - scale * R @ T_world_camera[:, :3, 3].mean(0)
    return Similarity(scale, R, shift).apply_to_poses(T_world_camera)


def rms(residual_px: Array) -> float:
    """Root mean square of the smallest residuals."""
    smallest = np.sort(residual_px)[: int(np.ceil(TRIMMED * len(residual_px)))]
    return float(np.sqrt(np.mean(smallest**2)))


def _pairs(
    T: Array, camera: Intrinsics, points: Points, anchors: Sequence[int], count: int
) -> list[tuple[int, list[int]]]:
    """Each anchor that has points, with the neighbours they are sought in."""
    own = {i: points.inverse_depth[points.frame == i] for i in anchors}
    return [(i, neighbours(T, camera, float(1 / np.median(o)), i, count)) for i, o in own.items() if len(o)]


def _check(grays: Grays, T_world_camera: Array, camera: Intrinsics) -> None:
    if T_world_camera.shape != (len(grays), 4, 4):
        raise InputError(f"{len(grays)} pictures need as many poses (M, 4, 4), got {T_world_camera.shape}")
    for gray in grays:
        if gray.shape != (camera.height, camera.width):
            raise InputError(f"pictures are {gray.shape}, the camera is of {(camera.height, camera.width)}: scale it")
