"""Level of detail: which points of a large cloud to show, so that any number of them covers it evenly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .types import Array

LEVELS = 20  # halvings of the cloud's extent; three bits each must fit into 64
SEED = 0  # decides between points of one cell


def progressive_order(points: NDArray[np.floating]) -> NDArray[np.int64]:
    """(N,) the points (N, 3) from coarse to fine: the first n are one a cell of an octree, as fine as n allows.

    Octree cells along a Morton curve (Morton 1966): in that order a point is the first of its cell at exactly those
    levels at which its code differs from the one before.
    """
    n = len(points)
    if n == 0:
        return np.zeros(0, np.int64)
    shuffled = np.random.default_rng(SEED).permutation(n)
    code = _morton(points[shuffled])
    curve = np.argsort(code, kind="stable")
    sorted_code = code[curve]
    differs = sorted_code[1:] ^ sorted_code[:-1]
    # The highest bit in which neighbours differ, in threes, says how coarse a cell the point begins; 0: the same cell.
    level = np.zeros(n, np.int64)
    level[0] = LEVELS + 1
    level[1:] = (_bit_length(differs) + 2) // 3
    return np.asarray(shuffled[_shuffled_by_level(curve, level)])


def _shuffled_by_level(curve: NDArray[np.int64], level: NDArray[np.int64]) -> NDArray[np.int64]:
    """Coarsest first; within a level in random order, so that a prefix that ends inside one is even too."""
    rows = np.random.default_rng(SEED).permutation(len(curve))
    return np.asarray(curve[rows[np.argsort(-level[rows], kind="stable")]])


def nearby(points: NDArray[np.floating], centre: Array, direction: Array | None, radius: float) -> NDArray[np.bool_]:
    """(N,) which points (N, 3) lie within `radius` of the line through `centre` along `direction`.

    None for the direction: within `radius` of the centre.
    """
    offset = points - np.asarray(centre, np.float32)
    squared = np.einsum("ij,ij->i", offset, offset)
    if direction is not None:
        axis = np.asarray(direction, np.float32) / np.float32(np.linalg.norm(direction))
        squared = squared - (offset @ axis) ** 2
    return np.asarray(squared <= radius**2)


def _morton(points: NDArray[np.floating]) -> NDArray[np.uint64]:
    """(N,) interleaved bits of each point's cell at the finest level, in a cube around the cloud."""
    low = points.min(0).astype(np.float64)
    side = max(float((points.max(0) - low).max()), 1e-12)
    cells = np.minimum((points - low) / side * 2**LEVELS, 2**LEVELS - 1).astype(np.uint64)
    code = np.zeros(len(points), np.uint64)
    for axis in range(3):
        code |= _spread(cells[:, axis]) << np.uint64(axis)
    return code


def _spread(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Put two zero bits between neighbouring bits of 21-bit numbers."""
    for shift, mask in (
        (32, 0x001F00000000FFFF),
        (16, 0x001F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        values = (values | (values << np.uint64(shift))) & np.uint64(mask)
    return values


def _bit_length(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(N,) position of the highest set bit, counted from one; 0 for 0."""
    high, low = (values >> np.uint64(32)).astype(np.float64), (values & np.uint64(0xFFFFFFFF)).astype(np.float64)
    # frexp is exact for the 32-bit halves; for 64 bits at once rounding could lift a number over a power of two.
    return np.where(high > 0, np.frexp(high)[1] + 32, np.frexp(low)[1]).astype(np.int64)
