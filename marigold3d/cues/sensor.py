"""Depth maps of a sensor or LiDAR, a file a frame, as cues."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..camera import pixel_grid
from ..errors import InputError
from ..types import Array, Units
from .clip_frames import NOT_USED, ClipFrames
from .depth_files import DEPTH_SUFFIXES, read_depth_m
from .framed import CueRows, FramedCues, group, nothing_left
from .tally import Tally

MAX_CUES = 5000  # of a frame; denser maps are thinned on a regular grid
ASPECT_TOLERANCE = 0.02  # by which a map's height may differ from what its width says, and never less than a pixel


def read_sensor_folder(folder: Path, clip: ClipFrames, units: Units, share: float | None) -> FramedCues:
    """Maps named by source frame number, as 000042.png, or by the image's name where the clip is a folder of images.

    A dense map gives at most MAX_CUES cues. Raises InputError when no file belongs to a frame in use.
    """
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in DEPTH_SUFFIXES and not f.name.startswith("."))
    positions = clip.positions_of([f.name for f in files])
    matched: dict[int, Path] = {}
    for position, file in zip(positions.tolist(), files, strict=True):
        if position in matched:
            raise InputError(
                f"{folder}: {matched[position].name} and {file.name} are both of frame {clip.indices[position]}: keep "
                "one depth map a frame in the folder"
            )
        if position != NOT_USED:
            matched[position] = file
    if not matched:
        raise InputError(
            f"{folder}: none of its {len(files)} depth maps belongs to a frame in use ({clip.range_text()}): name them "
            "by frame number, as in 000042.png"
        )
    return _as_cues(folder, matched, clip, units, share)


def read_sensor_map(path: Path, position: int, clip: ClipFrames, units: Units, share: float | None) -> FramedCues:
    """The one map of the frame at `position`."""
    return _as_cues(path, {position: path}, clip, units, share)


def _as_cues(origin: Path, files: dict[int, Path], clip: ClipFrames, units: Units, share: float | None) -> FramedCues:
    tally = Tally(0)
    found = []
    for position, file in sorted(files.items()):
        uv, depth, measured = _cues_of(file, clip)
        found.append((np.full(len(depth), position), uv, depth))
        thinned = measured - len(depth)
        tally += Tally(measured, {"thinned to a regular grid": thinned} if thinned else {})
    at, uv, depth = (np.concatenate(column) for column in zip(*found, strict=True))
    if not len(depth):
        raise InputError(f"{origin}: no pixel of its depth maps is measured; {nothing_left(tally, clip)}")
    rows = CueRows(at, uv, depth, np.full(len(depth), np.nan), np.arange(len(depth)))
    return group("depth maps", units, rows, np.ones(len(depth), bool), tally, share)


def _cues_of(file: Path, clip: ClipFrames) -> tuple[Array, Array, int]:
    """Depth-map pixels (N, 2) and depths (N,) of a file, and how many of its pixels were measured."""
    depth = read_depth_m(file)
    height, width = depth.shape
    expected = width * clip.source_size[1] / clip.source_size[0]
    if abs(height - expected) > max(1.0, ASPECT_TOLERANCE * expected):
        raise InputError(
            f"{file}: {width}x{height} depth for {clip.source_size[0]}x{clip.source_size[1]} frames: turn or crop the "
            "depth maps to the view of the colour camera"
        )
    picked, measured = _thinned(np.isfinite(depth))
    return clip.rescaled(pixel_grid(width, height)[picked], width, height), depth[picked], measured


def _thinned(measured: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """Which pixels (H, W) to take: those measured, on the finest regular grid that leaves MAX_CUES of them at most."""
    count = int(measured.sum())
    step = max(1, int(np.sqrt(count / MAX_CUES)))
    while True:
        grid = np.zeros_like(measured)
        grid[step // 2 :: step, step // 2 :: step] = True
        if (measured & grid).sum() <= MAX_CUES:
            return measured & grid, count
        step += 1
