"""Which samples of two frames show the same surface, and how far their depths disagree.

Where poses are known, a sample is moved by its own depth into the other frame (projective association, as in ICP); the
residual is its log depth there minus the other frame's, read off that frame's local plane, so that slanted surfaces
cost nothing (point-to-plane). Where poses are not known, optical flow says where a sample went, and its depth is taken
to stay what it was. A sample that ends behind the other frame's surface is hidden there and says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..camera import distort, normalised
from ..types import Array, Intrinsics
from .grid import Float32, SampleGrid
from .robust import mad

EDGE = 0.15  # log-depth step between neighbouring samples that marks a depth edge


@dataclass(frozen=True, eq=False)
class Surface:
    """A frame's current log depth on the grid (N,), its slope per cell (2, N), and where both can be relied on (N,)."""

    log_z: Float32
    slope: Float32
    smooth: NDArray[np.bool_]
    noise: float = 0.0  # standard deviation of log depth from sample to sample, without what is smooth

    @classmethod
    def of(cls, log_z: Float32, grid: SampleGrid) -> Surface:
        """Slopes by central differences; samples beside an edge or a gap are not smooth."""
        image = np.pad(log_z.reshape(grid.rows, grid.columns), 1, "edge")
        slope = np.empty((2, grid.rows, grid.columns), np.float32)
        np.subtract(image[1:-1, 2:], image[1:-1, :-2], out=slope[0])
        np.subtract(image[2:, 1:-1], image[:-2, 1:-1], out=slope[1])
        slope *= np.float32(0.5)
        with np.errstate(invalid="ignore"):
            smooth = (np.abs(slope[0]) < EDGE) & (np.abs(slope[1]) < EDGE) & np.isfinite(image[1:-1, 1:-1])
        bend = image[1:-1, 2:] - 2 * image[1:-1, 1:-1] + image[1:-1, :-2]
        some = bend[smooth][::3]
        return cls(log_z, slope.reshape(2, -1), smooth.ravel(), mad(some) / np.sqrt(6) if len(some) else 0.0)


@dataclass(frozen=True, eq=False)
class Residuals:
    """M samples `source` of frame i that meet samples `target` of frame j.

    residual (M,): log depth of i's sample in j minus j's log depth there; gain (M,): its derivative by i's log depth
    (by j's it is -1, j's slope being held). floor: log depth by which the two may differ rightly.
    """

    source: NDArray[np.intp]
    target: NDArray[np.intp]
    residual: Float32
    gain: Float32
    floor: float = 0.0


class Rays:
    """Rays of the samples, and the projection back onto the grid."""

    def __init__(self, camera: Intrinsics, grid: SampleGrid) -> None:
        xy = normalised(grid.uv, camera)
        self.rays = np.stack([xy[:, 0], xy[:, 1], np.ones(len(xy))]).astype(np.float32)  # (3, N)
        self._camera = camera if camera.distortion is not None else None
        cell = grid.width / grid.columns, grid.height / grid.rows
        self.focal = np.float32(camera.fx / cell[0]), np.float32(camera.fy / cell[1])
        self.centre = np.float32(camera.cx / cell[0]), np.float32(camera.cy / cell[1])

    def cells(self, x: Float32, y: Float32) -> tuple[Float32, Float32]:
        """Grid cells (column, row) of image-plane coordinates."""
        if self._camera is not None:
            x, y = np.moveaxis(distort(np.stack([x, y], -1), self._camera), -1, 0)
        return self.focal[0] * x + self.centre[0], self.focal[1] * y + self.centre[1]


def by_pose(
    i: Surface, j: Surface, T_j_i: Array, rays: Rays, grid: SampleGrid, hidden: float, every: int = 1
) -> Residuals:
    """Samples of i, every n-th, moved into j by the pose T_j_i (4, 4).

    `hidden`: how far behind j's surface, in log depth, means occluded.
    """
    T = T_j_i.astype(np.float32)
    a = T[:3, :3] @ rays.rays[:, ::every]  # (3, N)
    log_z = i.log_z[::every]
    z = np.exp(log_z)
    X, Y, Z = (a[k] * z + T[k, 3] for k in range(3))
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = X / Z, Y / Z
        column, row = rays.cells(x, y)
        seen = (
            i.smooth[::every]
            & (1e-3 * z < Z)
            & (column >= 0)
            & (column < grid.columns)
            & (row >= 0)
            & (row < grid.rows)
        )
    source = np.flatnonzero(seen)
    column, row = column[source], row[source]
    target = grid.nearest(column, row)
    q = z[source] / Z[source]
    residual = np.log(Z[source]) - _plane(j, target, column, row, grid)
    # d(cell)/d(log z): the sample slides along its epipolar line, and j's plane is read elsewhere.
    slide = j.slope[0][target] * rays.focal[0] * (a[0, source] - x[source] * a[2, source])
    slide += j.slope[1][target] * rays.focal[1] * (a[1, source] - y[source] * a[2, source])
    gain = q * (a[2, source] - slide)
    return _kept(source * every, target, residual, gain, j, hidden)


def by_flow(
    i: Surface,
    j: Surface,
    cells: Float32,
    seen: NDArray[np.bool_],
    grid: SampleGrid,
    every: int = 1,
    floor: float = 0.0,
) -> Residuals:
    """Samples of i, every n-th, that flow says went to `cells` (2, N) of j where `seen` (N,); their depth stays."""
    inside = (cells >= 0).all(0) & (cells[0] < grid.columns) & (cells[1] < grid.rows)
    source = every * np.flatnonzero((seen & i.smooth & inside)[::every])
    column, row = cells[:, source]
    target = grid.nearest(column, row)
    residual = i.log_z[source] - _plane(j, target, column, row, grid)
    return replace(_kept(source, target, residual, np.ones_like(residual), j, np.inf), floor=floor)


def _plane(j: Surface, target: NDArray[np.intp], column: Float32, row: Float32, grid: SampleGrid) -> Float32:
    """j's log depth at (column, row), from the plane through its sample `target`."""
    along, down = grid.cells[0][target], grid.cells[1][target]
    return j.log_z[target] + j.slope[0][target] * (column - along) + j.slope[1][target] * (row - down)


def _kept(
    source: NDArray[np.intp],
    target: NDArray[np.intp],
    residual: Float32,
    gain: Float32,
    j: Surface,
    hidden: float,
) -> Residuals:
    with np.errstate(invalid="ignore"):
        keep = j.smooth[target] & (residual < hidden) & np.isfinite(residual)
    return Residuals(source[keep], target[keep], residual[keep], gain[keep])
