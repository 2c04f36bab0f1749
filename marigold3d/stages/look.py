"""First look at the clip: can it become one scene at all?"""

from __future__ import annotations

from pathlib import Path

from ..disk import estimated_bytes, require_space
from ..errors import InputError
from ..progress import Steps
from ..scan import Scan, scan_clip, scenes
from .job import Job


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
    if len(scan.cuts) and not config.poses.allow_cuts and config.poses.source in ("sfm", "odometry"):
        raise InputError(_cuts_message(video.info.path, scan))
    if scan.black_share > 0:
        job.warn(f"{scan.black_share:.0%} of the frames are black")
    needed = estimated_bytes(len(scan), scan.image_size, len(scan.keyframes), refined=config.refine.enabled)
    require_space(job.run.path, needed)
    job.report["disk"] = {"estimated_mb": round(needed / 1e6, 1)}
    return scan


def _cuts_message(path: Path, scan: Scan) -> str:
    spans = [(scan.timestamps_s[a], scan.timestamps_s[b]) for a, b in scenes(scan)]
    longest = max(spans, key=lambda s: s[1] - s[0])
    cuts = ", ".join(f"{scan.timestamps_s[c]:.2f}" for c in scan.cuts[:8])
    return (
        f"{path} holds {len(spans)} scenes (cuts at {cuts} s): reconstruct one at a time, the longest with "
        f"--start {longest[0]:.2f} --end {longest[1]:.2f}, or pass --allow-cuts if these are no cuts"
    )
