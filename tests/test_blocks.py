"""Block-tridiagonal systems: whatever the block form says, the dense matrix says too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marigold3d.align.blocks import BlockSystem, eliminate_before, factorise, solve_constrained
from marigold3d.errors import GeometryError

seeds = st.integers(0, 2**32 - 1)
block_sizes = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def random_system(sizes: list[int], seed: int, spread: float = 1.0) -> BlockSystem:
    """Symmetric positive definite: J^T J of rows that touch two adjacent blocks; units that differ by e^spread."""
    rng = np.random.default_rng(seed)
    system = BlockSystem.zeros(sizes)
    unit = [np.exp(spread * rng.normal(size=n)) for n in sizes]
    for k, n in enumerate(sizes):
        own = rng.normal(size=(n + 2, n))
        system.diagonal[k] += own.T @ own + 0.3 * np.eye(n)
        system.right[k] += rng.normal(size=n) * unit[k]
    for k in range(len(sizes) - 1):
        a, b = (rng.normal(size=(4, n)) for n in sizes[k : k + 2])
        system.diagonal[k] += a.T @ a
        system.diagonal[k + 1] += b.T @ b
        system.coupling[k] += a.T @ b
    for k, u in enumerate(unit):
        system.diagonal[k] *= np.outer(u, u)
    for k in range(len(sizes) - 1):
        system.coupling[k] *= np.outer(unit[k], unit[k + 1])
    return system


def dense(system: BlockSystem) -> tuple[np.ndarray, np.ndarray]:
    """(H, g)."""
    starts = np.cumsum([0, *(len(g) for g in system.right)])
    H = np.zeros((starts[-1], starts[-1]))
    for k, D in enumerate(system.diagonal):
        H[starts[k] : starts[k + 1], starts[k] : starts[k + 1]] = D
    for k, U in enumerate(system.coupling):
        H[starts[k] : starts[k + 1], starts[k + 1] : starts[k + 2]] = U
        H[starts[k + 1] : starts[k + 2], starts[k] : starts[k + 1]] = U.T
    return H, np.concatenate(system.right)


def split(columns: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(columns, np.cumsum(sizes)[:-1])


@settings(deadline=None, max_examples=60)
@given(sizes=block_sizes, seed=seeds, columns=st.integers(1, 3))
def test_it_solves_what_the_dense_matrix_solves(sizes: list[int], seed: int, columns: int) -> None:
    system = random_system(sizes, seed)
    H, _ = dense(system)
    right = np.random.default_rng(seed).normal(size=(sum(sizes), columns))
    found = np.concatenate(factorise(system, np.float64).solve(split(right, sizes)))
    np.testing.assert_allclose(H @ found, right, atol=1e-8 * np.abs(H).max() * np.abs(found).max())
    np.testing.assert_allclose(found, np.linalg.solve(H, right), rtol=1e-6, atol=1e-9 * np.abs(found).max())


@settings(deadline=None, max_examples=60)
@given(sizes=block_sizes, seed=seeds)
def test_covariances_are_the_diagonal_blocks_of_the_inverse(sizes: list[int], seed: int) -> None:
    system = random_system(sizes, seed)
    inverse = np.linalg.inv(dense(system)[0])
    found = list(factorise(system, np.float64).covariance_blocks())[::-1]
    assert len(found) == len(sizes)
    starts = np.cumsum([0, *sizes])
    for k, block in enumerate(found):
        expected = inverse[starts[k] : starts[k + 1], starts[k] : starts[k + 1]]
        np.testing.assert_allclose(block, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 7), min_size=2, max_size=6), seed=seeds, data=st.data())
def test_a_seam_says_all_that_the_blocks_before_it_said(sizes: list[int], seed: int, data: st.DataObject) -> None:
    """The Schur complement; so the blocks after it are solved as if those before were still there."""
    block = data.draw(st.integers(0, len(sizes) - 1))
    system = random_system(sizes, seed)
    information, vector = eliminate_before(system, block)
    if block == 0:
        assert not information.any()
        assert not vector.any()
        return
    H, g = dense(system)
    n = sum(sizes[:block])
    own = slice(n, n + sizes[block])
    U = H[:n, own]
    np.testing.assert_allclose(
        information, H[own, own] - U.T @ np.linalg.solve(H[:n, :n], U), rtol=1e-6, atol=1e-9 * np.abs(H[own, own]).max()
    )
    np.testing.assert_allclose(
        vector,
        g[own] - U.T @ np.linalg.solve(H[:n, :n], g[:n]),
        rtol=1e-6,
        atol=1e-9 * np.abs(g).max() * np.abs(H).max(),
    )
    rest = BlockSystem(
        [information, *system.diagonal[block + 1 :]], system.coupling[block:], [vector, *system.right[block + 1 :]]
    )
    after = np.concatenate(factorise(rest, np.float64).solve([r[:, None] for r in rest.right]))[:, 0]
    whole = np.linalg.solve(H, g)
    np.testing.assert_allclose(after, whole[n:], rtol=1e-5, atol=1e-8 * np.abs(whole).max())


@settings(deadline=None, max_examples=60)
@given(sizes=block_sizes, seed=seeds, count=st.integers(0, 2))
def test_constraints_hold_and_the_rest_is_as_good_as_can_be(sizes: list[int], seed: int, count: int) -> None:
    """The solution of the Karush-Kuhn-Tucker system."""
    system = random_system(sizes, seed)
    n = sum(sizes)
    count = min(count, n - 1)  # with as many constraints as unknowns nothing is left to find
    H, g = dense(system)
    C = np.random.default_rng(seed + 1).normal(size=(n, count))
    found = np.concatenate(solve_constrained(factorise(system, np.float64), system.right, split(C, sizes)))
    kkt = np.block([[H, C], [C.T, np.zeros((count, count))]])
    expected = np.linalg.solve(kkt, np.concatenate([g, np.zeros(count)]))[:n]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8 * np.abs(expected).max())
    np.testing.assert_allclose(C.T @ found, 0, atol=1e-8 * max(np.abs(found).max(), 1e-12) * n)


@settings(deadline=None, max_examples=40)
@given(sizes=block_sizes, seed=seeds)
def test_single_precision_is_good_enough_whatever_the_units(sizes: list[int], seed: int) -> None:
    """Unknowns whose units differ by many powers of ten: the scaling leaves nothing of that to single precision."""
    system = random_system(sizes, seed, spread=6.0)
    right = [r[:, None] for r in system.right]
    double = np.concatenate(factorise(system, np.float64).solve(right))
    single = np.concatenate(factorise(system).solve(right))
    unit = np.concatenate([1 / np.sqrt(np.diag(D)) for D in system.diagonal])[:, None]
    assert np.abs((single - double) / unit).max() < 1e-3 * np.abs(double / unit).max()


def test_what_is_not_determined_is_said_so() -> None:
    for wrong in (-1.0, 0.0, np.nan):
        system = random_system([3, 2, 4], 0)
        system.diagonal[1][0, 0] = wrong
        with pytest.raises(GeometryError, match="not determined"):
            factorise(system)
    saddle = random_system([3, 2, 4], 0)
    saddle.coupling[0] *= 100  # every diagonal entry is positive, the whole is not
    with pytest.raises(GeometryError, match="not determined"):
        factorise(saddle)
