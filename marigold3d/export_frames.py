"""A run's frames one after the other: as a video of depth, along Rerun's timelines, or in a viser scene."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError
from .export.depth_maps import MAX_VALUE
from .export.preview import ColorRange, paint_depth
from .export.rerun_file import rerun_recording
from .export.viser_file import write_viser
from .export_scene import cloud_of, frames_of, path_of, units_of
from .finished import clip_of
from .progress import Progress, Steps
from .store import Run
from .types import DepthMap, RelativeDepth
from .video import video_writer

MOST_CAMERAS = 80  # in a viser scene: a browser draws each by itself
THUMBNAIL = 160  # px
FPS = 25.0  # of runs that do not say


def depth_video(run: Run, path: Path, images: bool) -> Steps[None]:
    """Depth in colours, one range for the whole clip, near warm and far cold; with `images` beside the frames."""
    frames = run.frame_indices
    if not frames:
        raise InputError(f"{run.path} has no depth maps: run `marigold3d video` again with --overwrite")
    if images:
        clip_of(run)  # before any work
    ranges = []
    for done, index in enumerate(frames, start=1):
        ranges.append(ColorRange.of(_shown(run.depth(index, sigma=False))))
        yield Progress("scan", done, len(frames))
    shown = ColorRange.of_clip(ranges)
    with video_writer(path, frame_rate(run)) as add:
        for done, (index, rgb) in enumerate(_pictures(run, images), start=1):
            depth = paint_depth(_shown(run.depth(index, sigma=False)), shown)
            add(depth if rgb is None else np.hstack((rgb, depth)))
            yield Progress("preview", done, len(frames))


def rerun(run: Run, path: Path, images: bool) -> Steps[None]:
    """Camera path, depth of every frame and, where there is one, the cloud; with `images` the frames, too."""
    trajectory, frames = path_of(run), run.frame_indices
    if images:
        clip_of(run)  # before any work
    cloud = run.cloud() if run.has_cloud else None
    farthest = run.encoding().scale * MAX_VALUE + run.encoding().offset
    poses = dict(zip(frames, zip(trajectory.timestamps_s, trajectory.T_world_camera, strict=True), strict=True))
    with rerun_recording(path, trajectory, run.camera(), farthest, units_of(run), cloud) as recording:
        for done, (index, rgb) in enumerate(_pictures(run, images), start=1):
            time_s, T_world_camera = poses[index]
            recording.add(index, float(time_s), T_world_camera, run.depth(index, sigma=False), rgb)
            yield Progress("files", done, len(frames))


def viser(run: Run, path: Path, images: bool) -> Steps[None]:
    """The cloud and some of the cameras; with `images` their pictures, small."""
    trajectory, cloud, indices = path_of(run), cloud_of(run), run.frame_indices
    if images:
        clip_of(run)  # before any work
    shown = set(np.linspace(0, len(indices) - 1, min(len(indices), MOST_CAMERAS)).round().astype(int).tolist())
    pose = dict(zip(indices, trajectory.T_world_camera, strict=True))
    cameras = []
    for row, (index, rgb) in enumerate(_pictures(run, images)):
        if row in shown:
            cameras.append((index, pose[index], None if rgb is None else _thumbnail(rgb)))
        yield Progress("files", row + 1, len(indices))
    write_viser(path, cloud, run.camera(), cameras)


def _thumbnail(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = Image.fromarray(rgb)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(picture)


def frame_rate(run: Run) -> float:
    """Frames a second that the depth maps stand for, by the camera path's times."""
    if not (run.path / "trajectory.txt").is_file():
        return FPS
    times_s = run.trajectory().timestamps_s
    return float((len(times_s) - 1) / (times_s[-1] - times_s[0])) if len(times_s) > 1 else FPS


def _pictures(run: Run, images: bool) -> Iterator[tuple[int, NDArray[np.uint8] | None]]:
    """(source frame, rgb), or None for it when it is not wanted."""
    return frames_of(run) if images else ((index, None) for index in run.frame_indices)


def _shown(depth: DepthMap) -> RelativeDepth:
    """Depth as the colours take it: NaN where there is none, and a logarithmic scale."""
    return RelativeDepth(np.where(depth.valid, depth.depth, np.float32(np.nan)), "metric")
