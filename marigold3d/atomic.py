"""Files appear whole or not at all, and a full or read-only disk is one clear line."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again, finished work is kept",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again, finished work is kept",
    errno.EACCES: "no permission to write there: choose another folder with -o",
    errno.EPERM: "no permission to write there: choose another folder with -o",
    errno.EROFS: "the file system is read-only: choose another folder with -o",
    errno.ENOTDIR: "a part of the path is a file: choose another folder with -o",
    errno.EFBIG: "the file would be too large for this file system",
}


def output_error(path: str | os.PathLike[str], error: OSError) -> OutputError:
    """The OutputError that says in one line why `path` cannot be written, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, error.strerror or str(error))
    return OutputError(f"cannot write {os.fspath(path)}: {remedy}")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it replaces `path` when the block ends well, else it is removed.

    The sibling keeps the suffix, since writers choose a format by it. Missing parent folders are made. OSError becomes
    OutputError.
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


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder `path` and prove that a file can be written there; OutputError otherwise."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".probe"):
            pass
    except OSError as error:
        raise output_error(path, error) from error
    return path
