"""From a clip to a scene: the stages in order, each timed, resumed where its result is still good."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from . import __version__
from .config import RunConfig
from .depth import load_estimator
from .disk import used_bytes
from .exclusions import edits, read_exclusions, tidy
from .poses.sparse import SparseModel
from .progress import Progress, Steps
from .progress import run as drive
from .scan import Scan
from .stages import (
    Cameras,
    Job,
    align_depth,
    check_known,
    digest,
    estimate_depth,
    find_cameras,
    fingerprint,
    fuse_cloud,
    fusion_views,
    look_at_clip,
    refine_depth,
    scale_to_lengths,
    walk,
    with_lens,
    write_products,
)
from .store import Run
from .types import Intrinsics
from .video import open_video

T = TypeVar("T")


def reconstruct(
    clip: str | Path,
    run_folder: str | Path,
    config: RunConfig = RunConfig(),  # noqa: B008 (frozen)
    *,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Run:
    """Turn a clip into aligned depth, a camera path and (with `config.fuse`) a cloud in `run_folder`.

    An interrupted run is continued by the same call. Raises the errors of `errors`, each with its remedy.
    """
    return drive(reconstruct_steps(clip, run_folder, config, overwrite=overwrite), on_progress)


def reconstruct_steps(
    clip: str | Path,
    run_folder: str | Path,
    config: RunConfig = RunConfig(),  # noqa: B008 (frozen)
    *,
    overwrite: bool = False,
) -> Steps[Run]:
    """`reconstruct` as a generator of Progress: close it to cancel, what is finished is kept."""
    with threadpool_limits(1, "blas"):  # the matrices are small: more threads would wait for each other
        return (yield from _stages(clip, run_folder, config, overwrite))


def _stages(clip: str | Path, run_folder: str | Path, config: RunConfig, overwrite: bool) -> Steps[Run]:
    """The stages in order; what an error leaves behind is decided by the run folder."""
    check_known(config)
    config = with_lens(config)
    video = open_video(clip, config.video)
    estimator = load_estimator(config.depth)
    run = Run.create(run_folder, str(Path(clip).absolute()), config.as_dict(), overwrite=overwrite)
    job = Job(video, run, config)
    clip_print = fingerprint(video.info.path)
    source = digest(__version__, clip_print, config.as_dict()["video"])
    try:
        scan = yield from _timed(job, "scan", look_at_clip(job))
        cameras = yield from _cameras(job, scan, digest(source, config.as_dict()["camera"], config.as_dict()["poses"]))
        key = digest(source, estimator.provenance())
        resume = run.begin_stage("depth", key)
        relative = yield from _timed(job, "depth", estimate_depth(job, scan, cameras.posed, estimator, resume))
        run.end_stage("depth")
        cameras, aligned = yield from _timed(job, "align", align_depth(job, scan, cameras, relative, estimator))
        if config.poses.source == "odometry":
            cameras = yield from _timed(job, "odometry", walk(job, scan, cameras, aligned))
            if cameras.model is not None:  # flow takes depth for constant along it; poses and points know better
                cameras, aligned = yield from _timed(job, "align", align_depth(job, scan, cameras, relative, estimator))
        cameras, depth = yield from _timed(
            job, "refine", refine_depth(job, scan, cameras, aligned, config.depth.device)
        )
        cameras, depth = scale_to_lengths(job, scan, cameras, depth)
        cloud, kept = None, _edits_of(job, clip_print)
        if config.fuse and config.poses.source != "none":
            cloud = yield from _timed(job, "fuse", fuse_cloud(job, scan, cameras, depth, read_exclusions(run, kept)))
        yield from _timed(job, "write", write_products(job, scan, cameras, depth, cloud))
    except BaseException:
        run.give_up()
        raise
    job.report["disk"]["used_mb"] = round(used_bytes(run.path) / 1e6, 1)
    run.update(
        status="finished",
        units=cameras.units,
        views=fusion_views(scan, cameras, depth).indices.tolist(),
        edits=kept,
        model=estimator.provenance(),
        versions=versions(),
        report=_report(job),
    )
    tidy(run)
    return run


def _edits_of(job: Job, clip_print: str) -> list[dict[str, Any]]:
    """The edits of the run that this one replaces, as far as they were painted on this clip."""
    before = edits(job.run)
    kept = [e for e in before if e["clip"] == clip_print]
    if dropped := len(before) - len(kept):
        job.warn(f"{dropped} edits of this run were painted on another clip and are dropped")
    return kept


def _cameras(job: Job, scan: Scan, key: str) -> Steps[Cameras]:
    """Cameras from the cache when nothing they depend on has changed."""
    run = job.run
    if run.stage_done("poses", key):
        arrays = run.load_arrays("cameras")
        entry = run.manifest["stages"]["poses"]["kept"]
        job.report["cameras"] = entry["report"]
        for line in entry["warnings"]:
            job.warn(line)
        model = SparseModel.from_arrays(run.load_arrays("points")) if entry["points"] else None
        return Cameras(
            Intrinsics(**entry["intrinsics"]),
            arrays["posed"],
            arrays["T"],
            model,
            arrays["keyframes"],
            entry["units"],
            entry["is_moving"],
        )
    run.begin_stage("poses", key)
    cameras = yield from _timed(job, "poses", find_cameras(job, scan))
    run.save_arrays("cameras", {"posed": cameras.posed, "T": cameras.T_world_camera, "keyframes": cameras.keyframes})
    if cameras.model is not None:
        run.save_arrays("points", cameras.model.as_arrays())
    run.end_stage(
        "poses",
        kept={
            "report": job.report["cameras"],
            "warnings": list(job.warnings),
            "points": cameras.model is not None,
            "intrinsics": cameras.intrinsics.__dict__,
            "units": cameras.units,
            "is_moving": cameras.is_moving,
        },
    )
    return cameras


def _timed(job: Job, stage: str, steps: Steps[T]) -> Steps[T]:
    """Run a stage and add its seconds to the manifest; time spent before an interruption counts."""
    began = time.monotonic()
    try:
        return (yield from steps)
    finally:
        job.run.add_seconds(stage, time.monotonic() - began)


def versions() -> dict[str, str]:
    """What the run was made with."""
    found = {"marigold3d": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in ("numpy", "scipy", "torch", "av", "pycolmap", "diffusers", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far; NaN where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _report(job: Job) -> dict[str, Any]:
    seconds = job.run.manifest.get("seconds", {})
    total = {"seconds": {**seconds, "total": round(float(np.sum(list(seconds.values()))), 3)}}
    return {**job.report, **total, "peak_memory_mb": round(peak_memory_mb(), 1), "warnings": job.warnings}
