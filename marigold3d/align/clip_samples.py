"""One pass over a clip for the joint solve: samples of every frame, values at its cues, its own affine fit."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import GeometryError, UsageError
from ..progress import Progress, Steps
from ..types import Domain, RelativeDepth, SparseCues
from .affine import AffineFit, fit_affine
from .cue_arrays import sigma_shares
from .grid import Float32, SampleGrid, ValueRange
from .joint import CueRows, JointSettings
from .samples import sample

IN_MEMORY = 2**29  # bytes of samples; those of longer clips wait on disk
MOST_CUES = 500  # of a frame: a coarse field needs no more, so each stands for several
NO_CUES = SparseCues.empty()


class Maps(Protocol):
    """T relative depth maps by position: a list, or anything that reads them from disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> RelativeDepth: ...


@dataclass(frozen=True, eq=False)
class ClipSamples:
    """What the solve needs: normalised samples (T, N), cues and the fits of frames to them, by position."""

    values: Float32
    rows: dict[int, CueRows]
    used: dict[int, NDArray[np.intp]]  # which of a frame's cues lie on depth ...
    at_cues: dict[int, Float32]  # ... and the values there, not normalised
    cues: Mapping[int, SparseCues]
    fits: dict[int, AffineFit]
    grid: SampleGrid
    range: ValueRange
    domain: Domain

    def cues_on_depth(self, position: int) -> SparseCues:
        """The frame's M cues that lie on depth, whose values `at_cues` holds."""
        return self.cues[position].select(self.used[position])


def read_clip(relative: Maps, cues: Mapping[int, SparseCues], settings: JointSettings) -> Steps[ClipSamples]:
    """One pass over the clip. Frames are let go of as soon as their samples are taken."""
    if len(relative) == 0:
        raise GeometryError("there are no depth maps to align")
    first = relative[0]
    height, width = first.values.shape
    grid = SampleGrid.of(width, height, settings.samples, settings.field_columns)
    values = _frames_of_samples(len(relative), len(grid))
    at_cues: dict[int, Float32] = {}
    used: dict[int, NDArray[np.intp]] = {}
    fits: dict[int, AffineFit] = {}
    for i in range(len(relative)):
        frame = relative[i]
        if frame.values.shape != first.values.shape or frame.domain != first.domain:
            raise UsageError(f"depth map {i} differs in size or domain from the first: a clip has one of each")
        values[i] = grid.samples(frame)
        own = cues.get(i, NO_CUES)
        if len(own):
            v = sample(frame.values, own.uv)
            used[i] = np.flatnonzero(np.isfinite(v))
            at_cues[i] = v[used[i]]
        if len(used.get(i, ())):
            fits[i] = fit_affine(frame, own)
        yield Progress("align", i + 1, len(relative))
    if not np.isfinite(values).any():
        raise GeometryError("no frame has any depth, so there is nothing to align")
    low_high = ValueRange.of(values, first.domain)
    for row in values:
        row[:] = low_high.normalised(row)
    rows = {i: cue_rows(low_high.normalised(at_cues[i]), cues[i].select(used[i])) for i in fits}
    return ClipSamples(values, rows, used, at_cues, cues, fits, grid, low_high, first.domain)


def _frames_of_samples(frames: int, samples: int) -> Float32:
    """(frames, samples) to be filled: in memory, or of a long clip in a file without a name."""
    if frames * samples * 4 <= IN_MEMORY:
        return np.empty((frames, samples), np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(frames, samples))


def cue_rows(v: Float32, cues: SparseCues, most: int = MOST_CUES) -> CueRows:
    """Cues as the solve takes them, at most so many."""
    pick = np.linspace(0, len(v) - 1, min(most, len(v))).astype(np.intp)
    sigma = sigma_shares(cues)[pick]
    log_z = np.log(cues.depth[pick]).astype(np.float32)
    uv = cues.uv[pick].astype(np.float32)
    return CueRows(v[pick], log_z, sigma.astype(np.float32), uv, len(v) / max(len(pick), 1))
