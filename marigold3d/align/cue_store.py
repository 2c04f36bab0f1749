"""Cues of many frames without many frames' memory: a file without a name once they outgrow a few megabytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from ..atomic import output_error
from ..types import SparseCues
from .cue_arrays import joined

IN_MEMORY = 2**25  # bytes: 800,000 cues


class CueStore(Sequence[SparseCues]):
    """Cues by frame, appended one frame after the other; each time they are asked for they are read anew."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 (it lives as long as the store)
        self._starts = [0]
        self._kinds: list[tuple[str, bool]] = []  # source, and whether sigma is stated

    def append(self, cues: SparseCues) -> None:
        """Cues of the next frame. OutputError when the disk is full."""
        columns = [cues.uv, cues.depth] if cues.sigma is None else [cues.uv, cues.depth, cues.sigma]
        rows = np.column_stack(columns).astype(np.float64)
        try:
            self._file.seek(self._starts[-1])
            self._file.write(rows.tobytes())
        except OSError as error:
            raise output_error(Path(tempfile.gettempdir()), error) from error
        self._starts.append(self._starts[-1] + rows.nbytes)
        self._kinds.append((cues.source, cues.sigma is not None))

    def __len__(self) -> int:
        return len(self._kinds)

    @overload
    def __getitem__(self, i: int) -> SparseCues: ...
    @overload
    def __getitem__(self, i: slice) -> list[SparseCues]: ...
    def __getitem__(self, i: int | slice) -> SparseCues | list[SparseCues]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        (source, stated), start = self._kinds[i], self._starts[i]
        self._file.seek(start)
        rows = np.frombuffer(self._file.read(self._starts[i + 1] - start)).reshape(-1, 4 if stated else 3)
        return SparseCues(rows[:, :2], rows[:, 2], rows[:, 3] if stated else None, source)


class JoinedCues(Mapping[int, SparseCues]):
    """All cues of each frame that has any, from several sequences of as many frames; joined when they are asked for."""

    def __init__(self, parts: Sequence[Sequence[SparseCues]], frames: int) -> None:
        self._parts = parts
        self._frames = {i: None for i in range(frames) if any(len(part[i]) for part in parts)}

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[int]:
        return iter(self._frames)

    def __getitem__(self, i: int) -> SparseCues:
        if i not in self._frames:
            raise KeyError(i)
        return joined([part[i] for part in self._parts])
