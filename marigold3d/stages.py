"""The stages of a run, each a generator of Progress: they join the modules that know the mathematics to the run folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .align.clip import AlignmentReport, align_clip
from .atomic import atomic_path, writable_folder
from .config import CameraConfig, RunConfig
from .depth import DepthEstimator
from .errors import GeometryError, InputError, UsageError
from .export.depth_maps import DepthEncoding, write_depth_png, write_encoding
from .export.ply import write_ply
from .export.trajectories import write_tum
from .fusion.fuse import FAR_RATIO, FusionInput, FusionReport, fuse, median_depth
from .multiview.refine import (
    DepthAccess,
    Keyframes,
    has_parallax,
    held_out_error,
    merge_keyframes,
    refine_between,
    sweep_keyframes,
    sweep_size,
)
from .poses.camera_files import read_camera
from .poses.files import read_poses
from .poses.sparse import SparseModel, complete_poses
from .progress import FramePreview, Progress, Steps
from .scan import Scan, scan_clip, scenes
from .store import FrameArray, Run
from .types import Array, DepthMap, Intrinsics, PointCloud, RelativeDepth, Trajectory, Units
from .video import VideoSource

T = TypeVar("T")

ASSUMED_FOV_DEG = (
    62.0  # about a phone's main camera held upright to sideways; used, with a warning, when nothing is known
)


@dataclass(eq=False)
class Job:
    """What the stages of one run share. `warnings` are lines for the user, `report` what run.json will say."""

    video: VideoSource
    run: Run
    config: RunConfig
    report: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def warn(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings.append(line)


@dataclass(frozen=True, eq=False)
class Cameras:
    """Intrinsics at the depth maps' size, poses of all T used frames where `posed` (T,), and the points behind them."""

    intrinsics: Intrinsics
    posed: NDArray[np.bool_]
    T_world_camera: Array
    model: SparseModel | None
    keyframes: NDArray[np.int64]  # positions with a pose of their own, not an interpolated one
    units: Units


def digest(*parts: Any) -> str:
    """Short hash of settings and results that a stage depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint(path: Path) -> str:
    """Hash that changes when a clip or folder of images does: names, sizes, and a file's first and last megabyte."""
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        return digest([(f.name, f.stat().st_size) for f in sorted(folder.iterdir()) if f.is_file()])
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(2**20)
        file.seek(max(0, size - 2**20))
        return digest(size, hashlib.sha256(head + file.read()).hexdigest())


# -- scan -------------------------------------------------------------------------------------------------------------


def look_at_clip(job: Job) -> Steps[Scan]:
    """First pass over the clip; errors for clips that cannot become one scene."""
    video, config = job.video, job.config
    scan = yield from scan_clip(video, config.video.max_side, config.poses)
    for line in video.warnings:
        job.warn(line)
    if len(scan) < 2:
        raise InputError(
            f"{video.info.path} has one frame: a scene takes a moving camera; for depth alone use `marigold3d depth`"
        )
    if len(scan.cuts) and not config.poses.allow_cuts and config.poses.source == "sfm":
        raise InputError(_cuts_message(video.info.path, scan))
    if scan.black_share > 0:
        job.warn(f"{scan.black_share:.0%} of the frames are black")
    return scan


def _cuts_message(path: Path, scan: Scan) -> str:
    spans = [(scan.timestamps_s[a], scan.timestamps_s[b]) for a, b in scenes(scan)]
    longest = max(spans, key=lambda s: s[1] - s[0])
    cuts = ", ".join(f"{scan.timestamps_s[c]:.2f}" for c in scan.cuts[:8])
    return (
        f"{path} holds {len(spans)} scenes (cuts at {cuts} s): reconstruct one at a time, the longest with --start {longest[0]:.2f} "
        f"--end {longest[1]:.2f}, or pass --allow-cuts if these are no cuts"
    )


# -- cameras ----------------------------------------------------------------------------------------------------------


def known_camera(config: CameraConfig, video: VideoSource, size: tuple[int, int]) -> tuple[Intrinsics, str] | None:
    """What the user or the photos say of the camera, at the depth maps' `size`, and who said it; None when nobody did."""
    w, h = video.info.width, video.info.height
    given: dict[str, Callable[[], Intrinsics]] = {}
    if config.fov_deg is not None:
        given["--fov"] = lambda: Intrinsics.from_fov(config.fov_deg, w, h)  # type: ignore[arg-type]
    if config.focal_px is not None:
        given["--focal-px"] = lambda: Intrinsics.from_focal(config.focal_px, w, h)  # type: ignore[arg-type]
    if config.focal_35mm is not None:
        given["--focal-35mm"] = lambda: Intrinsics.from_focal_35mm(config.focal_35mm, w, h)  # type: ignore[arg-type]
    if config.intrinsics is not None:
        given["--intrinsics"] = lambda: Intrinsics(*config.intrinsics, w, h)  # type: ignore[misc,call-arg]
    if config.file is not None:
        given[f"--intrinsics {config.file}"] = lambda: read_camera(config.file, w, h)  # type: ignore[arg-type]
    if len(given) > 1:
        raise UsageError(f"give only one of {' and '.join(given)}: they describe the same camera")
    if not given and video.info.exif_focal_35mm:
        given["EXIF"] = lambda: Intrinsics.from_focal_35mm(video.info.exif_focal_35mm, w, h)  # type: ignore[arg-type]
    for who, make in given.items():
        return make().scaled_to(*size), who
    return None


def find_cameras(job: Job, scan: Scan) -> Steps[Cameras]:
    """Intrinsics and poses: from SfM, from a file, or one pose for a camera that stood still."""
    known = known_camera(job.config.camera, job.video, scan.image_size)
    source = job.config.poses.source
    if source == "static":
        cameras = _static(job, scan, known)
    elif source == "file":
        cameras = yield from _from_file(job, scan, known)
    else:
        cameras = yield from _from_sfm(job, scan, known)
    left_out = int((~cameras.posed).sum())
    if left_out:
        job.warn(f"{left_out} of {len(scan)} frames have no safe camera pose and are left out")
    K = cameras.intrinsics
    job.report["cameras"] = {
        "poses": source,
        "intrinsics": known[1] if known else job.report.pop("intrinsics_source", "estimated by structure from motion"),
        "focal_px": round(K.fx, 3),
        "fov_x_deg": round(K.fov_x_deg, 3),
        "keyframes": len(scan.keyframes),
        "keyframes_registered": len(cameras.keyframes),
        "frames_posed": int(cameras.posed.sum()),
        "frames": len(scan),
        "points": 0 if cameras.model is None else len(cameras.model.points),
    }
    return cameras


def _assumed(job: Job, scan: Scan) -> Intrinsics:
    job.warn(
        f"nothing is known of the camera: a field of view of {ASSUMED_FOV_DEG:.0f} degrees is assumed; --fov, --focal-px or --intrinsics "
        "would make the shapes right"
    )
    job.report["intrinsics_source"] = "assumed"
    return Intrinsics.from_fov(ASSUMED_FOV_DEG, *scan.image_size)


def _static(job: Job, scan: Scan, known: tuple[Intrinsics, str] | None) -> Cameras:
    camera = known[0] if known else _assumed(job, scan)
    everywhere = np.ones(len(scan), bool)
    return Cameras(camera, everywhere, np.tile(np.eye(4), (len(scan), 1, 1)), None, scan.keyframes, "arbitrary")


def _from_sfm(job: Job, scan: Scan, known: tuple[Intrinsics, str] | None) -> Steps[Cameras]:
    from .poses.sfm import reconstruct_sparse

    model = yield from reconstruct_sparse(
        job.video, scan.keyframes, known[0] if known else None, scan.image_size, job.run.cache / "sfm"
    )
    model = model.scaled(1 / _typical_depth(model))
    posed, T = complete_poses(model, scan.timestamps_s)
    return Cameras(model.camera, posed, T, model, model.frames, "arbitrary")


def _typical_depth(model: SparseModel) -> float:
    """Median depth of the points in the keyframes: the unit of a scene of unknown size."""
    to_points = model.points[model.seen_point] - model.T_world_camera[model.seen_frame, :3, 3]
    return float(np.median(np.einsum("oi,oi->o", to_points, model.T_world_camera[model.seen_frame, :3, 2])))


def _from_file(job: Job, scan: Scan, known: tuple[Intrinsics, str] | None) -> Steps[Cameras]:
    from .poses.sfm import reconstruct_sparse, triangulate

    file = job.config.poses.file
    if file is None:
        raise UsageError("poses from a file need the file: --poses FILE")
    names = job.video.names
    found = read_poses(
        file,
        scan.timestamps_s,
        scan.indices,
        source_frame_count=job.video.info.frame_count,
        frame_names=None if names is None else [names[i] for i in scan.indices],
    )
    camera = known[0] if known else None
    if camera is None and found.intrinsics is not None:
        camera = found.intrinsics.scaled_to(*scan.image_size)
        job.report["intrinsics_source"] = str(file)
    if camera is None:
        try:
            sfm = yield from reconstruct_sparse(job.video, scan.keyframes, None, scan.image_size, job.run.cache / "sfm")
            camera = sfm.camera
        except GeometryError:
            camera = _assumed(job, scan)
    T = np.tile(np.eye(4), (len(scan), 1, 1))
    T[found.has_pose] = found.T_world_camera
    keys = scan.keyframes[found.has_pose[scan.keyframes]]
    model = yield from triangulate(job.video, keys, T[keys], camera, scan.image_size, job.run.cache / "sfm")
    units: Units = "m" if job.config.poses.metric else "arbitrary"
    return Cameras(camera, found.has_pose, T, model, keys, units)


# -- depth ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RelativeStore:
    """The network's output on disk, by position."""

    values: FrameArray
    uncertainty: FrameArray
    estimator: DepthEstimator

    def __call__(self, position: int) -> RelativeDepth:
        uncertainty = self.uncertainty[position] if position in self.uncertainty else None
        return RelativeDepth(self.values[position], self.estimator.domain, uncertainty)


def estimate_depth(
    job: Job, scan: Scan, posed: NDArray[np.bool_], estimator: DepthEstimator, resume: bool
) -> Steps[RelativeStore]:
    """Relative depth of every posed frame; frames that are on disk already are not estimated again."""
    w, h = scan.image_size
    shape = (len(scan), h, w)
    store = RelativeStore(
        job.run.frames_array("relative", shape, fresh=not resume),
        job.run.frames_array("relative_sigma", shape, fresh=not resume),
        estimator,
    )
    wanted = [p for p in np.flatnonzero(posed).tolist() if p not in store.values]
    total, done = int(posed.sum()), int(posed.sum()) - len(wanted)
    for positions, rgb in _batches(frames_at(job.video, wanted, job.config.video.max_side), job.config.depth.batch):
        for position, estimate in zip(positions, estimator.estimate(rgb), strict=True):
            if estimate.uncertainty is not None:
                store.uncertainty[position] = estimate.uncertainty
            store.values[position] = estimate.values  # last: its presence means that the frame is complete
            done += 1
            yield Progress("depth", done, total, FramePreview(position, estimate.values))
    return store


def frames_at(video: VideoSource, positions: list[int], max_side: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(position, rgb) of the wanted positions among the used frames, in order; one frame in memory at a time."""
    wanted = set(positions)
    last = max(wanted, default=-1)
    for position, frame in enumerate(video.frames(max_side=max_side)):
        if position in wanted:
            yield position, frame.rgb
        if position >= last:
            return


def _batches(
    frames: Iterator[tuple[int, NDArray[np.uint8]]], size: int
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    positions: list[int] = []
    images: list[NDArray[np.uint8]] = []
    for position, rgb in frames:
        positions.append(position)
        images.append(rgb)
        if len(positions) == size:
            yield positions, np.stack(images)
            positions, images = [], []
    if positions:
        yield positions, np.stack(images)


# -- alignment --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DepthStore:
    """Scene-unit depth with sigma on disk, by position; NaN is invalid."""

    depth: FrameArray
    sigma: FrameArray

    @classmethod
    def open(cls, run: Run, name: str, scan: Scan, size: tuple[int, int] | None = None) -> DepthStore:
        w, h = size or scan.image_size
        shape = (len(scan), h, w)
        return cls(run.frames_array(name, shape, fresh=True), run.frames_array(f"{name}_sigma", shape, fresh=True))

    def put(self, position: int, depth: DepthMap) -> None:
        sigma = 0.05 * depth.depth if depth.sigma is None else depth.sigma
        self.sigma[position] = sigma.astype(np.float32)
        self.depth[position] = np.where(depth.valid, depth.depth, np.nan).astype(np.float32)

    def get(self, position: int) -> DepthMap:
        z = self.depth[position]
        valid = np.isfinite(z)
        return DepthMap(np.where(valid, z, 0).astype(np.float32), valid, self.sigma[position])


def align_depth(job: Job, scan: Scan, cameras: Cameras, relative: RelativeStore) -> Steps[DepthStore]:
    """Scene-unit depth of every posed frame."""
    store = DepthStore.open(job.run, "aligned", scan)
    report: AlignmentReport = yield from align_clip(
        relative,
        store.put,
        store.get,
        cameras.posed,
        cameras.T_world_camera,
        cameras.intrinsics,
        cameras.model,
        job.config.align,
    )
    job.report["alignment"] = report.as_dict()
    if report.aligned.count and report.aligned.relative / report.aligned.count > 0.3:
        job.warn("held-out points disagree with the aligned depth by more than 30 %: do not measure in this scene")
    return store


# -- refinement -------------------------------------------------------------------------------------------------------


def refine_depth(job: Job, scan: Scan, cameras: Cameras, aligned: DepthStore, device: str) -> Steps[DepthStore]:
    """Depth sharpened by matching views; the aligned depth itself where that is off or the clip has no parallax."""
    config = job.config.refine
    if not config.enabled or cameras.model is None:
        return aligned
    views = fusion_views(scan, cameras, aligned)
    keys = Keyframes(views.positions, views.T_world_camera, cameras.intrinsics, median_depth(views))
    if not has_parallax(keys, config.neighbours):
        job.warn("refinement skipped: the keyframes have too little parallax to be matched")
        return aligned
    refined = DepthStore.open(job.run, "refined", scan)
    swept = DepthStore.open(job.run, "swept", scan, sweep_size(cameras.intrinsics, config.max_side))
    depths = DepthAccess(aligned.get, swept.get, swept.put, refined.put)
    images = (rgb for _, rgb in frames_at(job.video, keys.positions.tolist(), job.config.video.max_side))
    yield from sweep_keyframes(keys, images, depths, config, device)
    share = yield from merge_keyframes(keys, depths, config)
    between = np.setdiff1d(np.flatnonzero(cameras.posed), keys.positions)
    yield from refine_between(between, cameras.T_world_camera, keys, depths, refined.get)
    errors = held_out_error(keys, refined.get, cameras.model, job.config.align.held_out)
    job.report["refinement"] = {"share_from_views": round(share, 4), "held_out": errors}
    return refined


# -- fusion and products ----------------------------------------------------------------------------------------------


def fusion_views(scan: Scan, cameras: Cameras, store: DepthStore) -> FusionInput:
    """The views to fuse: keyframes with a pose of their own; of a static camera the first frame only."""
    rows = cameras.keyframes if cameras.model is not None else cameras.keyframes[:1]
    return FusionInput(
        rows, scan.indices[rows], cameras.T_world_camera[rows], store.get, cameras.intrinsics, cameras.units
    )


def fuse_cloud(job: Job, scan: Scan, cameras: Cameras, store: DepthStore) -> Steps[PointCloud]:
    """One cloud of all keyframes."""
    views = fusion_views(scan, cameras, store)
    row_of = {p: r for r, p in enumerate(views.positions.tolist())}
    frames = frames_at(job.video, list(row_of), job.config.video.max_side)
    cloud, report = yield from fuse(views, ((row_of[p], rgb) for p, rgb in frames), job.config.fusion)
    fusion: FusionReport = report
    job.report["fusion"] = fusion.as_dict()
    return cloud


def write_products(job: Job, scan: Scan, cameras: Cameras, store: DepthStore, cloud: PointCloud | None) -> Steps[None]:
    """camera.json, trajectory.txt, depth/ and cloud.ply. The depth folder is swapped in whole."""
    path, posed = job.run.path, np.flatnonzero(cameras.posed)
    far = FAR_RATIO * 4 * median_depth(replace(fusion_views(scan, cameras, store)))
    encoding = DepthEncoding(far / 65535, 0.0, cameras.units)
    fresh = path / ".depth.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    writable_folder(fresh)
    write_encoding(fresh / "encoding.json", encoding)
    for done, position in enumerate(posed.tolist()):
        write_depth_png(fresh / f"{scan.indices[position]:06d}.png", store.get(position), encoding)
        yield Progress("write", done + 1, len(posed))
    shutil.rmtree(path / "depth", ignore_errors=True)
    fresh.rename(path / "depth")
    source = cameras.intrinsics.scaled_to(job.video.info.width, job.video.info.height)
    with atomic_path(path / "camera.json") as temporary:
        entry = {**cameras.intrinsics.as_dict(), "source_frames": source.as_dict(), "units": cameras.units}
        temporary.write_text(json.dumps(entry, indent=2) + "\n")
    trajectory = Trajectory(scan.timestamps_s[posed], cameras.T_world_camera[posed])
    write_tum(path / "trajectory.txt", trajectory, cameras.units)
    if cloud is not None:
        write_ply(path / "cloud.ply", cloud)
    else:
        (path / "cloud.ply").unlink(missing_ok=True)  # one of a run that was replaced
