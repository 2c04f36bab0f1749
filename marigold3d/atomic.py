"""Files that appear whole or not at all: written beside their place, then moved into it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError

REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space or write elsewhere",
    errno.EDQUOT: "your disk quota is used up: free some space or write elsewhere",
    errno.EACCES: "no permission to write there: choose another folder",
    errno.EPERM: "no permission to write there: choose another folder",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another name",
    errno.EISDIR: "a folder of that name exists: choose another name",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of `path` (same suffix) to write; moved onto `path` on success, removed on any failure.

    Missing parent folders are made. OSError becomes a one-line OutputError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        if temporary.is_file():
            temporary.unlink(missing_ok=True)


def output_error(path: Path, error: OSError) -> OutputError:
    """One line that says why `path` cannot be written and what to do."""
    reason = REMEDIES.get(error.errno or 0, (error.strerror or str(error)).lower())
    return OutputError(f"{path}: cannot be written: {reason}")
