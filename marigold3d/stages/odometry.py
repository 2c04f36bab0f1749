"""Poses from aligned depth, for clips that structure from motion cannot hold together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import GeometryError
from ..poses.odometry import OdometryPath, RGBDView, rgbd_odometry
from ..poses.sfm import triangulate
from ..poses.sparse import poses_between
from ..progress import Steps
from ..scan import Scan
from .job import Cameras, DepthStore, Job

LEAST_POINTS = 60  # triangulated, for refinement to be worth a try
DEPTH_SAMPLES = 9


def walk(job: Job, scan: Scan, cameras: Cameras, depth: DepthStore) -> Steps[Cameras]:
    """The camera's path by RGB-D odometry over keyframes with depth; frames between are interpolated.

    What texture there is gets triangulated under these poses, so that refinement can match views. Raises GeometryError
    where neighbouring keyframes do not align.
    """
    keys = np.array([p for p in scan.keyframes.tolist() if depth.get(p).valid.any()], np.int64)
    if not len(keys):
        raise GeometryError("no keyframe has depth: the camera path cannot be found from it")
    K = cameras.intrinsics
    found: OdometryPath = yield from rgbd_odometry(_views(job, keys, depth), len(keys), K, _typical(keys, depth))
    keys = keys[found.first : found.first + len(found.T_world_camera)]
    posed, T = poses_between(keys, found.T_world_camera, scan.timestamps_s, K)
    try:
        model = yield from triangulate(job.video, keys, found.T_world_camera, K, scan.image_size, job.run.cache / "sfm")
    except GeometryError:
        model = None
    if model is not None and len(model.points) < LEAST_POINTS:
        model = None
    left_out = int((~posed).sum())
    if left_out:
        job.warn(f"{left_out} of {len(scan)} frames have no safe camera pose and are left out")
    job.report["cameras"] |= {
        "poses": "odometry",
        "keyframes_registered": len(keys),
        "frames_posed": int(posed.sum()),
        "points": 0 if model is None else len(model.points),
        "loops": found.loops,
        "loops_tried": found.tried,
        "breaks": found.breaks,
    }
    return replace(cameras, posed=posed, T_world_camera=T, model=model, keyframes=keys, is_moving=True)


def _views(job: Job, keys: NDArray[np.int64], depth: DepthStore) -> Iterator[RGBDView]:
    for position, rgb in job.video.frames_at(keys.tolist(), max_side=job.config.video.max_side):
        yield RGBDView(rgb, depth.get(position))


def _typical(keys: NDArray[np.int64], depth: DepthStore) -> float:
    """Median depth over a few keyframes."""
    picks = keys[np.unique(np.linspace(0, len(keys) - 1, DEPTH_SAMPLES).round().astype(int))]
    maps = [depth.get(p) for p in picks.tolist()]
    return float(np.median([np.median(m.depth[m.valid]) for m in maps]))
