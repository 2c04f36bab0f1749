"""Intrinsics and poses: what the user or the photos say, else structure from motion, else a stated assumption."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..config import CameraConfig
from ..errors import GeometryError, UsageError
from ..poses.camera_files import read_camera
from ..poses.files import read_poses
from ..poses.sparse import SparseModel, complete_poses
from ..progress import Steps
from ..scan import Scan
from ..types import Intrinsics, Units
from ..video import VideoSource
from .job import Cameras, Job

ASSUMED_FOV_DEG = 62.0  # about a phone's main camera; used, with a warning, when nothing is known


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
    from ..poses.sfm import reconstruct_sparse

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
    from ..poses.sfm import reconstruct_sparse, triangulate

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
