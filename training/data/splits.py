"""Which files of a data set are used: split lists read from disk, and whether all of them are there."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from marigold3d.errors import InputError

SHOWN = 3  # missing files that an error names


def read_split(path: str | Path) -> list[tuple[str, ...]]:
    """The rows of a split list: relative paths, separated by spaces, `rgb depth …`; rows with a "None" are dropped.

    Raises InputError for a file that cannot be read, a row of fewer than two paths, or no rows at all.
    """
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        fields = tuple(line.split())
        if len(fields) == 1:
            raise InputError(f"{path}, line {number}: {line.strip()!r} is no pair of paths: write `rgb depth` a line")
        if fields and "None" not in fields:
            rows.append(fields)
    if not rows:
        raise InputError(f"{path} lists no files: it must hold `rgb depth` a line")
    return rows


def read_table(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header. Raises InputError unless it can be read and has these columns."""
    lines = csv.DictReader(_text(path).splitlines())
    missing = [column for column in columns if column not in (lines.fieldnames or ())]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}: it is not the table that is meant here")
    return [row for row in lines if None not in row.values()]  # a last line cut short lacks values


def require_files(root: Path, paths: Iterable[str], remedy: str) -> None:
    """Raises InputError, saying how many and which, unless all the relative `paths` are below `root`.

    Each folder is listed once, which on a network file system is much faster than asking for each file.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder: {remedy}")
    names: dict[Path, set[str]] = {}
    missing, count = [], 0
    for path in paths:
        whole, count = root / path, count + 1
        if whole.parent not in names:
            names[whole.parent] = _names(whole.parent)
        if whole.name not in names[whole.parent]:
            missing.append(path)
    if missing:
        more = ", …" if len(missing) > SHOWN else ""
        raise InputError(f"{root} lacks {len(missing)} of {count} files: {', '.join(missing[:SHOWN])}{more}; {remedy}")


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise InputError(f"cannot list {folder}: {error.strerror}") from error


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the split {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise InputError(f"cannot read the split {path}: it is not text") from None
