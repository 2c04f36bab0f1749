"""Depth maps to files by format: one map, or the frames of a clip as a folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..atomic import output_error
from ..errors import InputError, OutputError, UsageError
from ..types import DepthMap, Units
from .depth_maps import DepthEncoding, write_depth_exr, write_depth_npz, write_depth_png, write_encoding

DEPTH_SUFFIXES = (".exr", ".png", ".npz")
ENCODING = "encoding.json"
NARROWEST = 1e-3  # of the nearest depth: the range a PNG encoding spans at least

Frames = Iterable[tuple[int, DepthMap]]
"""(source frame, depth map), made when they are asked for."""


def write_depth(path: str | Path, depth: DepthMap, units: Units) -> list[Path]:
    """Write one depth map as .exr, .npz, or .png with its encoding as NAME_encoding.json; returns the paths."""
    path = Path(path)
    suffix = _suffix_of(path)
    if suffix != ".png":
        (write_depth_exr if suffix == ".exr" else write_depth_npz)(path, depth, units)
        return [path]
    encoding, note = encoding_of([(0, depth)], units), path.with_name(f"{path.stem}_{ENCODING}")
    write_depth_png(path, depth, encoding)
    write_encoding(note, encoding)
    return [path, note]


def write_depth_frames(
    path: str | Path, frames: Callable[[], Frames], units: Units, encoding: DepthEncoding | None = None
) -> list[Path]:
    """Write maps to the folder NAME as NNNNNN.exr, .png or .npz, where `path` is NAME with that suffix; the paths.

    One map is in memory at a time. PNGs stand beside their encoding.json; without `encoding` the frames are read twice,
    first to find the finest one that holds them all. OutputError when the folder holds anything or cannot be written.
    """
    suffix, folder = _suffix_of(path), Path(path).with_suffix("")
    if suffix == ".png" and encoding is None:
        encoding = encoding_of(frames(), units)
    with _new_folder(folder) as temporary:
        names = []
        for index, depth in frames():
            names.append(f"{index:06d}{suffix}")
            if suffix == ".exr":
                write_depth_exr(temporary / names[-1], depth, units)
            elif suffix == ".npz":
                write_depth_npz(temporary / names[-1], depth, units)
            elif encoding is not None:
                write_depth_png(temporary / names[-1], depth, encoding)
        if encoding is not None and suffix == ".png":
            names.append(ENCODING)
            write_encoding(temporary / ENCODING, encoding)
    return [folder / name for name in names]


def encoding_of(frames: Frames, units: Units) -> DepthEncoding:
    """The finest encoding that holds all depth of `frames`. InputError when they have none."""
    near, far = np.inf, 0.0
    for _, depth in frames:
        known = depth.depth[depth.valid]
        if known.size:
            near, far = min(near, float(known.min())), max(far, float(known.max()))
    if not far:
        raise InputError("no pixel has a depth above zero: there is nothing to save")
    return DepthEncoding.for_range(near, max(far, near * (1 + NARROWEST)), units)


def _suffix_of(path: str | Path) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in DEPTH_SUFFIXES:
        raise UsageError(f"{path}: choose a name that ends in {', '.join(DEPTH_SUFFIXES)}")
    return suffix


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well, else goes."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise OutputError(f"{folder} exists already: choose another name")
        temporary.mkdir(parents=True)
        yield temporary
        if folder.is_dir():
            folder.rmdir()  # Windows does not replace folders
        temporary.rename(folder)
    except OSError as error:
        raise output_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
