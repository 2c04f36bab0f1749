"""Confidence-weighted voxel fusion on numpy alone. It grows with the scene, not with the number of frames."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import GeometryError
from ..types import Array, PointCloud, Units
from .blocks import HALF, packed

MERGE_ROWS = 1_000_000  # rows gathered between two merges into the table
COLUMNS = 10  # weight, then weighted xyz, rgb, normal


@dataclass(frozen=True, eq=False)
class _Table:
    """A row a voxel, sorted by key: keys (N,), sums (COLUMNS, N), observations (N,), best sigma, its frame (N,)."""

    keys: NDArray[np.int64]
    sums: NDArray[np.float64]
    observations: NDArray[np.int32]
    best_sigma: NDArray[np.float32]
    best_frame: NDArray[np.int32]


class VoxelGrid:
    """Gathers points frame by frame; `cloud` gives one point a voxel: the mean weighted by 1/sigma^2.

    Sigma of a voxel is that of the mean, but at least half the best observation's: the errors of neighbouring frames
    share network and poses and do not average out.
    """

    def __init__(self, voxel: float) -> None:
        if not voxel > 0:
            raise GeometryError(f"the voxel size must be positive, got {voxel}")
        self.voxel = voxel
        self._table = _empty()
        self._pending: list[_Table] = []
        self._pending_rows = 0

    def add(
        self,
        points: NDArray[np.float32],
        colors: NDArray[np.uint8],
        normals: NDArray[np.float32],
        sigma: NDArray[np.float32],
        frame_index: int,
    ) -> None:
        """One frame's world points (N, 3), colours (N, 3), unit normals (N, 3) and sigma (N,)."""
        if len(points) == 0:
            return
        w = 1 / np.maximum(sigma.astype(float), 1e-12) ** 2
        rows = np.concatenate([np.ones((1, len(points))), points.T, colors.T, normals.T]) * w
        n = len(points)
        pixels = _Table(
            self._keys(points), rows, np.ones(n, np.int32), sigma.astype(np.float32), np.full(n, frame_index, np.int32)
        )
        cells = _merge([pixels])
        # Pixels of one frame in one voxel are one observation with their mean weight, however many there are.
        one = np.ones_like(cells.observations)
        self._pending.append(replace(cells, sums=cells.sums / cells.observations, observations=one))
        self._pending_rows += len(one)
        if self._pending_rows > MERGE_ROWS:
            self._flush()

    def cloud(self, min_observations: int = 1, units: Units = "arbitrary") -> PointCloud:
        """The fused points seen by at least `min_observations` frames."""
        self._flush()
        t = self._table
        keep = t.observations >= min_observations
        weight = t.sums[0, keep]

        def mean(first: int) -> Array:
            return np.ascontiguousarray((t.sums[first : first + 3, keep] / weight).T)

        normals = mean(7)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        sigma = np.maximum(1 / np.sqrt(weight), 0.5 * t.best_sigma[keep])
        return PointCloud(
            mean(1).astype(np.float32),
            np.clip(mean(4) + 0.5, 0, 255).astype(np.uint8),
            normals.astype(np.float32),
            sigma.astype(np.float32),
            t.observations[keep],
            t.best_frame[keep],
            units,
        )

    def _keys(self, points: NDArray[np.float32]) -> NDArray[np.int64]:
        cell = np.floor(points.astype(float) / self.voxel).astype(np.int64)
        if np.abs(cell).max() >= HALF:
            raise GeometryError(f"a voxel of {self.voxel:.3g} is too small for a scene this large: raise --voxel")
        return packed(cell)

    def _flush(self) -> None:
        if self._pending:
            self._table = _merge([self._table, *self._pending])
            self._pending, self._pending_rows = [], 0


def _empty() -> _Table:
    return _Table(
        np.zeros(0, np.int64),
        np.zeros((COLUMNS, 0)),
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
        np.zeros(0, np.int32),
    )


def _starts(sorted_keys: NDArray[np.int64]) -> NDArray[np.intp]:
    return np.flatnonzero(np.append(True, sorted_keys[1:] != sorted_keys[:-1]))


def _merge(tables: list[_Table]) -> _Table:
    """One row a key: sums and observations added, the lowest sigma's frame kept."""
    keys = np.concatenate([t.keys for t in tables])
    if len(keys) == 0:
        return _empty()
    sigma = np.concatenate([t.best_sigma for t in tables])
    order = np.lexsort((sigma, keys))  # the best observation of a voxel comes first
    keys = keys[order]
    starts = _starts(keys)
    first = order[starts]
    sums = np.empty((COLUMNS, len(starts)))
    for i in range(COLUMNS):  # column by column: all at once would take three copies of the table
        np.add.reduceat(np.concatenate([t.sums[i] for t in tables])[order], starts, out=sums[i])
    return _Table(
        keys[starts],
        sums,
        np.add.reduceat(np.concatenate([t.observations for t in tables])[order], starts).astype(np.int32),
        sigma[first],
        np.concatenate([t.best_frame for t in tables])[first],
    )
