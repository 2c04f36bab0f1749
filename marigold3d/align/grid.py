"""The joint solve's view of a frame: its values on a coarse grid of samples, and the model that makes depth of them.

    log z(p) = log y^-1(scale * v(p) + shift) + B(p) nodes        y(z): the network's domain

Values v are first brought to about 0..1 by one map for the whole clip, so that scales and shifts compare. The
unknowns of a frame are (log scale, shift, nodes): positive scales come by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..types import Array, Domain, RelativeDepth
from .field import basis, grid_shape

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SampleGrid:
    """rows x columns samples of a width x height depth map; nodes: shape (R, C) of the log-scale field's grid."""

    width: int
    height: int
    rows: int
    columns: int
    nodes: tuple[int, int]

    @classmethod
    def of(cls, width: int, height: int, longest: int, node_columns: int) -> SampleGrid:
        """About square cells, `longest` along the longer side, at most one a pixel; 1 node column: no field."""
        cell = max(1.0, max(width, height) / longest)
        return cls(
            width,
            height,
            max(2, round(height / cell)),
            max(2, round(width / cell)),
            grid_shape(width, height, node_columns) if node_columns > 1 else (0, 0),
        )

    def __len__(self) -> int:
        return self.rows * self.columns

    @property
    def unknowns(self) -> int:
        return 2 + self.nodes[0] * self.nodes[1]

    @cached_property
    def pixels(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Row (rows,) and column (columns,) of the pixel that stands for each cell."""
        rows = ((np.arange(self.rows) + 0.5) * self.height / self.rows).astype(np.intp)
        columns = ((np.arange(self.columns) + 0.5) * self.width / self.columns).astype(np.intp)
        return rows, columns

    @cached_property
    def uv(self) -> Array:
        """(N, 2) pixel coordinates of the samples, row by row."""
        rows, columns = self.pixels
        return np.stack(np.meshgrid(columns + 0.5, rows + 0.5), -1).reshape(-1, 2)

    @cached_property
    def cells(self) -> Float32:
        """(2, N) the samples' positions in cells: column, row."""
        return np.ascontiguousarray((self.uv * (self.columns / self.width, self.rows / self.height)).T, np.float32)

    @cached_property
    def _off_centre(self) -> tuple[np.float32, np.float32]:
        """How far the samples lie from the middle of their cells, on average: column, row."""
        rows, columns = self.pixels
        along = (columns + 0.5) * self.columns / self.width - np.arange(self.columns) - 0.5
        down = (rows + 0.5) * self.rows / self.height - np.arange(self.rows) - 0.5
        return np.float32(along.mean()), np.float32(down.mean())

    def nearest(self, column: Float32, row: Float32) -> NDArray[np.intp]:
        """(M,) samples nearest to positions in cells, all within the grid.

        Those in the same cells would lie to one side where a cell has an even number of pixels, and the noise of a
        surface's slope would then enter residual and gain together, which pushes depth away by percents.
        """
        along, down = self._off_centre
        columns = np.clip(np.floor(column - along).astype(np.intp), 0, self.columns - 1)
        rows = np.clip(np.floor(row - down).astype(np.intp), 0, self.rows - 1)
        return rows * self.columns + columns

    @cached_property
    def basis(self) -> Float32:
        """(N, R*C) dense weights of the field's nodes at the samples."""
        return self.basis_at(self.uv)

    def basis_at(self, uv: Array) -> Float32:
        """(M, R*C) dense weights of the field's nodes at pixels (M, 2)."""
        if self.unknowns == 2:
            return np.zeros((len(uv), 0), np.float32)
        return np.asarray(basis(uv, self.width, self.height, self.nodes).toarray(), np.float32)

    def samples(self, relative: RelativeDepth) -> Float32:
        """(N,) relative values; NaN where there is no estimate."""
        return relative.values[np.ix_(*self.pixels)].ravel()


@dataclass(frozen=True)
class ValueRange:
    """v' = (v - low) / spread: the one map that brings a clip's values to about 0..1 (log depth is left unscaled)."""

    low: float
    spread: float

    @classmethod
    def of(cls, values: Float32, domain: Domain) -> ValueRange:
        """From samples of all frames (T, N): medians over frames of their 2 % and 98 % quantiles."""
        with np.errstate(invalid="ignore"):
            low, high = np.nanpercentile(values, (2, 98), axis=1)
        low, high = float(np.nanmedian(low)), float(np.nanmedian(high))
        return cls(low, 1.0 if domain == "log_depth" else max(high - low, 1e-12))

    def normalised(self, values: Float32) -> Float32:
        return ((values - np.float32(self.low)) / np.float32(self.spread)).astype(np.float32)

    def original(self, scale: float, shift: float, covariance: Array) -> tuple[float, float, Array]:
        """Scale, shift and their covariance (2, 2) for v, from those for v'."""
        turn = np.array([[1 / self.spread, 0.0], [-self.low / self.spread, 1.0]])
        scale, shift = turn @ (scale, shift)
        return float(scale), float(shift), turn @ covariance @ turn.T


def log_depth(v: Float32, theta: Array, domain: Domain, least_y: float = 0.0) -> Float32:
    """log z (N,) of values v (N,) before the field; NaN outside the domain.

    theta: (log scale, shift, ...). A y of `least_y` or less has no depth.
    """
    y = np.float32(np.exp(theta[0])) * v + np.float32(theta[1])
    if domain == "log_depth":
        return y
    with np.errstate(invalid="ignore", divide="ignore"):
        log_y = np.log(np.where(y > least_y, y, np.float32(np.nan)))
    return -log_y if domain == "disparity" else log_y


def slopes(v: Float32, theta: Array, domain: Domain, log_step: Float32 | float = 0.0) -> tuple[Float32, Float32]:
    """Derivatives (N,) of `log_depth` by log scale and by shift, at log depths `log_step` away from its own."""
    t = np.float32(theta[1])
    y = np.float32(np.exp(theta[0])) * v + t
    if domain == "log_depth":
        y = y + log_step
        return y - t, np.ones_like(y)
    sign = np.float32(-1 if domain == "disparity" else 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        inverse = sign / (y * np.exp(sign * log_step))
    return sign - t * inverse, inverse
