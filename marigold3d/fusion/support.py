"""Stray points: what is left in the air after all views have been asked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

REACH = 3.0  # voxels: a surface this wide around a point holds about 28 of them, a line 6
NEIGHBOURS = 10  # that must lie within reach


def supported(points: NDArray[np.float32], voxel: float) -> NDArray[np.bool_]:
    """(N,) True for points (N, 3) that have at least NEIGHBOURS others within REACH voxels."""
    if len(points) <= NEIGHBOURS:
        return np.ones(len(points), bool)
    reach = REACH * voxel
    distance, _ = cKDTree(points).query(points, k=[NEIGHBOURS + 1], distance_upper_bound=reach, workers=-1)
    return np.isfinite(distance[:, 0])
