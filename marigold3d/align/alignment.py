"""The joint alignment of a clip: `solve_clip` takes relative depth, cues and camera poses (or optical flow), and gives
every frame's scale, shift and log-scale field, with covariances and a verdict on what was determined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..errors import GeometryError, UsageError
from ..progress import Steps
from ..progress import run as drive
from ..rigid import inverse
from ..types import Array, DepthMap, Intrinsics, RelativeDepth, SparseCues
from .affine import FAR_FACTOR, AffineFit
from .clip_samples import NO_CUES, ClipSamples, Maps, cue_rows, read_clip
from .field import ScaleField
from .flow import FlowBetween
from .frame import FrameAlignment
from .grid import Float32, SampleGrid, ValueRange, log_depth
from .joint import LEAST_SAMPLES, JointSettings, Link, Stretch, cue_residuals
from .links import Rays, Residuals, Surface, by_flow, by_pose
from .robust import mad
from .sharpen import sharpened
from .solve import Solution, assumed, scale_from_parallax, scaled, solve_stretch, start_values, typical_y

CORRELATED = {"depth": 9.0, "metric": 9.0, "disparity": 9.0, "log_depth": 16.0}
"""Variance of scale and shift over what the normal equations say, by measurement: a network's errors are smooth."""

LEAST_CUES = 5  # agreeing cues a frame needs to start from its own fit
FLOWS_KEPT = 2**14  # of 40 kB each; those of longer clips are found again in every round


@dataclass(frozen=True, eq=False)
class Flicker:
    """How much depth jumps from each frame to the next (T-1,), as log ratios; NaN where nothing is linked."""

    before: Array  # each frame aligned on its own
    after: Array

    def as_dict(self) -> dict[str, object]:
        return {
            "before": _mean(self.before),
            "after": _mean(self.after),
            "series_before": _for_json(self.before),
            "series_after": _for_json(self.after),
        }


@dataclass(frozen=True, eq=False)
class Alignment:
    """A clip's alignment: one entry a frame, None for a frame that nothing ties to the scene or that has no depth.

    segment (T,): frames of one number share a scale; those of different ones do not, unless cues gave it. cues,
    rejected (T,): cues a frame has, and those of them that disagree. scaled_by_cues: they gave the scale of every
    segment. alone: for comparison, the affine fits of frames to their own cues.
    """

    frames: list[FrameAlignment | None]
    segment: NDArray[np.int64]
    cues: NDArray[np.int64]
    rejected: NDArray[np.int64]
    flicker: Flicker
    scaled_by_cues: bool
    alone: dict[int, FrameAlignment]

    def __len__(self) -> int:
        return len(self.frames)

    def apply(self, position: int, relative: RelativeDepth) -> DepthMap:
        """Depth of a frame in scene units; nowhere valid for a frame that is not aligned."""
        frame = self.frames[position]
        if frame is None:
            nowhere = np.zeros_like(relative.values)
            return DepthMap(nowhere, nowhere > 0, nowhere)
        return frame.apply(relative)

    @property
    def segments(self) -> int:
        """How many scenes were solved apart."""
        return int(self.segment.max()) + 1

    @property
    def verdicts(self) -> dict[str, int]:
        """How many frames were determined how."""
        return dict(Counter("not aligned" if f is None else f.fit.determined for f in self.frames))

    def as_dict(self) -> dict[str, object]:
        """The report: a row a frame, the domain that scale and shift act in, and flicker."""
        fits = [None if f is None else f.fit for f in self.frames]

        def column(of: Callable[[AffineFit], float]) -> list[float | None]:
            return [None if f is None else float(f"{of(f):.6g}") for f in fits]

        return {
            "frames": {
                "position": list(range(len(fits))),
                "scale": column(lambda f: f.scale),
                "scale_sigma": column(lambda f: np.sqrt(f.covariance[0, 0])),
                "shift": column(lambda f: f.shift),
                "shift_sigma": column(lambda f: np.sqrt(f.covariance[1, 1])),
                "determined": ["not aligned" if f is None else f.determined for f in fits],
                "cues": self.cues.tolist(),
                "rejected": self.rejected.tolist(),
                "segment": self.segment.tolist(),
            },
            "domain": next((fit.domain for fit in fits if fit is not None), None),
            "flicker": self.flicker.as_dict(),
        }


def solve_clip(
    relative: Maps,
    cues: Mapping[int, SparseCues] | None = None,
    *,
    camera: Intrinsics | None = None,
    T_world_camera: Array | None = None,
    flow: FlowBetween | None = None,
    cuts: Sequence[int] = (),
    settings: JointSettings = JointSettings(),  # noqa: B008 (frozen)
) -> Alignment:
    """Align all T frames of a clip at once.

    relative: the network's maps, all of one size and domain; any sequence, so that they may lie on disk. cues: known
    depths by position, in the units of the poses. What ties the frames together is either `camera` with T_world_camera
    (T, 4, 4) - equal poses for a camera that stood still - or `flow`; with neither, every frame has only its own cues
    and a weak tie to its neighbours. cuts: positions that start a new scene, which is solved apart.

    Without cues the result is consistent, and its scale is that of the poses if they have parallax, else arbitrary.
    Raises GeometryError when there is nothing to align or nothing to go by, UsageError for arguments at odds.
    """
    return drive(
        solve_clip_steps(
            relative, cues, camera=camera, T_world_camera=T_world_camera, flow=flow, cuts=cuts, settings=settings
        )
    )


def solve_clip_steps(
    relative: Maps,
    cues: Mapping[int, SparseCues] | None = None,
    *,
    camera: Intrinsics | None = None,
    T_world_camera: Array | None = None,
    flow: FlowBetween | None = None,
    cuts: Sequence[int] = (),
    settings: JointSettings = JointSettings(),  # noqa: B008 (frozen)
) -> Steps[Alignment]:
    """`solve_clip` as a generator of Progress."""
    if (T_world_camera is None) != (camera is None):
        raise UsageError("camera poses and intrinsics go together: give both, or neither")
    if T_world_camera is not None and len(T_world_camera) != len(relative):
        raise UsageError(f"there are {len(relative)} depth maps but {len(T_world_camera)} camera poses")
    stray = [i for i in [*(cues or {}), *cuts] if not 0 <= i < len(relative)]
    if stray:
        raise UsageError(
            f"cues or cuts are given for frame {stray[0]}, but the clip has frames 0 to {len(relative) - 1}"
        )
    clip = yield from read_clip(relative, cues or {}, settings)
    if not clip.fits and T_world_camera is None and flow is None:
        raise GeometryError("nothing to align by: there are no cues, no camera poses and no optical flow")
    link = _link(clip.grid, camera, T_world_camera, flow)
    whole = Stretch(clip.values, clip.rows, link, clip.grid, clip.domain, settings)
    starts = [0, *sorted(set(cuts) - {0}), len(relative)]
    parts = []
    for first, last in pairwise(starts):
        moving = _moving(T_world_camera, first, last)
        parts.append((yield from _solve_segment(clip, whole, first, last, moving, flow is not None)))
    return (yield from _alignment(clip, parts, starts))


def _link(grid: SampleGrid, camera: Intrinsics | None, T_world_camera: Array | None, flow: FlowBetween | None) -> Link:
    """How frames are tied: by poses, by optical flow, or not at all."""
    if camera is not None and T_world_camera is not None:
        rays = Rays(camera.scaled_to(grid.width, grid.height), grid)
        T_camera_world = [inverse(T) for T in T_world_camera]

        def posed(i: int, j: int, a: Surface, b: Surface, hidden: float, every: int) -> Residuals | None:
            return by_pose(a, b, T_camera_world[j] @ T_world_camera[i], rays, grid, hidden, every)

        return posed
    if flow is None:
        return lambda i, j, a, b, hidden, every: None

    @lru_cache(FLOWS_KEPT)
    def between(i: int, j: int) -> tuple[NDArray[np.float16], NDArray[np.bool_], float] | None:
        found = flow(i, j)
        if found is None:
            return None
        cells, seen = found.cells(grid)
        return cells.astype(np.float16), seen, found.spread  # a sixteenth of a cell: finer than flow is

    def flowing(i: int, j: int, a: Surface, b: Surface, hidden: float, every: int) -> Residuals | None:
        found = between(i, j)
        return None if found is None else by_flow(a, b, found[0].astype(np.float32), found[1], grid, every, found[2])

    return flowing


# -- solving and reading off ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Segment:
    """A solved stretch with what it started from: theta of each frame aligned on its own, and who is tied to whom."""

    stretch: Stretch
    solution: Solution
    alone: Array
    tied: NDArray[np.bool_]


def _solve_segment(
    clip: ClipSamples, whole: Stretch, first: int, last: int, moving: bool, flowing: bool
) -> Steps[_Segment]:
    own = {i - first: _theta_of(fit, clip.range) for i, fit in clip.fits.items() if first <= i < last}
    known = np.zeros((last - first, 2), bool)
    for i in own:
        fit = clip.fits[i + first]
        enough = int(fit.inliers.sum()) >= LEAST_CUES
        known[i] = True, enough and fit.determined == "scale and shift"
    stretch = whole.part(first, last)
    sure = {i: own[i] for i in np.flatnonzero(known[:, 1]).tolist()} or own
    start, tied = start_values(stretch, sure)
    if flowing and not own:  # flow knows nothing of depth that changes: a frame's own contrast is the better start
        start[:, :2] = [assumed(stretch, i) for i in range(len(start))]
    if moving and not own:
        start = scale_from_parallax(stretch, start)
        known[:] = True
    stretch = replace(stretch, y_unit=typical_y(stretch, start, _some(stretch)))
    alone = start.copy()
    for i in range(len(alone)):
        alone[i, :2] = own.get(i, assumed(stretch, i))
    solution = yield from solve_stretch(stretch, start, known)
    if not own and not moving:  # of arbitrary scale: a median depth of 1
        middle = float(
            np.nanmedian(np.concatenate([stretch.surface(i, solution.theta[i]).log_z for i in _some(stretch)]))
        )
        solution = replace(solution, theta=scaled(solution.theta, -middle, clip.domain))
    return _Segment(stretch, solution, alone, tied)


def _moving(T_world_camera: Array | None, first: int, last: int) -> bool:
    return T_world_camera is not None and bool(np.ptp(T_world_camera[first:last, :3, 3], axis=0).max() > 1e-9)


def _theta_of(fit: AffineFit, values: ValueRange) -> tuple[float, float]:
    """(log scale, shift) for normalised values."""
    return float(np.log(fit.scale * values.spread)), fit.shift + fit.scale * values.low


def _some(stretch: Stretch) -> range:
    """A hundred frames or so, evenly spread."""
    return range(0, len(stretch), max(1, len(stretch) // 100))


def _alignment(clip: ClipSamples, segments: list[_Segment], starts: list[int]) -> Steps[Alignment]:
    frames: list[FrameAlignment | None] = []
    before: list[Array] = []
    after: list[Array] = []
    for number, segment in enumerate(segments):
        first, T = starts[number], len(segment.stretch)
        coarse = [_frame(clip, segment, i, first + i) for i in range(T)]
        fine = yield from sharpened(coarse, _Seen(clip, coarse, first))
        frames += fine
        alone = (segment.stretch.surface(i, segment.alone[i]) for i in range(T))
        together = (
            segment.stretch.surface(i, t) if (f := fine[i]) is None else _surface(clip, f, first + i)
            for i, t in enumerate(segment.solution.theta)
        )
        before.append(np.append(flicker(segment.stretch, alone), np.nan))  # the last frame of a scene has no next
        after.append(np.append(flicker(segment.stretch, together), np.nan))
    count = len(frames)
    return Alignment(
        frames,
        np.repeat(np.arange(len(segments)), np.diff(starts)),
        np.array([len(clip.used.get(i, ())) for i in range(count)]),
        np.array([0 if (f := frames[i]) is None else f.fit.rejected for i in range(count)]),
        Flicker(np.concatenate(before)[:-1], np.concatenate(after)[:-1]),
        all(any(starts[k] <= i < starts[k + 1] for i in clip.fits) for k in range(len(segments))),
        {i: FrameAlignment(fit, None, fit.residual_sigma) for i, fit in clip.fits.items()},
    )


def _frame(clip: ClipSamples, segment: _Segment, i: int, position: int) -> FrameAlignment | None:
    """Frame i of a segment; None when it has no depth, or nothing ties it to frames whose depth is known."""
    stretch, theta = segment.stretch, segment.solution.theta[i]
    if not (segment.tied[i] or position in clip.fits) or not np.isfinite(stretch.values[i]).any():
        return None
    scale, shift, covariance = clip.range.original(
        float(np.exp(theta[0])),
        float(theta[1]),
        _of_scale(segment.solution.covariance[i], theta) * CORRELATED[clip.domain],
    )
    log_z = log_depth(stretch.values[i], theta, clip.domain)
    deepest = float(np.exp(np.nanpercentile(log_z, 98))) if np.isfinite(log_z).any() else np.inf
    far = FAR_FACTOR * deepest
    own = clip.fits.get(position)
    if own is None:
        inliers, spread = np.zeros(len(clip.cues.get(position, NO_CUES)), bool), segment.solution.spread / np.sqrt(2)
        fit = AffineFit(
            scale,
            shift,
            clip.domain,
            covariance,
            spread,
            inliers,
            "scale and shift",
            far,
            verdict="aligned to other frames",
        )
    else:
        inliers, spread = _agreeing(clip, segment, i, position)
        fit = replace(
            own,
            scale=scale,
            shift=shift,
            covariance=covariance,
            residual_sigma=spread,
            inliers=inliers,
            max_depth=max(own.max_depth, far),
            rejected=int((~inliers[clip.used[position]]).sum()),
        )
    return FrameAlignment(fit, _field(clip.grid, theta, segment.solution.node_sigma[i]), spread)


def _agreeing(clip: ClipSamples, segment: _Segment, i: int, position: int) -> tuple[NDArray[np.bool_], float]:
    """Which of a frame's cues (N,) agree with its alignment, and the spread of the log residuals."""
    v = clip.at_cues[position]
    rows = cue_rows(clip.range.normalised(v), clip.cues_on_depth(position), most=len(v))
    r, _, w = cue_residuals(segment.stretch, rows, segment.solution.theta[i])
    inliers = np.zeros(len(clip.cues[position]), bool)
    inliers[clip.used[position]] = w > 0
    return inliers, mad(r)


def _of_scale(covariance: Array, theta: Array) -> Array:
    """(2, 2) of (scale, shift) from that of (log scale, shift)."""
    turn = np.diag([np.exp(theta[0]), 1.0])
    return turn @ covariance @ turn


def _field(grid: SampleGrid, theta: Array, sigma: Array) -> ScaleField | None:
    if grid.unknowns == 2:
        return None
    return ScaleField(theta[2:].reshape(grid.nodes), sigma.reshape(grid.nodes).astype(float), grid.width, grid.height)


class _Seen(Mapping[int, tuple[Float32, SparseCues, NDArray[np.bool_]]]):
    """By frame of a segment, for frames with cues: the values (M,) of its map at those cues that lie on depth, these
    cues, and which of them agree. Read when asked for.
    """

    def __init__(self, clip: ClipSamples, frames: Sequence[FrameAlignment | None], first: int) -> None:
        self._clip, self._first = clip, first
        self._frames = {i: f for i, f in enumerate(frames) if f is not None and first + i in clip.fits}

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[int]:
        return iter(self._frames)

    def __getitem__(self, i: int) -> tuple[Float32, SparseCues, NDArray[np.bool_]]:
        clip, position = self._clip, self._first + i
        agree = self._frames[i].fit.inliers[clip.used[position]]
        return clip.at_cues[position], clip.cues_on_depth(position), agree


def _surface(clip: ClipSamples, frame: FrameAlignment, position: int) -> Surface:
    """A frame's log depth on the grid, its fine field included."""
    v = clip.values[position] * np.float32(clip.range.spread) + np.float32(clip.range.low)
    with np.errstate(invalid="ignore"):
        log_z = np.log(frame.fit.depth(v))
    if frame.field is not None:
        log_z = log_z + frame.field.at(clip.grid.uv).astype(np.float32)
    return Surface.of(log_z, clip.grid)


def flicker(stretch: Stretch, surfaces: Iterable[Surface]) -> Array:
    """(T-1,) how much depth jumps from each frame to the next; NaN where nothing links them.

    The root mean square over the regions of a 4 x 3 grid of the median log ratio of linked depths: it sees whatever
    moves large parts of the picture, scale, contrast and slow distortion alike, and no noise of single pixels.
    """
    grid = stretch.grid
    region = 4 * (np.arange(grid.rows) * 3 // grid.rows)[:, None] + np.arange(grid.columns) * 4 // grid.columns

    def one(i: int, here: Surface, following: Surface) -> float:
        found = stretch.link(i, i + 1, here, following, np.inf, 4)
        if found is None or len(found.residual) < LEAST_SAMPLES:
            return np.nan
        inside = region.ravel()[found.source]
        medians = [np.median(r) for k in range(12) if len(r := found.residual[inside == k]) >= LEAST_SAMPLES]
        return float(np.sqrt(np.mean(np.square(medians)))) if medians else np.nan

    return np.array([one(i, *pair) for i, pair in enumerate(pairwise(surfaces))])


def _for_json(series: Array) -> list[float | None]:
    """JSON has no NaN."""
    return [round(float(x), 5) if np.isfinite(x) else None for x in series]


def _mean(series: Array) -> float | None:
    good = series[np.isfinite(series)]
    return round(float(good.mean()), 6) if len(good) else None
