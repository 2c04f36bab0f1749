"""Sample data: the example clip, and a finished run of it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from marigold3d.errors import InputError

if TYPE_CHECKING:
    from ._layers import LayerData

CLIP = "clip.mp4"
RUN = "clip_sample_3d"


def clip() -> list[LayerData]:
    """The example clip as a lazy stack of frames."""
    from ._reader import layers_of_video

    return layers_of_video(_example(CLIP))


def reconstructed_clip() -> list[LayerData]:
    """The example clip's depth, cloud and camera path."""
    from ._reader import layers_of_run

    return layers_of_run(_example(RUN))


def _example(name: str) -> Path:
    """A file or folder of the package `marigold3d.examples`. InputError when it was not installed."""
    try:
        path = Path(str(files("marigold3d.examples") / name))
    except ModuleNotFoundError:
        path = Path("marigold3d", "examples", name)
    if not path.exists():
        raise InputError(f"{path} is missing: install marigold3d again")
    return path
