"""The figures of benchmarks/multiview.py on cases whose answer is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr

from marigold3d.types import DepthMap
from tests.benchmarks._multiview_cases import (
    Errors,
    Stored,
    disturbed,
    figures,
    pairs,
    refined,
    rendered_room,
    sparsification,
    sparsification_error,
)


def flat(z: float, sigma: float | None = None, shape: tuple[int, int] = (6, 8)) -> DepthMap:
    depth = np.full(shape, z, np.float32)
    return DepthMap(depth, np.ones(shape, bool), None if sigma is None else np.full(shape, sigma, np.float32))


def test_figures_of_a_known_error() -> None:
    """The clip's scale is found; then one frame is exact and the other 10 % off in half of its pixels."""
    truth = {0: np.full((6, 8), 2.0, np.float32), 3: np.full((6, 8), 2.0, np.float32)}
    off = flat(1.0).depth.copy()
    off[:, 5:] = 1.1
    valid = np.ones(off.shape, bool)
    valid[:, 0] = valid[:, 7] = False
    found = figures({0: flat(1.0), 3: DepthMap(off, valid)}, truth)
    assert found.scale == pytest.approx(2)
    assert found.abs_rel == pytest.approx((0 + 0.1 * 2 / 6) / 2, rel=1e-5)
    assert found.delta1 == 1
    assert found.coverage == pytest.approx((1 + 6 / 8) / 2)


def test_unmeasured_and_far_pixels_do_not_count() -> None:
    true = np.array([[0.0, 0.1, 2.0, 9.0]], np.float32)
    ((mine, sigma, seen, share),) = pairs({0: flat(2.0, 0.1, (1, 4))}, {0: true})
    np.testing.assert_array_equal(seen, [2.0])
    assert (mine, sigma, share) == (2.0, pytest.approx(0.1), 1.0)


def test_without_any_depth_the_coverage_is_zero() -> None:
    none = DepthMap(np.zeros((6, 8), np.float32), np.zeros((6, 8), bool))
    found = figures({0: none}, {0: np.full((6, 8), 2.0, np.float32)})
    assert found.coverage == 0
    assert np.isnan(found.abs_rel)


def test_the_sparsification_curve_of_four_pixels() -> None:
    error = np.array([0.4, 0.1, 0.3, 0.2])
    curve = sparsification(error, np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.25, 0.5, 0.75, 1.0]))
    np.testing.assert_allclose(curve, [0.4, 0.25, 0.8 / 3, 0.25])
    ideal = sparsification(error, error, np.array([0.25, 0.5, 0.75, 1.0]))
    np.testing.assert_allclose(ideal, [0.1, 0.15, 0.2, 0.25])


def test_the_area_is_none_for_the_ideal_order_and_all_for_chance() -> None:
    rng = np.random.default_rng(0)
    error = rng.exponential(size=50_000)
    assert sparsification_error(error, 3 * error) == (0, 0)
    assert sparsification_error(error, rng.random(error.shape))[1] == pytest.approx(1, abs=0.05)
    assert sparsification_error(error, -error)[1] > 1.5, "the wrong way round is worse than chance"
    assert sparsification_error(np.ones(10), rng.random(10)) == (0, 0), "nothing to be ordered"


def test_gaussian_errors_lie_within_their_sigmas() -> None:
    rng = np.random.default_rng(0)
    share = rng.uniform(0.01, 0.1, 100_000)
    errors = Errors(np.abs(share * rng.standard_normal(share.shape)), share)
    assert errors.within(1) == pytest.approx(0.683, abs=0.01)
    assert errors.within(2) == pytest.approx(0.954, abs=0.01)
    assert Errors(errors.error, 10 * share).within(1) == pytest.approx(1)


def test_errors_are_shares_of_the_truth_at_the_clips_scale() -> None:
    e = Errors.of({0: flat(1.0, 0.05), 1: flat(1.1, 0.05)}, {i: np.full((6, 8), 2.0, np.float32) for i in (0, 1)})
    scale = np.median([2.0, 2 / 1.1])
    np.testing.assert_allclose(np.unique(e.error.round(5)), sorted(np.abs(scale * np.array([1, 1.1]) / 2 - 1).round(5)))
    np.testing.assert_allclose(e.share, scale * 0.05 / 2, rtol=1e-5)


@pytest.mark.parametrize("kind", ["smooth", "blocks"])
def test_a_disturbance_is_large_smooth_and_bounded(kind: str) -> None:
    prior = flat(2.0, 0.1, (120, 160))
    worse = disturbed(prior, kind, 0.3, seed=1)
    factor = worse.depth / prior.depth
    assert 1 / 1.301 < factor.min() < 0.9
    assert 1.1 < factor.max() < 1.301
    assert worse.sigma is not None
    np.testing.assert_allclose(worse.sigma / worse.depth, 0.05, rtol=1e-5)
    steps = np.abs(np.diff(np.log(factor), axis=1))
    assert (steps > 0.05).mean() < (0.05 if kind == "blocks" else 1e-9), "large regions"
    other = disturbed(prior, kind, 0.3, seed=2)
    assert not np.allclose(other.depth, worse.depth)
    np.testing.assert_array_equal(disturbed(prior, kind, 0.3, seed=1).depth, worse.depth)


def test_a_constant_keeps_the_median_and_the_holes() -> None:
    depth = np.array([[1.0, 2.0, 4.0, 0.0]], np.float32)
    prior = DepthMap(depth, depth > 0, 0.1 * depth)
    constant = disturbed(prior, "constant", 0, 0)
    np.testing.assert_array_equal(constant.depth, [[2, 2, 2, 0]])
    assert constant.sigma is not None
    np.testing.assert_allclose(constant.sigma[0, :3], 2 * np.std(np.log([1, 2, 4])), rtol=1e-5)
    with pytest.raises(ValueError, match="unknown"):
        disturbed(prior, "noise", 0.3, 0)


def test_the_code_under_test_is_called_as_it_wants() -> None:
    case = rendered_room(4, 96, 72)
    found = refined(case, neighbours=2, max_side=96)
    assert set(found.swept) == set(found.merged) == {0, 1, 2, 3}
    assert found.sweep_seconds > 0
    assert figures(found.merged, case.truth_m).coverage > 0.9


def test_of_a_runs_sweeps_what_they_trust_is_read(tmp_path: Path) -> None:
    z = np.array([[[1.0, 2.0, 4.0, np.nan]]] * 3, np.float32)
    for name, values in (
        ("", z),
        ("_sigma", np.full(z.shape, 0.1)),
        ("_score", np.array([[[0.9, 0.1, 0.8, 0.9]]] * 3)),
    ):
        zarr.save_array(tmp_path / "arrays.zarr" / f"swept{name}", values.astype(np.float32))
        zarr.save_array(tmp_path / "arrays.zarr" / f"refined{name}", values.astype(np.float32))
    run: Any = SimpleNamespace(cache=tmp_path)
    swept, refined_map = Stored(run, "swept")[1], Stored(run, "refined")[1]
    assert len(Stored(run, "swept")) == 3
    np.testing.assert_array_equal(swept.depth, [[1, 0, 4, 0]])
    assert swept.sigma is not None
    np.testing.assert_allclose(swept.sigma, [[0.1, 0, 0.4, 0]], rtol=1e-6)
    np.testing.assert_array_equal(refined_map.depth, [[1, 2, 4, 0]])
