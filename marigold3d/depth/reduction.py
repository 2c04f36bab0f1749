"""Centre and spread of a few maps at every pixel: mean and standard deviation, or median and median deviation.

A median wants a sort at each of half a million pixels, of ten numbers or so. Sorting routines are made for one long
row; here whole maps go through the comparators of a sorting network, each of which is one minimum and one maximum of
two maps. The sorted maps then hold the median of the deviations too: see `_median_deviation`.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import Array, FloatImage

Reduction = Literal["median", "mean"]

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution, in median absolute deviations."""

_BLOCK_PX = 8192
"""Pixels reduced together: few enough for a core's cache, many enough to hide the cost of a call."""


def reduce_ensemble(
    maps: FloatImage, reduction: Reduction = "median", scale: Array | None = None, shift: Array | None = None
) -> tuple[FloatImage, FloatImage]:
    """Centre and one-sigma spread (H, W) float32 of maps (N, H, W), or of `scale[i] * maps[i] + shift[i]`.

    "median": the spread is 1.4826 times the median absolute deviation; "mean": the standard deviation, that of a sample
    (N - 1). Of a single map it is zero. Raises InputError for any other name.
    """
    if reduction not in ("median", "mean"):
        raise InputError(f"unknown ensemble reduction {reduction!r}: use 'median' or 'mean'")
    one_block = _median if reduction == "median" else _mean
    rows = maps.reshape(len(maps), -1)  # (N, pixels)
    factors = np.ones(len(maps), np.float32) if scale is None else scale.astype(np.float32)
    offsets = np.zeros(len(maps), np.float32) if shift is None else shift.astype(np.float32)
    centre, spread = np.empty((2, rows.shape[1]), np.float32)
    for begin in range(0, rows.shape[1], _BLOCK_PX):
        block = slice(begin, begin + _BLOCK_PX)
        aligned = rows[:, block].astype(np.float32)
        aligned *= factors[:, None]
        aligned += offsets[:, None]
        centre[block], spread[block] = one_block(aligned)
    return centre.reshape(maps.shape[1:]), spread.reshape(maps.shape[1:])


def _mean(x: FloatImage) -> tuple[FloatImage, FloatImage]:
    """Over the first axis of x (N, pixels)."""
    return x.mean(axis=0), x.std(axis=0, ddof=min(1, len(x) - 1))


def _median(x: FloatImage) -> tuple[FloatImage, FloatImage]:
    """Over the first axis of x (N, pixels)."""
    rows = sort_rows(list(x))
    half = len(rows) // 2
    centre = rows[half] if len(rows) % 2 else 0.5 * (rows[half - 1] + rows[half])
    return centre, np.float32(MAD_TO_SIGMA) * _median_deviation(rows, centre)


def _median_deviation(rows: list[FloatImage], centre: FloatImage) -> FloatImage:
    """Median of |rows[i] - centre|, rows sorted at every pixel."""
    n = len(rows)
    below, above = [centre - row for row in rows], [row - centre for row in rows]
    if n % 2:
        return _smallest_deviation(below, above, n // 2 + 1)
    return 0.5 * (_smallest_deviation(below, above, n // 2) + _smallest_deviation(below, above, n // 2 + 1))


def _smallest_deviation(below: list[FloatImage], above: list[FloatImage], k: int) -> FloatImage:
    """The k-th smallest distance from the centre: the k nearest of sorted values are neighbours, one of k-windows, and
    the farther end of a window is its largest distance.
    """
    best = np.maximum(below[0], above[k - 1])
    for first in range(1, len(below) - k + 1):
        np.minimum(best, np.maximum(below[first], above[first + k - 1]), out=best)
    return best


def sort_rows(rows: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Rows of the same numbers, rising at every position. The given arrays are overwritten."""
    spare = np.empty_like(rows[0])
    for low, high in comparators(len(rows)):
        np.minimum(rows[low], rows[high], out=spare)
        np.maximum(rows[low], rows[high], out=rows[high])
        rows[low], spare = spare, rows[low]
    return rows


@cache
def comparators(n: int) -> tuple[tuple[int, int], ...]:
    """(low, high) pairs of Batcher's merge exchange for n inputs (Knuth, TAOCP vol. 3, 5.2.2, algorithm M): putting
    the smaller of each pair at `low`, in this order, sorts anything.
    """
    pairs: list[tuple[int, int]] = []
    top = 1 << max(n - 1, 1).bit_length() - 1  # the largest power of two below n
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return tuple(pairs)
