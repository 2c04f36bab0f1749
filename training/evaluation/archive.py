"""A data set's files, in a folder or in a tar that is read where it lies, without unpacking."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from marigold3d.errors import InputError
from training.data.samples import CorruptSample
from training.data.splits import SHOWN, require_files


class Files(Protocol):
    """Files by their path inside the data set."""

    def require(self, paths: Iterable[str], remedy: str) -> None:
        """Raises InputError, saying how many and which, unless all of `paths` are there."""
        ...

    def open(self, path: str) -> BinaryIO:
        """The file's bytes. Raises CorruptSample if they cannot be read."""
        ...


def open_files(root: str | Path) -> Files:
    """The files of a folder or of a tar. Raises InputError if `root` is neither."""
    root = Path(root).expanduser()
    if root.is_dir():
        return Folder(root)
    if root.is_file():
        return Tar(root)
    raise InputError(f"{root} is neither a folder nor a tar: give --root the data set's folder or official tar")


class Folder:
    """Files below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def require(self, paths: Iterable[str], remedy: str) -> None:
        require_files(self.root, paths, remedy)

    def open(self, path: str) -> BinaryIO:
        try:
            return io.BytesIO((self.root / path).read_bytes())
        except OSError as error:
            raise CorruptSample(f"{path}: {error.strerror}") from error


class Tar:
    """Members of an uncompressed tar, `./path` or `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._tar = tarfile.open(path, "r:")  # noqa: SIM115 (kept open: members are read one by one)
        except (tarfile.TarError, OSError) as error:
            raise InputError(
                f"{path} is no plain tar ({error}): get it again, or unpack it if it is compressed, and give its folder"
            ) from None
        self._members = {str(PurePosixPath(m.name)): m for m in self._readable() if m.isfile()}

    def require(self, paths: Iterable[str], remedy: str) -> None:
        wanted = list(paths)
        missing = [path for path in wanted if str(PurePosixPath(path)) not in self._members]
        if missing:
            more = ", …" if len(missing) > SHOWN else ""
            raise InputError(
                f"{self.path} lacks {len(missing)} of {len(wanted)} files: {', '.join(missing[:SHOWN])}{more}; {remedy}"
            )

    def open(self, path: str) -> BinaryIO:
        member = self._members[str(PurePosixPath(path))]
        try:
            file = self._tar.extractfile(member)
            content = b"" if file is None else file.read()
        except (tarfile.TarError, OSError) as error:
            raise CorruptSample(f"{path}: {error}") from None
        if len(content) < member.size:
            raise CorruptSample(f"{path}: cut short, the tar ends before it does")
        return io.BytesIO(content)

    def _readable(self) -> list[tarfile.TarInfo]:
        """The members up to where a half-downloaded tar ends."""
        members = []
        try:
            while (member := self._tar.next()) is not None:
                members.append(member)
        except (tarfile.TarError, OSError):
            pass
        return members
