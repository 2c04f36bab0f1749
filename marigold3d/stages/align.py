"""From relative to scene-unit depth: known depths are read and brought to one scale, then all frames are aligned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..align import fit_frame
from ..align.clip import AlignmentReport, align_clip
from ..align.flow import FlowBetween
from ..align.sources import CueSource
from ..config import RunConfig
from ..cues import (
    ClipFrames,
    ControlPoints,
    CountedSource,
    MetricScale,
    georeference,
    metric_scale,
    parse_measure,
    read_cues,
    require_one_frame,
    scale_from_measures,
)
from ..cues.read import split_spec
from ..cues.world_points import WorldPoints
from ..depth import DepthEstimator
from ..errors import GeometryError, InputError, UsageError
from ..flow import ClipFlow, thumbnails_steps
from ..lengths import length_warnings, lengths_report, report_in_metres
from ..progress import Steps
from ..scan import Scan
from ..types import Array, RelativeDepth, SparseCues, Units
from .guide import guide_keyframes
from .job import Cameras, DepthStore, Job

SCALE_FRAMES = 60  # frames that say how cues in metres compare with the poses' units
LEAST_POINTS = 20  # of structure from motion a frame needs to say so
UNKNOWN_POSES = ("none", "odometry")  # when depth is aligned: optical flow ties the frames instead
DISAGREEMENT = 0.05  # of the frames about the scale, or of metric poses with metric cues, worth a warning


def check_known(config: RunConfig) -> None:
    """Errors in what is known that can be seen before the work: files that are not there, lengths of no known form."""
    for spec in config.align.cues:
        if not split_spec(spec)[0].exists():
            raise InputError(f"--cues {spec}: there is no such file or folder")
    for text in config.align.measures:
        measure = parse_measure(text)
        if config.poses.source == "none":
            require_one_frame(measure)


def clip_frames(job: Job, scan: Scan, cameras: Cameras) -> ClipFrames:
    """What files of cues are matched to."""
    info, names = job.video.info, job.video.names
    return ClipFrames(
        scan.indices,
        scan.timestamps_s,
        (info.width, info.height),
        cameras.intrinsics,
        None if names is None else [names[i] for i in scan.indices],
        info.frame_count,
    )


def align_depth(
    job: Job,
    scan: Scan,
    cameras: Cameras,
    relative: Callable[[int], RelativeDepth],
    estimator: DepthEstimator,
) -> Steps[tuple[Cameras, DepthStore]]:
    """Scene-unit depth of every posed frame, and the cameras, which cues in metres have rescaled."""
    clip = clip_frames(job, scan, cameras)
    cues = [_read(job, spec, clip) for spec in job.config.align.cues]
    cameras, placed = _one_scale(job, cameras, relative, cues)
    sources: list[CueSource] = [*([] if cameras.model is None else [cameras.model]), *placed]
    if job.config.align.guide:
        relative, guided = yield from guide_keyframes(job, cameras, relative, sources, estimator)
        sources.append(guided)
    flow: FlowBetween | None = None
    if job.config.poses.source in UNKNOWN_POSES and not cameras.is_moving:
        flow = ClipFlow((yield from thumbnails_steps(job.video)))
    store = DepthStore.open(job.run, "aligned", scan)
    report: AlignmentReport = yield from align_clip(
        relative,
        store.put,
        np.flatnonzero(cameras.posed),
        sources,
        job.config.align,
        camera=cameras.intrinsics,
        T_world_camera=None if flow is not None else cameras.T_world_camera,
        flow=flow,
        cuts=() if cameras.is_moving else scan.cuts.tolist(),
    )
    job.report["alignment"] = {**report.as_dict(), "units": cameras.units, **job.report.pop("scale", {})}
    _warn(job, report)
    return cameras, store


def scale_to_lengths(job: Job, scan: Scan, cameras: Cameras, depth: DepthStore) -> tuple[Cameras, DepthStore]:
    """The scene at the scale that known lengths give it; as it is when none is known."""
    measures = job.config.align.measures
    if not measures:
        return cameras, depth
    clip = clip_frames(job, scan, cameras)
    T_world_camera = None if job.config.poses.source == "none" else cameras.T_world_camera
    found = scale_from_measures([parse_measure(m, clip) for m in measures], depth.get, clip, T_world_camera)
    job.report.update(report_in_metres(job.report, found.factor))
    job.report["lengths"] = lengths_report(found, cameras.units)
    for line in length_warnings(found, cameras.units):
        job.warn(line)
    return cameras.in_metres(found.factor), depth.scaled(found.factor)


def _read(job: Job, spec: str, clip: ClipFrames) -> CountedSource:
    config = job.config.align
    source = read_cues(spec, clip, sigma=config.cue_sigma, units=config.cue_units)
    if source.tally.dropped:
        job.warn(f"{spec}: {source.tally}")
    return source


# -- one scale for poses and cues -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Scaled:
    """A source in other units."""

    source: CueSource
    factor: float
    units: Units

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def count(self) -> int:
        return self.source.count

    @property
    def of_single_frames(self) -> bool:
        return self.source.of_single_frames

    def cues(self, position: int, T_world_camera: Array) -> tuple[SparseCues, NDArray[np.int64]]:
        cues, ids = self.source.cues(position, T_world_camera)
        sigma = None if cues.sigma is None else cues.sigma * self.factor
        return replace(cues, depth=cues.depth * self.factor, sigma=sigma), ids


def _one_scale(
    job: Job, cameras: Cameras, relative: Callable[[int], RelativeDepth], cues: Sequence[CueSource]
) -> tuple[Cameras, list[CueSource]]:
    """Cameras in metres when a cue in metres says what they are, and all cues in the cameras' units."""
    placed: list[CueSource] = []
    for source in cues:
        if isinstance(source, ControlPoints):
            cameras, here = _georeferenced(job, cameras, source)
            placed.append(here)
    others = [s for s in cues if not isinstance(s, ControlPoints)]
    for source in sorted(others, key=lambda s: s.units != "m"):  # metres first: the others follow them
        if isinstance(source, WorldPoints) and cameras.units != "m":
            raise UsageError(
                f"{source.name}: points x y z lie in the frame of the camera poses, in metres; give those poses too, "
                "with --poses FILE --metric-poses"
            )
        if _still(cameras):
            cameras = replace(cameras, units="m") if source.units == "m" else cameras
            placed.append(source)
            continue
        scale = _compared(cameras, relative, source)
        if source.units != "m" or cameras.units == "m":
            _compare(job, scale, source)
            placed.append(source if source.units == "m" else _Scaled(source, 1 / scale.factor, cameras.units))
            continue
        job.report["scale"] = {"scale_factor": scale.factor, "scale_sigma": scale.sigma, "scale_from": source.name}
        _compare(job, scale, source)
        cameras = cameras.in_metres(scale.factor)
        placed.append(source)
    return cameras, placed


def _still(cameras: Cameras) -> bool:
    """Whether the poses have no scale of their own, so that cues set it freely."""
    return not cameras.is_moving


def _compared(cameras: Cameras, relative: Callable[[int], RelativeDepth], source: CueSource) -> MetricScale:
    """The factor from the cameras' units to the source's, through depth aligned to the cameras' own points."""
    pairs = []
    posed = np.flatnonzero(cameras.posed)
    with_cues = [p for p in posed.tolist() if len(source.cues(p, cameras.T_world_camera[p])[0])]
    for position in with_cues[:: max(1, len(with_cues) // SCALE_FRAMES)]:
        T = cameras.T_world_camera[position]
        points = SparseCues.empty() if cameras.model is None else cameras.model.cues(position, T)[0]
        if len(points) < LEAST_POINTS:
            continue
        cues, map_ = source.cues(position, T)[0], relative(position)
        try:
            scene = fit_frame(map_, points).depth_at(map_, cues.uv)
        except GeometryError:
            continue
        pairs.append((cues.depth, scene))
    if not pairs:
        raise GeometryError(
            f"{source.name}: no frame with known depths has {LEAST_POINTS} points of structure from motion, so the "
            "scale of the camera path stays open; give known depths of more frames"
        )
    return metric_scale(pairs)


def _compare(job: Job, scale: MetricScale, source: CueSource) -> None:
    if scale.spread > DISAGREEMENT:
        job.warn(f"{source.name}: frames disagree by {scale.spread:.0%} about the scale")


def _georeferenced(job: Job, cameras: Cameras, points: ControlPoints) -> tuple[Cameras, ControlPoints]:
    found = georeference(points, cameras.T_world_camera, cameras.intrinsics, posed=cameras.posed)
    for name, reason in found.rejected.items():
        job.warn(f"control point {name} is left out: {reason}")
    T = found.of_scaled_world().T_survey_world
    job.report["georeference"] = {
        "scale": found.scale,
        "scale_sigma": found.scale_sigma,
        "points": found.n,
        "rms_m": found.rms_m,
        "residuals_m": dict(found.residuals_m),
        "rejected": dict(found.rejected),
        "T_survey_scene": None if T is None else T.as_matrix().tolist(),
        "origin_lla": points.origin_lla,
    }
    return cameras.in_metres(found.scale), found.of_scaled_world().as_cues(points)


def _warn(job: Job, report: AlignmentReport) -> None:
    if report.not_aligned:
        job.warn(f"{report.not_aligned} frames share too little with their neighbours to be aligned and are left empty")
    if report.aligned.count and report.aligned.relative / report.aligned.count > 0.3:
        job.warn("held-out points disagree with the aligned depth by more than 30 %: do not measure in this scene")
    for name, source in report.sources.items():
        if source.used and source.rejected > 0.3 * source.used:
            job.warn(f"{name}: {source.rejected:,} of {source.used:,} cues contradict the rest and are left out")
        if not source.used:
            job.warn(f"{name}: none of its cues meets the depth of a posed frame")
    segments = report.alignment.segments
    if segments > 1:
        job.warn(f"the clip has {segments} scenes; each was aligned apart")
