"""The log-scale field: recovery of a known bend, its priors, its uncertainty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marigold3d.align.field import NODE_SIGMA, _prior, basis, fit_field, grid_shape
from marigold3d.camera import pixel_grid
from tests.synthetic import wave

WIDTH, HEIGHT = 96, 72
SHAPE = grid_shape(WIDTH, HEIGHT, 12)
NOWHERE = (np.zeros((0, 2)), np.zeros(0), np.zeros(0))


def cues(rng: np.random.Generator, count: int, right: float = 1.0) -> np.ndarray:
    """Random pixels uv (N, 2) in the left `right` of the image."""
    return rng.uniform((0, 0), (right * WIDTH, HEIGHT), (count, 2))


def at(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    return image[uv[:, 1].astype(int), uv[:, 0].astype(int)]


@pytest.mark.parametrize("amplitude", [0.05, -0.2])
def test_a_smooth_bend_is_recovered(rng: np.random.Generator, amplitude: float) -> None:
    bend = amplitude * wave((HEIGHT, WIDTH))
    uv = cues(rng, 600)
    field = fit_field(uv, at(bend, uv), np.full(600, 0.01), WIDTH, HEIGHT, SHAPE)
    error = np.abs(field.log_scale() - bend)
    assert error.mean() < 0.05 * abs(amplitude)
    assert error.max() < 0.25 * abs(amplitude)


def test_a_bend_survives_gross_outliers(rng: np.random.Generator) -> None:
    bend = 0.2 * wave((HEIGHT, WIDTH))
    uv = cues(rng, 600)
    ratio = at(bend, uv) + rng.normal(0, 0.01, 600)
    ratio[:120] += rng.choice([-1.0, 1.5], 120)
    field = fit_field(uv, ratio, np.full(600, 0.02), WIDTH, HEIGHT, SHAPE)
    assert np.abs(field.log_scale() - bend).mean() < 0.02


def test_without_cues_the_field_is_its_prior() -> None:
    field = fit_field(*_one_useless_cue(), WIDTH, HEIGHT, SHAPE)
    np.testing.assert_allclose(field.log_scale(), 0, atol=1e-9)
    expected = np.sqrt(np.diag(np.linalg.inv(_prior(SHAPE)))).reshape(SHAPE)
    np.testing.assert_allclose(field.node_sigma, expected, rtol=1e-6)
    assert field.node_sigma.max() < NODE_SIGMA, "neighbours hold each other"


def _one_useless_cue() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array([[5.0, 5.0]]), np.array([0.0]), np.array([1e6])


def test_the_field_stays_near_its_cues_and_its_sigma_grows_away_from_them(rng: np.random.Generator) -> None:
    uv = cues(rng, 400, right=0.4)
    field = fit_field(uv, np.full(400, 0.15), np.full(400, 0.01), WIDTH, HEIGHT, SHAPE)
    np.testing.assert_allclose(field.log_scale()[:, :30], 0.15, atol=0.01)
    across = field.sigma().mean(0)
    assert np.all(np.diff(across[45:]) > 0)
    assert across[-1] > 4 * across[20]
    carried = field.log_scale().mean(0)
    assert 0 < carried[-1] < carried[50] < 0.16, "the bend fades where nothing holds it, and does not change its sign"


def test_more_cues_mean_less_sigma(rng: np.random.Generator) -> None:
    sigmas = []
    for count in (40, 160, 640):
        uv = cues(rng, count)
        sigmas.append(fit_field(uv, np.zeros(count), np.full(count, 0.02), WIDTH, HEIGHT, SHAPE).sigma().mean())
    assert sigmas[0] > 1.3 * sigmas[1] > 1.5 * sigmas[2]


@settings(deadline=None)
@given(u=st.floats(0, WIDTH), v=st.floats(0, HEIGHT), shape=st.tuples(st.integers(2, 9), st.integers(2, 12)))
def test_partition_of_unity(u: float, v: float, shape: tuple[int, int]) -> None:
    weights = basis(np.array([[u, v]]), WIDTH, HEIGHT, shape)
    assert weights.shape == (1, shape[0] * shape[1])
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    assert (weights > 1e-12).sum() <= 4, "bilinear: four nodes at the most"


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_points_and_pixels_agree(seed: int) -> None:
    """`at` and `log_scale` are the same function."""
    rng = np.random.default_rng(seed)
    uv = cues(rng, 50)
    field = fit_field(uv, rng.normal(0, 0.2, 50), np.full(50, 0.05), WIDTH, HEIGHT, SHAPE)
    found = field.at(pixel_grid(WIDTH, HEIGHT).reshape(-1, 2)).reshape(HEIGHT, WIDTH)
    np.testing.assert_allclose(found, field.log_scale(), atol=1e-5)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_cues_is_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    uv, ratio, sigma = cues(rng, 60), rng.normal(0, 0.2, 60), rng.uniform(0.01, 0.1, 60)
    order = rng.permutation(60)
    a = fit_field(uv, ratio, sigma, WIDTH, HEIGHT, SHAPE)
    b = fit_field(uv[order], ratio[order], sigma[order], WIDTH, HEIGHT, SHAPE)
    np.testing.assert_allclose(a.nodes, b.nodes, atol=1e-9)


@settings(deadline=None)
@given(width=st.integers(2, 4000), height=st.integers(2, 4000), columns=st.integers(2, 40))
def test_the_grid_covers_the_longer_side_and_has_square_cells(width: int, height: int, columns: int) -> None:
    rows, cols = grid_shape(width, height, columns)
    assert max(rows, cols) == columns
    assert min(rows, cols) >= 2
    if min(rows, cols) > 2:
        assert (width / (cols - 1)) / (height / (rows - 1)) == pytest.approx(1, rel=0.35)
