"""The joint problem: analytic Jacobians against finite differences, and links that do not eat contrast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marigold3d.align.grid import SampleGrid, ValueRange, log_depth, slopes
from marigold3d.align.joint import (
    CueRows,
    JointSettings,
    Link,
    Stretch,
    assemble,
    cue_residuals,
)
from marigold3d.align.links import Rays, Residuals, Surface, by_pose
from marigold3d.rigid import inverse
from marigold3d.types import Domain
from tests.joint_clips import DOMAINS, NoisyClip, noisy_clip
from tests.test_blocks import dense

EVERY_DOMAIN = ("depth", "disparity", "log_depth", "metric")
SMALL = JointSettings(samples=40, field_columns=4, dilations=(1, 3))
seeds = st.integers(0, 2**32 - 1)


def no_link(i: int, j: int, a: Surface, b: Surface, hidden: float, every: int) -> None:
    return None


def same_pixels(i: int, j: int, a: Surface, b: Surface, hidden: float, every: int) -> Residuals:
    """A camera that stood still."""
    at = np.arange(0, len(a.log_z), every)
    return Residuals(at, at, (a.log_z - b.log_z)[at], np.ones(len(at), np.float32))


def stretch_of(clip: NoisyClip, link: Link | None = None, settings: JointSettings = SMALL) -> Stretch:
    """A clip as the solve takes it, without cues."""
    relative = clip.relative
    height, width = relative[0].values.shape
    grid = SampleGrid.of(width, height, settings.samples, settings.field_columns)
    values = np.stack([grid.samples(r) for r in relative])
    domain = relative[0].domain
    values = ValueRange.of(values, domain).normalised(values)
    rays = Rays(clip.camera, grid)

    def posed(i: int, j: int, a: Surface, b: Surface, hidden: float, every: int) -> Residuals:
        return by_pose(a, b, inverse(clip.T_world_camera[j]) @ clip.T_world_camera[i], rays, grid, hidden, every)

    return Stretch(values, {}, link or posed, grid, domain, settings)


def theta_of(stretch: Stretch, rng: np.random.Generator, spread: float = 0.05) -> np.ndarray:
    """(T, p) somewhere sensible: y between about 1 and 3."""
    theta = spread * rng.normal(size=(len(stretch), stretch.grid.unknowns))
    theta[:, 0] += 0.0 if stretch.domain == "log_depth" else np.log(2.0)
    theta[:, 1] += 1.0
    return theta


def with_cues(stretch: Stretch, frames: list[int], rng: np.random.Generator, share: float = 1.0) -> Stretch:
    cues = {}
    for i in frames:
        uv = rng.uniform((0, 0), (stretch.grid.width, stretch.grid.height), (50, 2))
        v = rng.uniform(0, 1, 50).astype(np.float32)
        log_z = rng.normal(0.5, 0.3, 50).astype(np.float32)
        sigma = rng.uniform(0.01, 0.1, 50).astype(np.float32)
        cues[i] = CueRows(v, log_z, sigma, uv.astype(np.float32), share)
    return replace(stretch, cues=cues)


def differences(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, step: float) -> np.ndarray:
    """(..., n) central differences of f by x (n,)."""
    columns = []
    for k in range(len(x)):
        d = np.zeros_like(x)
        d[k] = step
        columns.append((f(x + d) - f(x - d)) / (2 * step))
    return np.stack(columns, -1)


@pytest.fixture(scope="module")
def clips() -> dict[str, NoisyClip]:
    return {domain: noisy_clip(5, domain, size=(80, 60)) for domain in EVERY_DOMAIN}  # type: ignore[arg-type]


# -- Jacobians --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", EVERY_DOMAIN)
@settings(deadline=None, max_examples=30)
@given(seed=seeds, log_scale=st.floats(-1, 1), shift=st.floats(0.2, 2))
def test_slopes_are_derivatives_of_log_depth(domain: Domain, seed: int, log_scale: float, shift: float) -> None:
    v = np.random.default_rng(seed).uniform(0, 1, 40)
    theta = np.array([log_scale, shift])

    def exact(theta: np.ndarray) -> np.ndarray:
        return np.asarray(log_depth(v, theta, domain), float)

    found = np.stack(slopes(v.astype(np.float32), theta, domain), -1)
    np.testing.assert_allclose(found, differences(exact, theta, 1e-3), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("domain", EVERY_DOMAIN)
@settings(deadline=None, max_examples=30)
@given(seed=seeds, log_step=st.floats(-0.3, 0.3))
def test_slopes_at_a_step_are_those_of_a_value_with_that_depth(domain: Domain, seed: int, log_step: float) -> None:
    """`log_step` away in log depth: as if the network had said the value that has this depth."""
    theta = np.array([0.2, 0.7])
    v = np.random.default_rng(seed).uniform(0, 1, 40)
    y = np.exp(theta[0]) * v + theta[1]
    sign = -1 if domain == "disparity" else 1
    moved = y + log_step if domain == "log_depth" else y * np.exp(sign * log_step)
    other = (moved - theta[1]) / np.exp(theta[0])
    for found, expected in zip(
        slopes(v.astype(np.float32), theta, domain, log_step),
        slopes(other.astype(np.float32), theta, domain),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("domain", EVERY_DOMAIN)
def test_a_shift_that_leaves_no_depth_gives_none(domain: Domain) -> None:
    z = log_depth(np.array([0.1, 0.5, 0.9], np.float32), np.array([0.0, -0.5]), domain, 0.02)
    assert np.isnan(z[:2]).all() == (domain != "log_depth")
    assert np.isfinite(z[2])


@pytest.mark.parametrize("domain", EVERY_DOMAIN)
def test_the_jacobian_is_the_derivative_of_a_frames_surface(
    domain: Domain, clips: dict[str, NoisyClip], rng: np.random.Generator
) -> None:
    stretch = stretch_of(clips[domain])
    theta = theta_of(stretch, rng)[2]
    some = rng.choice(len(stretch.grid), 100, replace=False)
    expected = differences(lambda t: stretch.surface(2, t).log_z[some].astype(float), theta, 3e-3)
    np.testing.assert_allclose(stretch.jacobian(2, theta, some), expected, atol=2e-3)


@pytest.mark.parametrize("domain", EVERY_DOMAIN)
def test_cue_rows_are_derivatives_of_their_residuals(
    domain: Domain, clips: dict[str, NoisyClip], rng: np.random.Generator
) -> None:
    stretch = with_cues(stretch_of(clips[domain]), [1], rng)
    theta = theta_of(stretch, rng)[1]
    _, rows, _ = cue_residuals(stretch, stretch.cues[1], theta)
    expected = differences(lambda t: cue_residuals(stretch, stretch.cues[1], t)[0], theta, 3e-3)
    np.testing.assert_allclose(rows, expected, atol=2e-3)


def test_cues_without_depth_at_theta_say_nothing(clips: dict[str, NoisyClip], rng: np.random.Generator) -> None:
    stretch = with_cues(stretch_of(clips["depth"]), [1], rng)
    theta = np.zeros(stretch.grid.unknowns)
    theta[1] = -0.5  # values below 0.5 have no depth
    r, rows, w = cue_residuals(stretch, stretch.cues[1], theta)
    assert np.isfinite(r).all()
    assert np.isfinite(rows).all()
    assert not w[stretch.cues[1].v < 0.5].any()
    assert w[stretch.cues[1].v > 0.6].any()


# -- the normal equations ---------------------------------------------------------------------------------------------


def objective(stretch: Stretch, theta: np.ndarray, weights: dict[int, np.ndarray]) -> float:
    """Half the sum of squares of cues (with weights held), smoothness and priors, written down once more."""
    s = stretch.settings
    total = 0.0
    for i, w in weights.items():
        cues = stretch.cues[i]
        y = np.exp(theta[i, 0]) * cues.v.astype(float) + theta[i, 1]
        log_z = {"log_depth": y}.get(stretch.domain)
        if log_z is None:
            log_z = np.log(y) * (-1 if stretch.domain == "disparity" else 1)
        total += float(w @ (log_z + stretch.grid.basis_at(cues.uv).astype(float) @ theta[i, 2:] - cues.log_z) ** 2)
    for a, b in pairwise(theta):
        total += ((a[0] - b[0]) / s.scale_step) ** 2 + ((a[1] - b[1]) / (s.scale_step * stretch.y_unit)) ** 2
        total += float((((a - b)[2:] / s.node_step) ** 2).sum())
    for nodes in theta[:, 2:].reshape(len(theta), *stretch.grid.nodes):
        total += float(sum((np.diff(nodes, axis=k) ** 2).sum() for k in (0, 1))) / s.node_difference**2
        total += float((nodes**2).sum()) / s.node_sigma**2
    return total / 2


@pytest.mark.parametrize("domain", EVERY_DOMAIN)
@pytest.mark.parametrize("redescending", [False, True])
def test_the_right_side_is_minus_the_gradient(
    domain: Domain, redescending: bool, clips: dict[str, NoisyClip], rng: np.random.Generator
) -> None:
    """Of cues, smoothness and priors, with the robust weights held."""
    stretch = replace(with_cues(stretch_of(clips[domain], no_link), [0, 3], rng, share=2.5), y_unit=1.7)
    theta = theta_of(stretch, rng)
    weights = {i: cue_residuals(stretch, stretch.cues[i], theta[i], redescending)[2] for i in (0, 3)}
    system, spreads = assemble(stretch, theta, 0.05, redescending)
    gradient = differences(lambda x: np.array(objective(stretch, x.reshape(theta.shape), weights)), theta.ravel(), 1e-5)
    found = np.concatenate(system.right)
    np.testing.assert_allclose(found, -gradient, atol=1e-4 * np.abs(gradient).max())
    assert len(spreads) == 0


def test_smoothness_and_priors_are_exactly_quadratic(clips: dict[str, NoisyClip], rng: np.random.Generator) -> None:
    """So one step from anywhere ends at the least of the objective: all frames alike, no field."""
    stretch = stretch_of(clips["depth"], no_link)
    theta = theta_of(stretch, rng)
    H, g = dense(assemble(stretch, theta, 0.05, True)[0])
    least = theta + np.linalg.lstsq(H, g, rcond=1e-12)[0].reshape(theta.shape)
    np.testing.assert_allclose(least[:, 2:], 0, atol=1e-9)
    np.testing.assert_allclose(least[:, :2], np.broadcast_to(theta[:, :2].mean(0), (len(theta), 2)), atol=1e-9)


@pytest.mark.parametrize("domain", EVERY_DOMAIN)
@pytest.mark.parametrize("link", [None, same_pixels])
def test_the_matrix_is_symmetric_and_positive(
    domain: Domain, link: Link | None, clips: dict[str, NoisyClip], rng: np.random.Generator
) -> None:
    stretch = with_cues(stretch_of(clips[domain], link), [1], rng)
    H, _ = dense(assemble(stretch, theta_of(stretch, rng), 0.05, True)[0])
    np.testing.assert_allclose(H, H.T, rtol=1e-5, atol=1e-6 * np.abs(H).max())  # single precision
    unit = 1 / np.sqrt(np.diag(H))
    # Within what the thinning of the links' rows, and single precision, cost.
    assert np.linalg.eigvalsh(H * np.outer(unit, unit)).min() > -1e-4


@pytest.mark.parametrize("domain", EVERY_DOMAIN)
def test_links_pull_frames_that_disagree_together(
    domain: Domain, clips: dict[str, NoisyClip], rng: np.random.Generator
) -> None:
    """g of links against finite differences where residuals are small, so that half-way is nearly at the frames."""
    stretch = stretch_of(clips[domain], same_pixels, replace(SMALL, dilations=(1,)))
    stretch = replace(stretch, values=np.tile(stretch.values[:1], (5, 1)))
    theta = np.tile(theta_of(stretch, rng)[:1], (5, 1)) + 1e-3 * rng.normal(size=(5, stretch.grid.unknowns))
    spread, s = 0.05, stretch.settings
    w = s.independent / len(stretch.grid) / spread**2

    def cost(x: np.ndarray) -> np.ndarray:
        depths = [stretch.surface(i, t).log_z.astype(float) for i, t in enumerate(x.reshape(theta.shape))]
        return np.array(sum(w * float(((a - b) ** 2).sum()) / 2 for a, b in pairwise(depths)))

    with_links, without = (
        np.concatenate(assemble(replace(stretch, link=k), theta, spread, False)[0].right)
        for k in (same_pixels, no_link)
    )
    gradient = differences(cost, theta.ravel(), 1e-3)
    found = with_links - without
    assert np.corrcoef(found, -gradient)[0, 1] > 0.999
    np.testing.assert_allclose(found, -gradient, atol=0.03 * np.abs(gradient).max())


@pytest.mark.parametrize("domain", DOMAINS)
def test_noise_does_not_cost_contrast(domain: Domain, rng: np.random.Generator) -> None:
    """Two like frames with white noise, the first held: the second's scale comes out the same, though noise is large.

    A gradient at each frame's own depth takes noise for contrast that is not there, and shrinks the scale by about
    noise^2 / contrast^2 (regression dilution), once for every link from the last cue.
    """
    grid = SampleGrid.of(400, 300, 400, 1)
    noise, truth = 0.08, np.linspace(0, 1, len(grid))
    values = (truth + noise * rng.normal(size=(2, len(grid)))).astype(np.float32)
    options = JointSettings(samples=400, field_columns=1, dilations=(1,), scale_step=1e3)
    stretch = Stretch(values, {}, same_pixels, grid, domain, options)
    shrinks = noise**2 / (truth.var() + noise**2)
    assert shrinks > 0.05
    assert abs(_scale_beside_the_first(stretch, naive=False) - 1) < 0.005
    assert _scale_beside_the_first(stretch, naive=True) == pytest.approx(1 - shrinks, abs=0.3 * shrinks)


def _scale_beside_the_first(stretch: Stretch, naive: bool) -> float:
    """Scale of the second of two frames once its own equations hold, the first at scale 1 and shift 1."""
    theta = np.array([[0.0, 1.0], [0.0, 1.0]])
    at = np.arange(len(stretch.grid))
    for _ in range(30):
        system, _ = assemble(stretch, theta, 0.1, False)
        g = system.right[1]
        if naive:
            r = stretch.surface(0, theta[0]).log_z - stretch.surface(1, theta[1]).log_z
            g = stretch.jacobian(1, theta[1], at).T @ r / len(r) * stretch.settings.independent / 0.1**2
        theta[1] += np.linalg.solve(system.diagonal[1], g)
    return float(np.exp(theta[1, 0]))
