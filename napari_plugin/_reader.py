"""Readers that napari calls: each returns a function that makes the layers, or None for what is not ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._layers import LayerData

Reader = Callable[[str | list[str]], "list[LayerData]"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm")


def read_video(path: str | list[str]) -> Reader | None:
    """Reader of a clip as a lazy stack of frames."""
    return _video_layers if _single(path).suffix.lower() in VIDEO_SUFFIXES else None


def read_run(path: str | list[str]) -> Reader | None:
    """Reader of a run folder, or of the `run.json` in it."""
    return _run_layers if (_run_folder(_single(path)) / "run.json").is_file() else None


def read_ply(path: str | list[str]) -> Reader | None:
    """Reader of a point cloud."""
    return _ply_layers if _single(path).suffix.lower() == ".ply" else None


def _single(path: str | list[str]) -> Path:
    """The path; of several opened as a stack, none."""
    if isinstance(path, list):
        path = path[0] if len(path) == 1 else ""
    return Path(path)


def _run_folder(path: Path) -> Path:
    return path.parent if path.name == "run.json" else path


def _video_layers(path: str | list[str]) -> list[LayerData]:
    from marigold3d.video_array import VideoArray

    from ._layers import video_layer

    return [video_layer(VideoArray(_single(path)))]


def _run_layers(path: str | list[str]) -> list[LayerData]:
    from marigold3d.store import Run

    from ._layers import run_layers

    return run_layers(Run.open(_run_folder(_single(path))))


def _ply_layers(path: str | list[str]) -> list[LayerData]:
    from marigold3d.export.ply import read_ply as read_cloud

    from ._layers import cloud_layer

    file = _single(path)
    return [cloud_layer(read_cloud(file), file.stem)]
