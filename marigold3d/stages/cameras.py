"""Intrinsics and poses: what the user or the photos say, else structure from motion, else a stated assumption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..config import CameraConfig, RunConfig
from ..errors import GeometryError, UsageError
from ..poses.camera_files import fitted, read_camera, read_lens
from ..poses.files import read_pose_lens, read_records
from ..poses.matching import ClipFrames
from ..poses.sparse import SparseModel
from ..progress import Steps
from ..scan import Scan
from ..types import Intrinsics, Units
from ..video import VideoSource
from .job import Cameras, Job

ASSUMED_FOV_DEG = 62.0  # about a phone's main camera; used, with a warning, when nothing is known


def with_lens(config: RunConfig) -> RunConfig:
    """The settings with the lens that frames must be undistorted from, where the camera's or the poses' file states it.

    It becomes one of the run's settings, so that whoever opens the clip again sees the same frames.
    """
    if config.camera.file is not None:
        lens = read_lens(config.camera.file)
    elif config.camera == CameraConfig() and config.poses.source == "file" and config.poses.file is not None:
        lens = read_pose_lens(config.poses.file)
    else:
        return config
    return config if lens is None else replace(config, video=replace(config.video, lens=str(lens)))


def known_camera(config: CameraConfig, video: VideoSource, size: tuple[int, int]) -> tuple[Intrinsics, str] | None:
    """The camera at the depth maps' `size` as the user or the photos state it, and who did; None when nobody did."""
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
    """Intrinsics and poses: from SfM, from a file, or one pose for a camera that stood still.

    Without poses ("none", or "odometry", which finds them later) that one pose stands in, and only optical flow ties
    the frames.
    """
    known = known_camera(job.config.camera, job.video, scan.image_size)
    source = job.config.poses.source
    if source in ("static", "none", "odometry"):
        cameras = _static(job, scan, known)
    elif source == "file":
        cameras = yield from _from_file(job, scan, known)
    else:
        cameras = yield from _from_sfm(job, scan, known)
    left_out = int((~cameras.posed).sum())
    if left_out:
        job.warn(f"{left_out} of {len(scan)} frames have no safe camera pose and are left out")
    K = cameras.intrinsics
    focal_sigma_px = np.nan if cameras.model is None else cameras.model.focal_sigma_px
    job.report["cameras"] = {
        "poses": source,
        "intrinsics": known[1] if known else job.report.pop("intrinsics_source", "estimated by structure from motion"),
        "focal_px": round(K.fx, 3),
        "focal_sigma_px": round(focal_sigma_px, 3) if np.isfinite(focal_sigma_px) else None,
        "fov_x_deg": round(K.fov_x_deg, 3),
        "undistorted_from": job.config.video.lens,
        "keyframes": len(scan.keyframes),
        "keyframes_registered": len(cameras.keyframes),
        "frames_posed": int(cameras.posed.sum()),
        "frames": len(scan),
        "points": 0 if cameras.model is None else len(cameras.model.points),
    }
    return cameras


def _assumed(job: Job, scan: Scan) -> Intrinsics:
    job.warn(
        f"nothing is known of the camera: a field of view of {ASSUMED_FOV_DEG:.0f} degrees is assumed; --fov, "
        "--focal-px or --intrinsics would make the shapes right"
    )
    job.report["intrinsics_source"] = "assumed"
    return Intrinsics.from_fov(ASSUMED_FOV_DEG, *scan.image_size)


def _static(job: Job, scan: Scan, known: tuple[Intrinsics, str] | None) -> Cameras:
    camera = known[0] if known else _assumed(job, scan)
    everywhere = np.ones(len(scan), bool)
    return Cameras(camera, everywhere, np.tile(np.eye(4), (len(scan), 1, 1)), None, scan.keyframes, "arbitrary", False)


def _from_sfm(job: Job, scan: Scan, known: tuple[Intrinsics, str] | None) -> Steps[Cameras]:
    from ..poses.jumps import without_jumps
    from ..poses.registration import register_frames
    from ..poses.sfm import reconstruct_sparse

    model = yield from reconstruct_sparse(
        job.video, scan.keyframes, known[0] if known else None, scan.image_size, job.run.cache / "sfm"
    )
    if len(model.other_models):
        job.warn(
            f"structure from motion found {1 + len(model.other_models)} pieces that do not hold together, of "
            f"{', '.join(map(str, (len(model.frames), *model.other_models.tolist())))} keyframes: the largest is kept, "
            "and of the others what shows the same"
        )
    believable = without_jumps(model.T_world_camera[:, :3, 3], scan.timestamps_s[model.frames])
    model = model.of_frames(believable).scaled(1 / _typical_depth(model))
    posed, T = yield from register_frames(job.video, model, scan.timestamps_s)
    return Cameras(model.camera, posed, T, model, model.frames, "arbitrary")


def _typical_depth(model: SparseModel) -> float:
    """Median depth of the points in the keyframes: the unit of a scene of unknown size."""
    to_points = model.points[model.seen_point] - model.T_world_camera[model.seen_frame, :3, 3]
    return float(np.median(np.einsum("oi,oi->o", to_points, model.T_world_camera[model.seen_frame, :3, 2])))


def _from_file(job: Job, scan: Scan, known: tuple[Intrinsics, str] | None) -> Steps[Cameras]:
    from ..poses.reprojection import check_reading
    from ..poses.sfm import reconstruct_sparse, triangulate

    file = job.config.poses.file
    if file is None:
        raise UsageError("poses from a file need the file: --poses FILE")
    names = job.video.names
    chosen = None if names is None else tuple(names[i] for i in scan.indices)
    records = read_records(file)
    told = records.told(job.config.poses.convention)
    found = told.of(ClipFrames(scan.timestamps_s, scan.indices, job.video.info.frame_count, chosen))
    camera = known[0] if known else None
    if camera is None and found.intrinsics is not None:
        camera = fitted(file, found.intrinsics, job.video.info.width, job.video.info.height).scaled_to(*scan.image_size)
        job.report["intrinsics_source"] = str(file)
    stated = camera is not None
    if camera is None:
        try:
            sfm = yield from reconstruct_sparse(job.video, scan.keyframes, None, scan.image_size, job.run.cache / "sfm")
            camera = sfm.camera
        except GeometryError:
            camera = _assumed(job, scan)
    T = np.tile(np.eye(4), (len(scan), 1, 1))
    T[found.has_pose] = found.T_world_camera
    keys = scan.keyframes[found.has_pose[scan.keyframes]]
    yield from check_reading(
        job.video, keys, T[keys], camera, told.convention, file, standard=records.convention, camera_stated=stated
    )
    model = yield from triangulate(job.video, keys, T[keys], camera, scan.image_size, job.run.cache / "sfm")
    units: Units = "m" if job.config.poses.metric else "arbitrary"
    return Cameras(camera, found.has_pose, T, model, keys, units)
