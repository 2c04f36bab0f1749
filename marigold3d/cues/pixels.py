"""A table of pixels with known depth: u, v, depth and, where there are such columns, frame, sigma and id."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import Units
from .clip_frames import ClipFrames
from .framed import CueRows, FramedCues, framed
from .table import Table

COLUMNS = "u v depth"


def pixel_cues(
    table: Table, clip: ClipFrames, units: Units, share: float | None, *, position: int | None
) -> FramedCues:
    """u, v in pixels of the clip's own frames, depth and sigma in `units`; rows with one id are one point.

    position: of all rows, where the table has no column `frame`. Raises InputError when no row can be used.
    """
    rows = CueRows(
        positions_of_rows(table, clip, position),
        clip.to_maps(table.matrix("u v")),
        table.numbers("depth"),
        table.optional("sigma"),
        _points(table),
    )
    return framed("table", str(table.path), units, rows, clip, share)


def positions_of_rows(table: Table, clip: ClipFrames, position: int | None) -> NDArray[np.int64]:
    """(N,) position of every row among the used frames, or NOT_USED."""
    if "frame" in table:
        return clip.positions_of(table.labels("frame"))
    if position is None:
        raise InputError(
            f"{table.path}: does not say which frame it is of: add a column frame, or write {table.path.name}@FRAME"
        )
    return np.full(len(table), position, np.int64)


def _points(table: Table) -> NDArray[np.int64]:
    """(N,) the same number for rows of one id; without ids every row is a point."""
    if "id" not in table:
        return np.arange(len(table))
    return np.unique(table.labels("id"), return_inverse=True)[1].astype(np.int64)
