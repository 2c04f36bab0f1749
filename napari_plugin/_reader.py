"""Readers that napari calls: each returns a function that makes the layers, or None for what is not ours.

Several paths that are to become one stack are not ours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._layers import LayerData

Reader = Callable[[str | list[str]], "list[LayerData]"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm")
CLOUD_SUFFIXES = (".ply", ".las", ".laz", ".glb")


def read_video(path: str | list[str]) -> Reader | None:
    """Reader of a clip as a lazy stack of frames."""
    return _video_layers if _suffix(path) in VIDEO_SUFFIXES else None


def read_run(path: str | list[str]) -> Reader | None:
    """Reader of a run folder, or of the `run.json` in it."""
    if isinstance(path, list) and len(path) != 1:
        return None
    return _run_layers if (_run_folder(_single(path)) / "run.json").is_file() else None


def read_cloud(path: str | list[str]) -> Reader | None:
    """Reader of a point cloud."""
    return _cloud_layers if _suffix(path) in CLOUD_SUFFIXES else None


def layers_of_video(path: Path) -> list[LayerData]:
    """A clip as a lazy stack of frames. InputError when it cannot be decoded."""
    from marigold3d.video_array import VideoArray

    from ._layers import video_layer

    return [video_layer(VideoArray(path))]


def layers_of_run(path: Path) -> list[LayerData]:
    """All that a run folder holds. InputError when it is none, or damaged."""
    from marigold3d.store import Run

    from ._layers import run_layers
    from ._preferences import preferences

    return run_layers(Run.open(path), limit=preferences().points)


def layers_of_cloud(path: Path) -> list[LayerData]:
    """A point cloud by its suffix. InputError when it cannot be read."""
    from marigold3d.export.clouds import read_cloud as read_file

    from ._layers import cloud_layer
    from ._preferences import preferences

    return [cloud_layer(read_file(path), path.stem, limit=preferences().points)]


def _video_layers(path: str | list[str]) -> list[LayerData]:
    return layers_of_video(_single(path))


def _run_layers(path: str | list[str]) -> list[LayerData]:
    return layers_of_run(_run_folder(_single(path)))


def _cloud_layers(path: str | list[str]) -> list[LayerData]:
    return layers_of_cloud(_single(path))


def _single(path: str | list[str]) -> Path:
    """The one path; napari hands a list when layers are to be stacked."""
    return Path(path[0] if isinstance(path, list) else path)


def _suffix(path: str | list[str]) -> str:
    """In lower case; of several paths none."""
    return "" if isinstance(path, list) and len(path) != 1 else _single(path).suffix.lower()


def _run_folder(path: Path) -> Path:
    return path.parent if path.name == "run.json" else path
