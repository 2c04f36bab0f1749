"""Block-tridiagonal normal equations: what a clip's joint solve comes to when no link is longer than a block.

Frames are taken together in blocks as long as the longest link, so that a block is tied to its two neighbours only.
Block Cholesky then takes time and memory in proportion to the clip, and its backward pass gives the covariances (the
Rauch-Tung-Striebel smoother in information form). Blocks are dense: a general sparse factorisation fills the same band.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular

from ..errors import GeometryError
from ..types import Array

UNDETERMINED = "the clip's joint alignment is not determined by its cues, links and priors"


@dataclass(eq=False)
class BlockSystem:
    """H x = g with H symmetric positive definite.

    diagonal: K blocks (m_k, m_k); coupling: K - 1 blocks (m_k, m_k+1) above the diagonal; right: K vectors (m_k,).
    """

    diagonal: list[Array]
    coupling: list[Array]
    right: list[Array]

    @classmethod
    def zeros(cls, sizes: list[int]) -> BlockSystem:
        """An empty system of blocks of these sizes."""
        return cls(
            [np.zeros((n, n)) for n in sizes],
            [np.zeros((n, m)) for n, m in pairwise(sizes)],
            [np.zeros(n) for n in sizes],
        )


@dataclass(frozen=True, eq=False)
class BlockFactor:
    """Cholesky factor L of S H S with S = diag(scale), which makes its diagonal one.

    lower: triangles (m_k, m_k); above: the eliminated couplings (m_k, m_k+1); scale: vectors (m_k,).
    """

    lower: list[Array]
    above: list[Array]
    scale: list[Array]

    def solve(self, right: list[Array]) -> list[Array]:
        """x of H x = right; `right` holds K arrays (m_k, n)."""
        y: list[Array] = []
        for k, L in enumerate(self.lower):
            part = (right[k] * self.scale[k][:, None]).astype(L.dtype)
            y.append(_forward(L, part - self.above[k - 1].T @ y[-1] if k else part))
        x = [_backward(self.lower[-1], y[-1])]
        for L, U, part in zip(self.lower[-2::-1], self.above[::-1], y[-2::-1], strict=True):
            x.append(_backward(L, part - U @ x[-1]))
        return [part.astype(float) * s[:, None] for part, s in zip(x[::-1], self.scale, strict=True)]

    def covariance_blocks(self) -> Iterator[Array]:
        """Diagonal blocks (m_k, m_k) of H^-1, the last first."""
        inner: Array | None = None
        for k in range(len(self.lower) - 1, -1, -1):
            L = self.lower[k]
            own = cho_solve((L, True), np.eye(len(L), dtype=L.dtype), check_finite=False)
            if inner is not None:
                gain = _backward(L, self.above[k])  # (m_k, m_k+1)
                own = own + gain @ inner @ gain.T
            inner = own
            yield own * np.outer(self.scale[k], self.scale[k])


def _scaled(H: Array, rows: Array, columns: Array, dtype: type) -> Array:
    out: Array = (H * rows[:, None]).astype(dtype)
    out *= columns.astype(dtype)
    return out


def _forward(L: Array, b: Array) -> Array:
    return np.asarray(solve_triangular(L, b, lower=True, check_finite=False))


def _backward(L: Array, b: Array) -> Array:
    return np.asarray(solve_triangular(L, b, lower=True, trans="T", check_finite=False))


def factorise(system: BlockSystem, dtype: type = np.float32) -> BlockFactor:
    """Block Cholesky, H = L L^T. Raises GeometryError when H is not positive definite.

    In single precision by default, twice as fast: g is exact, so a step that is a little off costs nothing but itself.
    """
    if not all(np.all(np.diag(D) > 0) for D in system.diagonal):  # also where it is NaN, which LAPACK would not mind
        raise GeometryError(UNDETERMINED)
    scale: list[Array] = [1 / np.sqrt(np.diag(D)) for D in system.diagonal]
    lower: list[Array] = []
    above: list[Array] = []
    for k, D in enumerate(system.diagonal):
        rest: Array = _scaled(D, scale[k], scale[k], dtype)
        if k:
            rest -= above[-1].T @ above[-1]
        try:
            lower.append(cholesky(rest, lower=True, overwrite_a=True, check_finite=False))
        except LinAlgError:
            raise GeometryError(UNDETERMINED) from None
        if k < len(system.coupling):
            above.append(_forward(lower[-1], _scaled(system.coupling[k], scale[k], scale[k + 1], dtype)))
    return BlockFactor(lower, above, scale)


def eliminate_before(system: BlockSystem, block: int) -> tuple[Array, Array]:
    """(H, g) that the blocks before `block` leave for it: their Schur complement, the seam between two windows."""
    n = len(system.right[block])
    if block == 0:
        return np.zeros((n, n)), np.zeros(n)
    before = BlockSystem(system.diagonal[:block], system.coupling[: block - 1], system.right[:block])
    coupling = [np.zeros((len(r), n)) for r in before.right[:-1]] + [system.coupling[block - 1]]
    both = [np.concatenate([c, r[:, None]], 1) for c, r in zip(coupling, before.right, strict=True)]
    last = factorise(before, np.float64).solve(both)[-1]  # (m, n + 1): what the blocks before would do
    U = system.coupling[block - 1]
    return system.diagonal[block] - U.T @ last[:, :-1], system.right[block] - U.T @ last[:, -1]


def solve_constrained(factor: BlockFactor, right: list[Array], constraints: list[Array]) -> list[Array]:
    """x (m_k,) that minimises x^T H x / 2 - right^T x with C^T x = 0; `constraints`: K arrays (m_k, n) of C's rows."""
    n = constraints[0].shape[1]
    solved = factor.solve([np.concatenate([r[:, None], c], 1) for r, c in zip(right, constraints, strict=True)])
    x, X = [s[:, 0] for s in solved], [s[:, 1:] for s in solved]
    if n == 0:
        return x
    inner = sum(c.T @ part for c, part in zip(constraints, X, strict=True))
    off = sum(c.T @ part for c, part in zip(constraints, x, strict=True))
    multiplier = np.linalg.solve(np.asarray(inner), np.asarray(off))
    return [part - columns @ multiplier for part, columns in zip(x, X, strict=True)]
