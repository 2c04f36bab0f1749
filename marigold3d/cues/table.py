"""A table of cues as named columns: CSV with a header row, or the arrays of an NPZ."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import Array

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".npz")
DELIMITERS = ",;\t"  # else white space


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of one length, by lower-case name: text as a CSV holds it, or the numbers of an NPZ."""

    path: Path
    columns: dict[str, NDArray[Any]]

    def __contains__(self, names: str) -> bool:
        """Whether all of the space-separated `names` are columns."""
        return set(names.split()) <= set(self.columns)

    def __len__(self) -> int:
        return min(len(column) for column in self.columns.values())

    def numbers(self, name: str) -> Array:
        """(N,) float64, NaN where a cell is empty. InputError when one is text."""
        column = self.columns[name]
        if column.dtype.kind in "fiub":
            return column.astype(np.float64)
        try:
            return np.where(column == "", "nan", column).astype(np.float64)
        except ValueError:
            row = next(i for i, cell in enumerate(column) if not _is_number(str(cell)))
            raise InputError(
                f"{self.path}: {name} of row {row + 1} is {str(column[row])!r}: write numbers with decimal points"
            ) from None

    def matrix(self, names: str) -> Array:
        """(N, number of names) float64."""
        return np.stack([self.numbers(name) for name in names.split()], 1)

    def optional(self, name: str) -> Array:
        """(N,) float64, NaN throughout where there is no such column."""
        return self.numbers(name) if name in self else np.full(len(self), np.nan)

    def labels(self, name: str) -> list[str]:
        """(N,) the cells as text."""
        return [str(cell) for cell in self.columns[name]]


def read_table(path: Path) -> Table:
    """Read a table; InputError when it is empty, damaged, holds Python objects, or its columns differ in length."""
    columns = _from_npz(path) if path.suffix.lower() == ".npz" else _from_text(path)
    lengths = {name: len(column) for name, column in columns.items()}
    if not lengths or not min(lengths.values()):
        raise InputError(f"{path}: it holds no rows of cues; write it again")
    if len(set(lengths.values())) > 1:
        raise InputError(f"{path}: its columns differ in length ({lengths}); give one value a cue in each")
    return Table(path, columns)


def _from_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            columns = {name.lower().strip(): np.atleast_1d(arrays[name]) for name in arrays}
    except Exception as error:  # of many kinds: the archive's, its compression's, numpy's
        reason = str(error).splitlines()[0] if str(error) else "it ends early"
        raise InputError(f"{path}: not readable arrays of numbers ({reason}); save it with numpy.savez") from error
    return {name: column for name, column in columns.items() if column.ndim == 1}


def _from_text(path: Path) -> dict[str, NDArray[Any]]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a text table ({str(error).splitlines()[0]}); give a CSV in UTF-8") from error
    if not lines:
        raise InputError(f"{path}: the file is empty; write a header row such as u,v,depth and a row for every cue")
    header, *rows = _cells(lines)
    names = [name.strip().lower() for name in header]
    if any(_is_number(name) for name in names):
        raise InputError(f"{path}: the first row must name the columns, as in u,v,depth; it is {lines[0][:60]!r}")
    for i, row in enumerate(rows):
        if len(row) != len(names):
            raise InputError(f"{path}: row {i + 1} has {len(row)} values for {len(names)} columns; write one for each")
    cells = np.array([[cell.strip() for cell in row] for row in rows]).reshape(len(rows), len(names))
    return {name: cells[:, i] for i, name in enumerate(names)}


def _cells(lines: Sequence[str]) -> list[list[str]]:
    """Header and rows, divided by whichever of DELIMITERS the header has most of; a leading # of the header goes."""
    header = lines[0].lstrip("# ")
    delimiter = max(DELIMITERS, key=header.count)
    if delimiter not in header:
        return [line.split() for line in (header, *lines[1:])]
    return list(csv.reader([header, *lines[1:]], delimiter=delimiter, skipinitialspace=True))


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True
