"""Whether a clip shows more than a camera that turned on the spot.

With the focal length free, a turn on the spot can be mistaken for a walk past a distant wall: bundle adjustment bends
focal length and distortion until rays meet under honest-looking angles. So the simpler story is tried first: one focal
length and a rotation for each pair of frames. Where that explains the points' motion, there is no depth to be had.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from ..camera import project
from ..rigid import inverse, transform
from ..types import Array
from .sparse import SparseModel

MIN_COMMON = 30  # points two frames share, or the pair says nothing
PAIRS = 16  # looked at, the widest apart
FOCALS = np.geomspace(0.4, 4.0, 40)  # tried, as shares of the image width
EXPLAINED = 0.0015  # of the image width: points that a rotation carries this close need no other explanation


def explained_by_turning(model: SparseModel) -> bool:
    """Whether a camera that only turned would have seen the model's points move as they did."""
    pairs = _widest_pairs(model)
    if not pairs:
        return False
    return min(_turning_error(f, pairs) for f in FOCALS) < EXPLAINED


def _widest_pairs(model: SparseModel) -> list[tuple[Array, Array]]:
    """For up to PAIRS pairs of frames that share points, their pixels (N, 2) from the image centre, over its width."""
    shape = (len(model.frames), len(model.points))
    seen = np.ones(len(model.seen_frame), np.int32), (model.seen_frame, model.seen_point)
    sees = csr_matrix(seen, shape)
    i, j = np.nonzero(np.triu((sees @ sees.T).toarray(), 1) >= MIN_COMMON)
    widest = np.argsort(i - j, kind="stable")[:PAIRS]
    pairs = []
    for a, b in zip(i[widest], j[widest], strict=True):
        ids = np.intersect1d(sees[a].indices, sees[b].indices)
        first, second = (_centred(model, frame, ids) for frame in (a, b))
        good = np.isfinite(first).all(1) & np.isfinite(second).all(1)
        pairs.append((first[good], second[good]))
    return pairs


def _centred(model: SparseModel, frame: int, ids: Array) -> Array:
    c = model.camera
    uv = project(transform(inverse(model.T_world_camera[frame]), model.points[ids]), c)
    centred: Array = (uv - [c.cx, c.cy]) / c.width
    return centred


def _turning_error(f: float, pairs: list[tuple[Array, Array]]) -> float:
    """Median over the pairs of the median distance that the best rotation leaves, share of the image width."""
    errors = []
    for first, second in pairs:
        a, b = (np.concatenate([xy / f, np.ones((len(xy), 1))], 1) for xy in (first, second))  # (N, 3) rays
        unit_a, unit_b = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in (a, b))
        U, _, Vt = np.linalg.svd(unit_b.T @ unit_a)  # Kabsch
        turned = a @ (U @ np.diag([1.0, 1.0, np.linalg.det(U @ Vt)]) @ Vt).T
        errors.append(np.median(np.linalg.norm(f * turned[:, :2] / turned[:, 2:] - second, axis=1)))
    return float(np.median(errors))
