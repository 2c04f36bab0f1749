"""What is written, in which formats, and whether what is there already was made likewise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ..atomic import atomic_path
from ..config import DepthConfig, VideoConfig
from ..errors import OutputError, UsageError
from ..export.colormaps import colormap
from ..export.depth_maps import NO_OPENEXR

Kind = Literal["image", "clip"]

FORMATS = ("npy", "npz", "png16", "exr", "preview", "video")
DEFAULT_FORMATS: Mapping[Kind, tuple[str, ...]] = {"image": ("npy", "preview"), "clip": ("npz", "video")}
CLIP_MAX_SIDE = 1280  # px, unless another is given
FORMAT_VERSION = 1

Record = dict[str, Any]
"""The JSON beside the files: what they are, and what they were made from and with."""


@dataclass(frozen=True)
class OutputConfig:
    """Formats and their looks.

    formats: of FORMATS; none: DEFAULT_FORMATS. max_side: longest side of the depth maps, px; 0: as the input; None:
    CLIP_MAX_SIDE for clips, images as they are. sequence: folders and patterns are the frames of a clip.
    """

    formats: tuple[str, ...] = ()
    colormap: str = "Spectral"
    max_side: int | None = None
    uncertainty: bool = True
    sequence: bool = False

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise UsageError(f"unknown format {name!r}: use {', '.join(FORMATS)}")
        if self.max_side is not None and self.max_side != 0 and self.max_side < 32:
            raise UsageError(f"max_side must be at least 32 px, or 0 for the input's own size, got {self.max_side}")
        if "exr" in self.formats and find_spec("OpenEXR") is None:
            raise OutputError(NO_OPENEXR)
        colormap(self.colormap)

    def formats_of(self, kind: Kind) -> tuple[str, ...]:
        """What is written for an image or a clip. UsageError when nothing remains."""
        wanted = tuple(dict.fromkeys(self.formats)) or DEFAULT_FORMATS[kind]
        if kind == "image" and not (wanted := tuple(f for f in wanted if f != "video")):
            raise UsageError("a video is made of a clip: choose another --format for images")
        return wanted

    def longest_px(self, kind: Kind) -> int | None:
        """Longest side of depth maps, px; None: as the input."""
        if self.max_side is None:
            return CLIP_MAX_SIDE if kind == "clip" else None
        return self.max_side or None


def settings_record(depth: DepthConfig, clip: VideoConfig, output: OutputConfig, kind: Kind) -> Record:
    """The settings that the numbers depend on."""
    idle = ("offline", "batch")
    record = {name: value for name, value in asdict(depth).items() if name not in idle}
    if kind == "clip":
        record |= {name: value for name, value in asdict(clip).items() if name != "max_side"}
    return record | {"max_side": output.longest_px(kind), "uncertainty": output.uncertainty}


def source_record(path: Path) -> Record:
    """What tells whether an input is still the same: its name, its size and when it was changed."""
    if not path.is_file():
        return {"name": path.name}
    state = path.stat()
    return {"name": path.name, "bytes": state.st_size, "modified_ns": state.st_mtime_ns}


def digest(*parts: Record) -> str:
    """Short hash of records."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_record(path: Path) -> Record | None:
    """The record that `write_record` wrote; None when there is none. OutputError when it is something else."""
    try:
        record = json.loads(path.read_text())
        if record["format_version"] > FORMAT_VERSION:
            raise OutputError(f"{path} was written by a newer marigold3d: choose another folder")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(f"{path} is in the way or damaged: choose another folder, or remove it") from None
    return record  # type: ignore[no-any-return]


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"format_version": FORMAT_VERSION, **record}, indent=1, default=str) + "\n")
