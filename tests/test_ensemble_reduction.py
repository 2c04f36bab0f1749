"""Median, mean and their spreads over a few maps: numpy's, whatever the numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marigold3d.depth import reduction
from marigold3d.depth.reduction import MAD_TO_SIGMA, comparators, reduce_ensemble
from marigold3d.errors import InputError
from marigold3d.types import FloatImage

ensembles = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 23), st.integers(1, 4), st.integers(1, 5)),
    elements=st.floats(-100, 100, width=32),
)


@given(ensembles)
def test_median_and_its_deviation_are_those_of_numpy(maps: FloatImage) -> None:
    centre, sigma = reduce_ensemble(maps)
    median = np.median(maps, axis=0)
    np.testing.assert_allclose(centre, median, rtol=1e-6)
    np.testing.assert_allclose(sigma, MAD_TO_SIGMA * np.median(np.abs(maps - median), axis=0), rtol=1e-6, atol=1e-4)


@given(ensembles)
def test_mean_and_its_deviation_are_those_of_numpy(maps: FloatImage) -> None:
    centre, sigma = reduce_ensemble(maps, "mean")
    np.testing.assert_allclose(centre, maps.mean(axis=0, dtype=np.float64), rtol=1e-5, atol=1e-4)
    ddof = 1 if len(maps) > 1 else 0
    np.testing.assert_allclose(sigma, maps.std(axis=0, ddof=ddof, dtype=np.float64), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("n", range(1, 13))
def test_the_network_sorts_every_row_of_zeros_and_ones(n: int) -> None:
    """Which is all it takes: the zero-one principle (Knuth, 5.3.4, theorem Z)."""
    rows = np.array(list(itertools.product([0.0, 1.0], repeat=n)), np.float32).T  # (n, 2^n)
    done = np.stack(reduction.sort_rows([row.copy() for row in rows]))
    np.testing.assert_array_equal(done, np.sort(rows, axis=0))


def test_the_network_of_four_is_batchers() -> None:
    assert comparators(4) == ((0, 2), (1, 3), (0, 1), (2, 3), (1, 2))


@pytest.mark.parametrize("kind", ["median", "mean"])
def test_blocks_leave_no_seams_and_the_maps_alone(
    kind: reduction.Reduction, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = rng.random((5, 17, 19), dtype=np.float32)
    before, whole = maps.copy(), reduce_ensemble(maps, kind)
    monkeypatch.setattr(reduction, "_BLOCK_PX", 50)
    np.testing.assert_array_equal(reduce_ensemble(maps, kind), whole)
    np.testing.assert_array_equal(maps, before)


def test_scales_and_shifts_are_applied_first(rng: np.random.Generator) -> None:
    maps = rng.random((3, 4, 5), dtype=np.float32)
    scale, shift = np.array([1.0, 2.0, 4.0]), np.array([0.0, -1.0, 3.0])
    aligned = (scale[:, None, None] * maps + shift[:, None, None]).astype(np.float32)
    np.testing.assert_allclose(reduce_ensemble(maps, "median", scale, shift), reduce_ensemble(aligned), atol=1e-6)


def test_one_outlier_moves_the_mean_but_not_the_median() -> None:
    maps = np.array([1.0, 2.0, 3.0, 4.0, 100.0], np.float32)[:, None, None]
    centre, sigma = reduce_ensemble(maps)
    assert (centre[0, 0], sigma[0, 0]) == (3.0, np.float32(MAD_TO_SIGMA))  # deviations 2 1 0 1 97
    assert reduce_ensemble(maps, "mean")[0][0, 0] == 22.0


def test_an_unknown_reduction() -> None:
    with pytest.raises(InputError, match="unknown ensemble reduction 'mode': use 'median' or 'mean'"):
        reduce_ensemble(np.zeros((2, 4, 4), np.float32), "mode")  # type: ignore[arg-type]
