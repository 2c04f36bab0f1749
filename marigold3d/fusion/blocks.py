"""Voxels of a truncated signed distance field in blocks of 8 x 8 x 8, in memory or, beyond some size, in files.

Only blocks near surfaces exist. The files are mapped into memory, so the system keeps what is in use and writes the
rest to disk; a scene may be larger than the memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..atomic import output_error, writable_folder
from ..errors import GeometryError

SIDE = 8  # voxels along a block's edge
VOXELS = SIDE**3
COLUMNS = 5  # signed distance, weight, red, green, blue
CHUNK = 4096  # blocks allocated together: 42 MB
IN_MEMORY = 24  # chunks kept in memory, 1 GB, before files are used
KEY_BITS = 21  # a block's or a voxel's x, y, z index share one 64-bit key
HALF = 1 << (KEY_BITS - 1)

Keys = NDArray[np.int64]
Coords = NDArray[np.int64]
Values = NDArray[np.float32]


def keys_of(coords: Coords) -> Keys:
    """One number for each block (N, 3), in the order of x, then y, then z. GeometryError when one is too far out."""
    if coords.size and np.abs(coords).max() >= HALF:
        raise GeometryError("the voxels are too small for a scene this large: raise --voxel")
    return packed(coords)


def packed(coords: Coords) -> Keys:
    """`keys_of` coordinates that are known to lie within +-HALF."""
    shifted = coords + HALF
    return np.asarray((shifted[:, 0] << (2 * KEY_BITS)) | (shifted[:, 1] << KEY_BITS) | shifted[:, 2], np.int64)


def coords_of(keys: Keys) -> Coords:
    """(N, 3), the inverse of `keys_of`."""
    mask = (1 << KEY_BITS) - 1
    return np.stack([keys >> (2 * KEY_BITS), (keys >> KEY_BITS) & mask, keys & mask], 1) - HALF


class BlockStore:
    """Blocks by key; each holds (COLUMNS, VOXELS) float32, zeros at first. `folder` is for those that memory has no
    room for; it is made when needed, and whoever gave it removes it.
    """

    def __init__(self, folder: Path, in_memory: int = IN_MEMORY) -> None:
        self._folder, self._in_memory = folder, in_memory
        self._chunks: list[Values] = []
        self._keys = np.zeros(0, np.int64)  # increasing ...
        self._rows = np.zeros(0, np.int64)  # ... and where each block lies

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> Keys:
        """(N,), increasing."""
        return self._keys

    def rows(self, keys: Keys) -> NDArray[np.int64]:
        """Where the blocks of `keys` (M,), each once, lie (M,); missing ones are made. OutputError on a full disk."""
        missing = keys[~self.has(keys)]
        if len(missing):
            self._grow(len(self) + len(missing))
            at = np.searchsorted(self._keys, missing := np.sort(missing))
            self._rows = np.insert(self._rows, at, np.arange(len(self), len(self) + len(missing)))
            self._keys = np.insert(self._keys, at, missing)
        return self._rows[np.searchsorted(self._keys, keys)]

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        """(M,) which of the keys (M,) have a block."""
        at = np.searchsorted(self._keys, keys)
        return (at < len(self)) & (self._keys[np.minimum(at, len(self) - 1)] == keys) if len(self) else at < 0

    def read(self, rows: NDArray[np.int64]) -> Values:
        """A copy (M, COLUMNS, VOXELS) of the blocks at `rows`."""
        out = np.empty((len(rows), COLUMNS, VOXELS), np.float32)
        for chunk, which in self._parts(rows):
            out[which] = chunk[rows[which] % CHUNK]
        return out

    def write(self, rows: NDArray[np.int64], values: Values) -> None:
        """Put blocks (M, COLUMNS, VOXELS) back."""
        for chunk, which in self._parts(rows):
            chunk[rows[which] % CHUNK] = values[which]

    def _parts(self, rows: NDArray[np.int64]) -> Iterator[tuple[Values, NDArray[np.intp]]]:
        number = rows // CHUNK
        for i in np.unique(number).tolist():
            yield self._chunks[i], np.flatnonzero(number == i)

    def _grow(self, blocks: int) -> None:
        while CHUNK * len(self._chunks) < blocks:
            shape = (CHUNK, COLUMNS, VOXELS)
            if len(self._chunks) < self._in_memory:
                self._chunks.append(np.zeros(shape, np.float32))
                continue
            file = writable_folder(self._folder) / f"{len(self._chunks):05d}.blocks"
            try:
                _allocate(file, 4 * int(np.prod(shape)))
                self._chunks.append(np.memmap(file, np.float32, "r+", shape=shape))
            except OSError as error:
                raise output_error(file, error) from error


def _allocate(file: Path, size: int) -> None:
    """Zeros that the disk has room for: writing into a hole of a full disk would end the program."""
    with file.open("wb") as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
            return
        block = bytes(1 << 20)
        for start in range(0, size, len(block)):
            stream.write(block[: size - start])
