"""A low-frequency log-scale field: how far one affine map is from enough, as a smooth factor over the image.

log z_true(u, v) = log z_affine(u, v) + f(u, v), f bilinear on a coarse grid. The grid is solved by penalised robust
least squares: cues pull it; where there are none, a smoothness prior on neighbouring nodes and a weak prior on the
nodes themselves hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array

from ..types import Array, FloatImage
from .robust import core_spread, tukey

NODE_SIGMA = 0.4  # prior standard deviation of the log scale of a node
STEP_SIGMA = 0.08  # prior standard deviation of the difference between adjacent nodes
FEW_DOUBTS = 0.95  # share of trusted cues above which the others cannot mislead the field
PRIOR_SHARE = 0.01  # of the prior's cost beside that of a missed cue
MISFIT = 0.1  # a cue whose log depth is missed by this or more counts as missed, when two fields are compared
CUE_FLOOR = 0.03  # a cue is never trusted further than this share of its depth: the field is not meant to follow detail
ROUNDS = 6


@dataclass(frozen=True, eq=False)
class ScaleField:
    """nodes (R, C): log scale on a grid over a width x height image; node_sigma (R, C): its standard deviation."""

    nodes: Array
    node_sigma: Array
    width: int
    height: int

    def log_scale(self) -> FloatImage:
        """(H, W) log factor of every pixel."""
        return self._upsample(self.nodes)

    def sigma(self) -> FloatImage:
        """(H, W) standard deviation of the log factor."""
        return self._upsample(self.node_sigma)

    def at(self, uv: Array) -> Array:
        """Log factor (N,) at pixels uv (N, 2)."""
        return basis(uv, self.width, self.height, self.nodes.shape) @ self.nodes.ravel()

    def sigma_at(self, uv: Array) -> Array:
        """Its standard deviation (N,) at pixels uv (N, 2)."""
        return basis(uv, self.width, self.height, self.nodes.shape) @ self.node_sigma.ravel()

    def _upsample(self, grid: Array) -> FloatImage:
        rows, columns = grid.shape
        wr = _hat((np.arange(self.height) + 0.5) / self.height, rows)  # (H, R)
        wc = _hat((np.arange(self.width) + 0.5) / self.width, columns)  # (W, C)
        return (wr @ grid @ wc.T).astype(np.float32)


def grid_shape(width: int, height: int, columns: int) -> tuple[int, int]:
    """(rows, columns) of nodes, about square cells; `columns` counts along the longer side."""
    cell = max(width, height) / (columns - 1)
    return max(2, round(height / cell) + 1), max(2, round(width / cell) + 1)


def fit_field(
    uv: Array,
    log_ratio: Array,
    sigma: Array,
    width: int,
    height: int,
    shape: tuple[int, int],
    *,
    trusted: NDArray[np.bool_] | None = None,
    least_spread: float = 1.0,
    step_sigma: float = STEP_SIGMA,
) -> ScaleField:
    """Field through log_ratio (N,) = log(z_cue / z_affine) at uv (N, 2), with relative standard deviations sigma (N,).

    IRLS with Tukey's biweight, begun from all cues and, where given, also from the `trusted` ones (N,) bool, those the
    affine fit kept; the field that more cues agree with is returned. A network that bends far has many good cues that
    no affine map meets; gross outliers draw a field that is free to follow them: neither start is safe alone.
    The spread of the residuals is re-estimated in every round; it is at least `least_spread` sigmas.
    step_sigma: prior standard deviation of the difference between adjacent nodes.
    """
    B = basis(uv, width, height, shape)  # (N, R*C), four entries a row
    prior = _prior(shape, step_sigma)  # (R*C, R*C)
    sigma = np.hypot(sigma, CUE_FLOOR)
    starts = [np.ones(len(uv), bool)]
    if trusted is not None and trusted.mean() < FEW_DOUBTS:
        starts.append(trusted)
    found = [_from_start(B, prior, log_ratio, sigma, start, least_spread) for start in starts]
    _, nodes, factor = min(found, key=lambda f: f[0])
    node_sigma = np.sqrt(np.diag(cho_solve(factor, np.eye(len(nodes)))))
    return ScaleField(nodes.reshape(shape), node_sigma.reshape(shape), width, height)


def _from_start(
    B: csr_array, prior: Array, log_ratio: Array, sigma: Array, start: NDArray[np.bool_], least_spread: float
) -> tuple[float, Array, tuple[Array, bool]]:
    """(cost, nodes, factor of the normal matrix) of the IRLS from some cues; cost: see MISFIT, PRIOR_SHARE."""
    weights = start / sigma**2
    for _ in range(ROUNDS):
        factor = cho_factor((B.T @ B.multiply(weights[:, None])).toarray() + prior)
        nodes = cho_solve(factor, B.T @ (weights * log_ratio))
        r = (log_ratio - B @ nodes) / sigma
        weights = tukey(r / max(core_spread(r, 0), least_spread)) / sigma**2
    missed = np.minimum((r * sigma / np.hypot(sigma, MISFIT)) ** 2, 1)
    cost = float(missed.sum() + PRIOR_SHARE * nodes @ prior @ nodes)
    return cost, nodes, factor


def _hat(x: Array, nodes: int) -> Array:
    """(N, nodes) linear interpolation weights of positions x in [0, 1]."""
    position = np.clip(x, 0, 1) * (nodes - 1)
    weights: Array = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(nodes)))
    return weights


def basis(uv: Array, width: int, height: int, shape: tuple[int, int]) -> csr_array:
    """(N, R*C) sparse bilinear weights of pixels uv (N, 2)."""
    row, row_share = _cell(uv[:, 1] / height, shape[0])
    column, column_share = _cell(uv[:, 0] / width, shape[1])
    nodes = [(row + i) * shape[1] + column + j for i in (0, 1) for j in (0, 1)]
    weights = [
        (row_share if i else 1 - row_share) * (column_share if j else 1 - column_share) for i in (0, 1) for j in (0, 1)
    ]
    starts = np.arange(0, 4 * len(uv) + 1, 4)
    return csr_array((np.stack(weights, 1).ravel(), np.stack(nodes, 1).ravel(), starts), (len(uv), shape[0] * shape[1]))


def _cell(x: Array, nodes: int) -> tuple[NDArray[np.int64], Array]:
    """First node (N,) of the cell that holds each position x in [0, 1], and how far into the cell it lies, 0..1."""
    position = np.clip(x, 0, 1) * (nodes - 1)
    first = np.minimum(position.astype(np.int64), nodes - 2)
    return first, position - first


@lru_cache(maxsize=8)
def _prior(shape: tuple[int, int], step_sigma: float = STEP_SIGMA) -> Array:
    """(R*C, R*C) precision of the smoothness and the node prior."""
    return differences(shape) / step_sigma**2 + np.eye(shape[0] * shape[1]) / NODE_SIGMA**2


def differences(shape: tuple[int, int]) -> Array:
    """(R*C, R*C) D^T D of the differences D between adjacent nodes."""
    index = np.arange(shape[0] * shape[1]).reshape(shape)
    pairs = np.concatenate(
        [
            np.stack([index[1:].ravel(), index[:-1].ravel()], 1),
            np.stack([index[:, 1:].ravel(), index[:, :-1].ravel()], 1),
        ]
    )
    D = np.zeros((len(pairs), index.size))
    D[np.arange(len(pairs)), pairs[:, 0]] = 1
    D[np.arange(len(pairs)), pairs[:, 1]] = -1
    return D.T @ D
