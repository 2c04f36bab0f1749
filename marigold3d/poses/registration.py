"""Poses of the frames between keyframes: points of the sparse model are followed into them, and the pose solved (PnP).

Each frame is compared with the keyframe before it and the one after it, never with its neighbours, so that nothing
drifts, however long the gap: Lucas and Kanade's tracker (IJCAI 1981) starts where the last pose predicts the points.
The two poses are blended by how near either keyframe is, so that the path has no jumps at keyframes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..camera import on_image
from ..frames import VideoSource
from ..progress import Progress, Steps
from ..rigid import interpolate, inverse, transform
from ..types import Array, Intrinsics
from .sparse import MIN_SIN_ANGLE, SparseModel, complete_poses

MOST_POINTS = 400  # of a keyframe that are followed
LEAST_POINTS = 30  # that must be found again for a pose to be believed
FOUND_PX = 2.0  # distance from where the pose puts a point within which it is found
LEAST_SHARE = 0.5  # of the points followed that must be found, too
RETURNS_PX = 0.7  # a point followed back into the keyframe must come home
WINDOW, LEVELS = (21, 21), 4  # of the tracker
SEED = 0
LONGEST_GAP = 240  # frames held in memory at once; between keyframes farther apart poses are interpolated or missing

Gray = NDArray[np.uint8]


def register_frames(
    video: VideoSource, model: SparseModel, timestamps_s: Array
) -> Steps[tuple[NDArray[np.bool_], Array]]:
    """Poses of all T used frames: which have one (T,), and T_world_camera (T, 4, 4) (identity elsewhere).

    Registered keyframes stay as they are. A frame between two in which too few points are found again gets the pose
    that `sparse.complete_poses` interpolates, if that is safe; one before the first or after the last gets none.
    """
    posed, T = complete_poses(model, timestamps_s)
    spans = _spans(model, len(timestamps_s))
    done, total = 0, sum(len(s) for s in spans)
    for span, grays in _with_frames(video, spans, (model.camera.width, model.camera.height)):
        for position, pose in zip(span.inner, _placed(span, grays, model, timestamps_s), strict=True):
            if pose is not None:
                posed[position], T[position] = True, pose
        done += len(span)
        yield Progress("register", done, total)
    return posed, T


@dataclass(frozen=True)
class _Span:
    """Frames first ... last of which those at an end with a row are that keyframe of the model, the others wanted."""

    first: int
    last: int
    before: int | None
    after: int | None

    @property
    def inner(self) -> range:
        return range(self.first + (self.before is not None), self.last + (self.after is None))

    def __len__(self) -> int:
        return len(self.inner)


def _spans(model: SparseModel, count: int) -> list[_Span]:
    """What lies before, between and after the keyframes, in order."""
    frames = model.frames.tolist()
    head = _Span(max(0, frames[0] - LONGEST_GAP), frames[0], None, 0)
    tail = _Span(frames[-1], min(count - 1, frames[-1] + LONGEST_GAP), len(frames) - 1, None)
    gaps = [_Span(a, b, i, i + 1) for i, (a, b) in enumerate(pairwise(frames)) if b - a <= LONGEST_GAP]
    return [s for s in (head, *gaps, tail) if len(s)]


def _with_frames(
    video: VideoSource, spans: Sequence[_Span], size: tuple[int, int]
) -> Iterator[tuple[_Span, list[Gray]]]:
    """Each span with its grey frames, first to last."""
    waiting, grays = list(spans), list[Gray]()
    if not waiting:
        return
    for position, frame in enumerate(video.frames(max_side=max(size))):
        if position < waiting[0].first:
            continue
        grays.append(np.asarray(cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2GRAY), np.uint8))
        if position < waiting[0].last:
            continue
        yield waiting.pop(0), grays
        if not waiting:
            return
        grays = grays[-1:] if waiting[0].first == position else []


@dataclass(frozen=True, eq=False)
class _Found:
    """A frame's T_world_camera (4, 4), and how many points it puts where they are seen."""

    T_world_camera: Array
    points: int


def _placed(span: _Span, grays: list[Gray], model: SparseModel, times_s: Array) -> list[Array | None]:
    """T_world_camera (4, 4) of the span's inner frames, where one is found."""
    n = len(span)
    world = _visible(model, span.before if span.before is not None else span.after or 0)[0]
    ahead = _followed(grays, model, span.before)[:n] if span.before is not None else [None] * n
    back = _followed(grays[::-1], model, span.after)[:n][::-1] if span.after is not None else [None] * n
    found: list[Array | None] = []
    for a, b, position in zip(ahead, back, span.inner, strict=True):
        either = sorted((f for f in (a, b) if f is not None), key=lambda f: f.points)
        if a is not None and b is not None and _agree(a, b, world, model.camera):
            pair = np.stack([a.T_world_camera, b.T_world_camera])
            found.append(interpolate(times_s[[span.first, span.last]], pair, times_s[[position]])[0])
        else:
            found.append(either[-1].T_world_camera if either else None)
    return found


def _agree(a: _Found, b: _Found, world: Array, camera: Intrinsics) -> bool:
    """Whether both poses show points (N, 3) at about the same pixels."""
    at = [on_image(transform(inverse(f.T_world_camera), world), camera) for f in (a, b)]
    shift_px = np.linalg.norm(at[0][0] - at[1][0], axis=1)[at[0][1] & at[1][1]]
    return bool(len(shift_px) and np.median(shift_px) < FOUND_PX)


def _followed(grays: list[Gray], model: SparseModel, row: int) -> list[_Found | None]:
    """Poses of grays[1:] by the points that keyframe `row` of the model, which is grays[0], sees."""
    world, uv = _visible(model, row)
    poses: list[_Found | None] = []
    guess: Array = model.T_world_camera[row]
    for gray in grays[1:]:
        pose = _pose(grays[0], gray, world, uv, guess, model.camera) if len(uv) >= LEAST_POINTS else None
        poses.append(pose)
        guess = guess if pose is None else pose.T_world_camera
    return poses


def _visible(model: SparseModel, row: int) -> tuple[Array, NDArray[np.float32]]:
    """World points (N, 3) that keyframe `row` sees and knows the place of, and their pixels (N, 2) there."""
    ids = model.points_of([row])
    ids = ids[model.sin_angle[ids] > MIN_SIN_ANGLE]
    if len(ids) > MOST_POINTS:  # the ones seen under the widest angles
        ids = np.sort(ids[np.argsort(-model.sin_angle[ids], kind="stable")[:MOST_POINTS]])
    uv, inside = on_image(transform(inverse(model.T_world_camera[row]), model.points[ids]), model.camera)
    return model.points[ids][inside], uv[inside].astype(np.float32)


def _pose(
    key: Gray, gray: Gray, world: Array, uv: NDArray[np.float32], T_guess: Array, camera: Intrinsics
) -> _Found | None:
    """The pose of a frame, from points (N, 3) at pixels (N, 2) of a keyframe; None if few are found."""
    guess, _ = on_image(transform(inverse(T_guess), world), camera)
    half = np.float32(0.5)  # OpenCV's pixel centres are whole numbers
    start = np.where(np.isfinite(guess), guess, uv).astype(np.float32) - half
    origin = uv - half
    there, seen = _tracked(key, gray, origin, start)
    home, back = _tracked(gray, key, there, there - (start - origin))  # starting at home would prove nothing
    keep = seen & back & (np.linalg.norm(home - origin, axis=1) < RETURNS_PX)
    if keep.sum() < LEAST_POINTS:
        return None
    return _solve((there + half)[keep].astype(float), world[keep], T_guess, camera)


def _tracked(
    source: Gray, target: Gray, xy: NDArray[np.float32], guess: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where pixels (N, 2) of one picture are in another, from a guess (N, 2), and whether they were found (N,)."""
    track: Any = cv2.calcOpticalFlowPyrLK
    flags = cv2.OPTFLOW_USE_INITIAL_FLOW
    there, seen, _ = track(source, target, xy, guess.copy(), winSize=WINDOW, maxLevel=LEVELS - 1, flags=flags)
    return there, seen[:, 0] == 1


def _solve(uv: Array, world: Array, T_guess: Array, camera: Intrinsics) -> _Found | None:
    """The pose that puts points (N, 3) at pixels (N, 2), robustly; None if too few agree.

    From the guess, where all points count a little; where that leads astray, by RANSAC.
    """
    import pycolmap

    model = "PINHOLE" if camera.distortion is None else "OPENCV"
    numbers = [camera.fx, camera.fy, camera.cx, camera.cy, *(camera.distortion or ())]
    lens = pycolmap.Camera(model=model, width=camera.width, height=camera.height, params=numbers)
    guess = pycolmap.Rigid3d(inverse(T_guess)[:3])
    near = pycolmap.refine_absolute_pose(guess, uv, world, np.ones(len(uv), bool), lens)
    pose = _checked(near, uv, world, camera)
    if pose is not None:
        return pose
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.max_error, options.ransac.random_seed = FOUND_PX, SEED
    return _checked(pycolmap.estimate_and_refine_absolute_pose(uv, world, lens, options), uv, world, camera)


def _checked(found: dict[str, Any] | None, uv: Array, world: Array, camera: Intrinsics) -> _Found | None:
    """COLMAP's pose, if it puts enough of the points (N, 3) at their pixels (N, 2)."""
    if found is None:
        return None
    T_camera_world = np.eye(4)
    T_camera_world[:3] = found["cam_from_world"].matrix()
    at, _ = on_image(transform(T_camera_world, world), camera)
    with np.errstate(invalid="ignore"):
        agree = np.linalg.norm(at - uv, axis=1) < FOUND_PX
    if agree.sum() < LEAST_POINTS or agree.mean() < LEAST_SHARE:
        return None
    return _Found(inverse(T_camera_world), int(agree.sum()))
