"""Smoothing along surfaces: constants stay, weights cancel, edges of the image stop it, its reach is as asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marigold3d.multiview.edges import Edges

SHAPE = (24, 40)


def plain(reach_px: float = 6.0) -> Edges:
    return Edges.of(np.full((*SHAPE, 3), 90, np.uint8), reach_px, 0.2)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(1, 60), st.floats(-5, 5))
def test_a_constant_stays_whatever_the_image(seed: int, reach_px: float, value: float) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    smooth = Edges.of(rgb, reach_px, 0.2).smoothed(np.full((1, *SHAPE), value, np.float32))
    np.testing.assert_allclose(smooth, value, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_smoothing_is_linear_and_never_leaves_the_range(seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = Edges.of(rng.integers(0, 256, (*SHAPE, 3)).astype(np.uint8), 8.0, 0.5)
    a, b = rng.uniform(0, 1, (2, 1, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(edges.smoothed(2 * a - 3 * b), 2 * edges.smoothed(a) - 3 * edges.smoothed(b), atol=1e-4)
    assert edges.smoothed(a).min() >= a.min() - 1e-6
    assert edges.smoothed(a).max() <= a.max() + 1e-6


def test_a_mean_over_known_pixels_takes_no_notice_of_the_others() -> None:
    rng = np.random.default_rng(1)
    known = rng.random(SHAPE) < 0.2
    garbage = np.where(known, 3.0, rng.normal(0, 100, SHAPE))
    total, mean = plain(20).smoothed(np.stack([known, known * garbage]).astype(np.float32))
    np.testing.assert_allclose(mean / total, 3.0, rtol=1e-4)


def test_an_edge_in_the_image_stops_it() -> None:
    rgb = np.zeros((*SHAPE, 3), np.uint8)
    rgb[:, 20:] = 200
    step = (np.arange(40) >= 20)[None].repeat(24, 0).astype(np.float32)
    kept = Edges.of(rgb, 10.0, 0.1).smoothed(step[None])[0]
    np.testing.assert_allclose(kept, step, atol=0.01)
    assert plain(10.0).smoothed(step[None])[0][12, 19] > 0.3, "without the edge it spreads"


@pytest.mark.parametrize("reach_px", [2.0, 4.0])
def test_the_reach_is_the_standard_deviation(reach_px: float) -> None:
    impulse = np.zeros((1, 61, 61), np.float32)
    impulse[0, 30, 30] = 1
    edges = Edges.of(np.zeros((61, 61, 3), np.uint8), reach_px, 0.2)
    response = edges.smoothed(impulse)[0].sum(0)
    x = np.arange(61) - 30
    assert np.sqrt((response * x**2).sum() / response.sum()) == pytest.approx(reach_px, rel=0.1)
