"""What the arguments of `marigold3d depth` stand for: images, folders of them, patterns and clips, in any mixture."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..images import IMAGE_SUFFIXES, find_images, natural_key
from .settings import Kind

CLIP_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".wmv"})
OWN_PICTURE = re.compile(r"(.+)_(depth|uncertainty)(_preview)?\.png")


@dataclass(frozen=True)
class Input:
    """An image or a clip, and the name of what is made of it."""

    path: Path
    kind: Kind
    stem: str


def find_inputs(given: Iterable[str | Path], *, sequence: bool = False) -> list[Input]:
    """The images and clips that are meant, each once. sequence: a folder or a pattern is one clip.

    Raises InputError for what is missing or empty, and for two inputs that would be written under one name.
    """
    found = list(dict.fromkeys(item for text in given for item in _meant_by(Path(text), sequence)))
    taken: dict[tuple[Kind, str], Input] = {}
    for item in found:
        other = taken.setdefault((item.kind, item.stem.casefold()), item)
        if other is not item:
            raise InputError(f"{other.path} and {item.path} would be written under one name: rename one")
    return found


def _meant_by(path: Path, sequence: bool) -> Iterator[Input]:
    pattern = not path.exists() and glob.has_magic(str(path))
    if sequence and (pattern or path.is_dir()):
        named = path.parent if pattern else path
        yield Input(path, "clip", named.resolve().name)
    elif pattern:
        files = sorted((Path(name) for name in glob.glob(str(path))), key=lambda f: natural_key(f.name))
        if not files:
            raise InputError(f"{path}: nothing matches this pattern")
        yield from (_file(file) for file in files if file.is_file())
    elif path.is_dir():
        files = [*(f for f in find_images(path) if not _is_own(f)), *_clips_in(path)]
        if not files:
            raise InputError(f"{path}: neither images nor clips are there")
        yield from map(_file, files)
    elif path.is_file():
        yield _file(path)
    else:
        raise InputError(f"{path}: no such file; give images, clips, folders or quoted patterns such as 'img*.png'")


def _file(path: Path) -> Input:
    return Input(path, "image" if path.suffix.lower() in IMAGE_SUFFIXES else "clip", path.stem)


def _clips_in(folder: Path) -> list[Path]:
    clips = [f for f in folder.iterdir() if f.suffix.lower() in CLIP_SUFFIXES and not f.name.startswith(".")]
    return sorted(clips, key=lambda f: natural_key(f.name))


def _is_own(file: Path) -> bool:
    """Whether a picture was written by `marigold3d depth`, into the folder that is now its input."""
    name = OWN_PICTURE.fullmatch(file.name)
    return name is not None and (file.parent / f"{name[1]}_depth.json").is_file()
