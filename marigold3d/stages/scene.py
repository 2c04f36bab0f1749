"""Fusion, and the files a run leaves for people."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..atomic import atomic_path, writable_folder
from ..exclusions import Exclusion, without
from ..export.depth_maps import DepthEncoding, write_depth_png, write_encoding, write_sigma_png
from ..export.ply import write_ply
from ..export.trajectories import write_tum
from ..fusion.fuse import FAR_RATIO, FusionInput, FusionReport, fuse, median_depth
from ..multiview.consistency import View
from ..progress import Progress, Steps
from ..scan import Scan
from ..types import PointCloud, Trajectory
from .job import Cameras, DepthStore, Job


def fusion_views(scan: Scan, cameras: Cameras, store: DepthStore) -> FusionInput:
    """The views to fuse: keyframes with a pose of their own; of a static camera the first frame only."""
    rows = cameras.keyframes if cameras.is_moving else cameras.keyframes[:1]
    return FusionInput(
        rows, scan.indices[rows], cameras.T_world_camera[rows], store.get, cameras.intrinsics, cameras.units
    )


def fuse_cloud(
    job: Job, scan: Scan, cameras: Cameras, store: DepthStore, exclusions: Sequence[Exclusion] = ()
) -> Steps[PointCloud]:
    """One cloud of all keyframes, without what a person has excluded."""
    position_of = {int(scan.indices[p]): p for p in np.flatnonzero(cameras.posed).tolist()}

    def seen(index: int) -> View | None:
        p = position_of.get(index)
        return None if p is None else View(store.get(p), cameras.T_world_camera[p])

    views = without(fusion_views(scan, cameras, store), exclusions, seen)
    row_of = {p: r for r, p in enumerate(views.positions.tolist())}
    frames = job.video.frames_at(row_of, max_side=job.config.video.max_side)
    cloud, report = yield from fuse(views, ((row_of[p], rgb) for p, rgb in frames), job.config.fusion)
    fusion: FusionReport = report
    job.report["fusion"] = fusion.as_dict()
    return cloud


def write_products(job: Job, scan: Scan, cameras: Cameras, store: DepthStore, cloud: PointCloud | None) -> Steps[None]:
    """camera.json, trajectory.txt, depth/, sigma/ and cloud.ply; they replace older ones when all are written."""
    fresh = job.run.path / ".products.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        yield from _write_products(fresh, job, scan, cameras, store, cloud)
        for folder in ("depth", "sigma"):
            shutil.rmtree(job.run.path / folder, ignore_errors=True)
        for name in ("cloud.ply", "mesh.ply", "trajectory.txt"):  # a run without them keeps none of the run it replaces
            (job.run.path / name).unlink(missing_ok=True)
        for product in fresh.iterdir():
            product.replace(job.run.path / product.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_products(
    path: Path, job: Job, scan: Scan, cameras: Cameras, store: DepthStore, cloud: PointCloud | None
) -> Steps[None]:
    posed = np.flatnonzero(cameras.posed)
    median = median_depth(fusion_views(scan, cameras, store))
    encoding = DepthEncoding(FAR_RATIO * 4 * median / 65535, 0.0, cameras.units)
    of_sigma = DepthEncoding.for_sigma(median, cameras.units)
    for folder in ("depth", "sigma"):
        writable_folder(path / folder)
    write_encoding(path / "depth" / "encoding.json", encoding)
    write_encoding(path / "sigma" / "encoding.json", of_sigma, "sigma")
    for done, position in enumerate(posed.tolist()):
        name, depth = f"{scan.indices[position]:06d}.png", store.get(position)
        write_depth_png(path / "depth" / name, depth, encoding)
        write_sigma_png(path / "sigma" / name, depth, of_sigma)
        yield Progress("write", done + 1, len(posed))
    source = cameras.intrinsics.scaled_to(job.video.info.width, job.video.info.height)
    with atomic_path(path / "camera.json") as temporary:
        entry = {**cameras.intrinsics.as_dict(), "source_frames": source.as_dict(), "units": cameras.units}
        temporary.write_text(json.dumps(entry, indent=2) + "\n")
    if job.config.poses.source != "none":
        trajectory = Trajectory(scan.timestamps_s[posed], cameras.T_world_camera[posed])
        write_tum(path / "trajectory.txt", trajectory, cameras.units)
    if cloud is not None:
        write_ply(path / "cloud.ply", cloud)
