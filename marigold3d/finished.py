"""A finished run as what fusion takes: its depth maps and poses, its clip's colours, without what edits exclude."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .config import RunConfig
from .errors import InputError
from .exclusions import MAPS_KEPT, Exclusion, without
from .fusion.fuse import FusionInput
from .multiview.consistency import View
from .store import Run
from .video import VideoSource, open_video


def require_scene(run: Run) -> None:
    """InputError unless the run is finished and has a camera path."""
    if not run.finished:
        raise InputError(f"{run.path} is not finished: run `marigold3d video` again, which resumes it")
    if not (run.path / "trajectory.txt").is_file():
        raise InputError(f"{run.path} has no camera path, so there is no cloud to fuse: run again without --no-poses")


def fused_frames(run: Run) -> list[int]:
    """Source indices of the views that make the cloud. Runs of older versions do not say: all frames."""
    frames = run.frame_indices
    if "views" in run.manifest:
        views = set(run.manifest["views"])
        return [f for f in frames if f in views]
    static = run.manifest.get("report", {}).get("cameras", {}).get("poses") == "static"
    return frames[:1] if static else frames


def clip_of(run: Run) -> VideoSource:
    """The run's clip. InputError that names it when it is gone."""
    clip = run.manifest["clip"]
    try:
        return open_video(clip, RunConfig.from_dict(run.manifest.get("settings", {})).video)
    except InputError as error:
        raise InputError(f"the clip that {run.path} was made of is needed for its colours: {error}") from None


def scene_views(run: Run, exclusions: Sequence[Exclusion]) -> FusionInput:
    """The depth maps and poses that make the run's cloud. InputError when they do not belong together."""
    pose = dict(zip(run.frame_indices, run.posed_frames().T_world_camera, strict=True))
    depth = lru_cache(MAPS_KEPT)(run.depth)
    indices = np.array(fused_frames(run), np.int64)
    views = FusionInput(
        indices, indices, np.stack([pose[f] for f in indices]), depth, run.camera(), run.manifest["units"]
    )
    return without(views, exclusions, lambda f: View(depth(f), pose[f]) if f in pose else None)


def scene_colors(run: Run, indices: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(row, rgb) of the fused frames, from the clip. InputError when it is another one."""
    settings, camera = RunConfig.from_dict(run.manifest.get("settings", {})), run.camera()
    video, row_of = clip_of(run), {index: row for row, index in enumerate(indices.tolist())}
    changed = f"{video.info.path} is not the clip that {run.path} was made of: "
    for frame in video.frames(max_side=settings.video.max_side):
        if (row := row_of.pop(frame.index, None)) is not None:
            if frame.rgb.shape[:2] != (camera.height, camera.width):
                raise InputError(f"{changed}its frames have another shape; put that clip back")
            yield row, frame.rgb
        if not row_of:
            return
    raise InputError(f"{changed}it has no frame {next(iter(row_of))}; put that clip back")
