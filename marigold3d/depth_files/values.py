"""The numbers of a clip's frames on disk, exact: in a format that was asked for, else hidden while others are made."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..export.relative_depth import read_npy, read_npz, write_npz
from ..types import Domain, RelativeDepth
from .maps import EMPTY, MapFiles, write_map

HIDDEN = ".values"


class ValueStore:
    """Frames of depth by their index. Every frame that has an NPZ, an NPY or a hidden file is there."""

    def __init__(self, folder: Path, formats: tuple[str, ...], domain: Domain) -> None:
        self._folder, self._hidden, self._domain = folder, folder / HIDDEN, domain
        self.kept = ("npz",) if "npz" in formats else ("npy",) if "npy" in formats else ()

    def indices(self) -> set[int]:
        """Frames that are there."""
        files = [*self._folder.glob("*.npz"), *self._folder.glob("*.npy"), *self._hidden.glob("*.npz")]
        return {int(file.stem) for file in files if file.stem.isdecimal()}

    def write(self, index: int, depth: RelativeDepth) -> None:
        """Write a frame; a file appears whole or not at all."""
        if self.kept:
            write_map(MapFiles.of_frame(self._folder, index), depth, self.kept, EMPTY, "Spectral")
        else:
            write_npz(self._hidden / f"{index:06d}.npz", depth)

    def read(self, index: int) -> RelativeDepth:
        """A frame that is there. InputError when its file is damaged."""
        name = f"{index:06d}"
        for folder in (self._folder, self._hidden):
            if (folder / f"{name}.npz").is_file():
                return read_npz(folder / f"{name}.npz")
        sigma = self._folder / "uncertainty" / f"{name}.npy"
        values = read_npy(self._folder / f"{name}.npy")
        return RelativeDepth(values, self._domain, read_npy(sigma) if sigma.is_file() else None)

    def drop_hidden(self) -> None:
        """Remove what nobody asked for."""
        shutil.rmtree(self._hidden, ignore_errors=True)
