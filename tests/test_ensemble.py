"""Merging an ensemble: it undoes affine corruption, does not care for order, and is at least as good as diffusers'."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize

from marigold3d.depth.ensemble import align_ensemble, merge_ensemble, pairwise_rms
from marigold3d.depth.reduction import reduce_ensemble
from marigold3d.errors import InputError
from marigold3d.types import Array, FloatImage


def smooth_scene(height: int = 64, width: int = 96) -> FloatImage:
    """(height, width) depth in 0..1: a slope, a bump and a step."""
    v, u = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    scene = v + 0.5 * np.exp(-20 * ((u - 0.3) ** 2 + (v - 0.5) ** 2)) + 0.4 * (u > 0.7)
    return ((scene - scene.min()) / np.ptp(scene)).astype(np.float32)


def corrupted(rng: np.random.Generator, n: int, noise: float) -> FloatImage:
    """(n, 64, 96): the scene under unknown positive scales and shifts, with noise and a low-frequency error each."""
    scene = smooth_scene()
    v = np.linspace(-1, 1, scene.shape[0])[:, None]
    members = [
        rng.uniform(0.4, 2.0) * (scene + noise * (rng.standard_normal(scene.shape) + rng.standard_normal() * v))
        + rng.uniform(-0.5, 0.5)
        for _ in range(n)
    ]
    return np.stack(members).astype(np.float32)


def full_cost(maps: FloatImage, scale: Array, shift: Array, strength: float = 0.02) -> float:
    """The published cost, over all pixels, once the merged map spans 0..1 (both methods end with that step)."""
    aligned = scale[:, None, None] * maps + shift[:, None, None]
    merged = np.median(aligned, axis=0)
    aligned = (aligned - merged.min()) / np.ptp(merged)
    merged = np.median(aligned, axis=0)
    pairs = sum(np.sqrt(np.mean((a - b) ** 2)) for a, b in itertools.combinations(aligned, 2))
    return float(pairs + strength * (abs(merged.min()) + abs(1 - merged.max())))


def test_undoes_affine_corruption(rng: np.random.Generator) -> None:
    maps = corrupted(rng, 5, noise=0.0)
    merged, uncertainty = merge_ensemble(maps)
    np.testing.assert_allclose(merged, smooth_scene(), atol=1e-5)
    assert uncertainty.max() < 1e-5


@pytest.mark.parametrize("reduction", ["median", "mean"])
def test_merging_beats_its_members_and_says_by_how_much_they_differ(rng: np.random.Generator, reduction: str) -> None:
    scene = smooth_scene()
    members = (scene + 0.03 * rng.standard_normal((9, *scene.shape))).astype(np.float32)
    merged, uncertainty = merge_ensemble(members, reduction)  # type: ignore[arg-type]
    truth = np.polyval(np.polyfit(merged.ravel(), scene.ravel(), 1), merged)
    assert np.std(truth - scene) < 0.015
    # The merged noise widens the range that is renormalised to 0..1, so sigma shrinks by that factor.
    assert np.mean(uncertainty) == pytest.approx(0.03, rel=0.25)
    assert merged.min() == 0.0
    assert merged.max() == pytest.approx(1.0)


def test_order_of_members_does_not_matter(rng: np.random.Generator) -> None:
    maps = corrupted(rng, 6, noise=0.05)
    merged, uncertainty = merge_ensemble(maps)
    again, uncertainty_again = merge_ensemble(maps[rng.permutation(6)])
    np.testing.assert_allclose(merged, again, atol=1e-5)
    np.testing.assert_allclose(uncertainty, uncertainty_again, atol=1e-5)


def test_affine_changes_of_members_do_not_matter(rng: np.random.Generator) -> None:
    maps = corrupted(rng, 4, noise=0.05)
    changed = rng.uniform(0.5, 3, (4, 1, 1)) * maps + rng.uniform(-1, 1, (4, 1, 1))
    np.testing.assert_allclose(merge_ensemble(changed.astype(np.float32))[0], merge_ensemble(maps)[0], atol=1e-4)


def test_gradient_agrees_with_finite_differences(rng: np.random.Generator) -> None:
    correlation = np.corrcoef(corrupted(rng, 5, noise=0.1).reshape(5, -1))
    theta = 0.3 * rng.standard_normal(5)
    _, gradient = pairwise_rms(theta, correlation)
    steps = 1e-6 * np.eye(5)
    numeric = [
        (pairwise_rms(theta + h, correlation)[0] - pairwise_rms(theta - h, correlation)[0]) / 2e-6 for h in steps
    ]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-7)


def test_cost_from_correlations_is_the_cost_over_pixels(rng: np.random.Generator) -> None:
    maps = corrupted(rng, 4, noise=0.1).astype(np.float64)
    standard = (maps - maps.mean((1, 2), keepdims=True)) / maps.std((1, 2), keepdims=True)
    direct = sum(np.sqrt(np.mean((a - b) ** 2)) for a, b in itertools.combinations(standard, 2))
    cost, _ = pairwise_rms(np.zeros(4), np.corrcoef(maps.reshape(4, -1)))
    assert cost == pytest.approx(direct, rel=2e-3)


def test_optimum_is_stationary_and_positive(rng: np.random.Generator) -> None:
    maps = corrupted(rng, 5, noise=0.2)
    scale, shift = align_ensemble(maps)
    assert np.all(scale > 0)
    spread = scale * maps.reshape(5, -1).std(axis=1)
    _, gradient = pairwise_rms(np.log(spread), np.corrcoef(maps.reshape(5, -1)))
    assert np.abs(gradient).max() < 1e-4
    np.testing.assert_allclose(shift, -scale * maps.mean(axis=(1, 2)), rtol=1e-5)


def diffusers_fit(maps: FloatImage, monkeypatch: pytest.MonkeyPatch) -> tuple[Array, Array]:
    """Scales and shifts that diffusers' ensembling finds; its solver is overheard, as it returns only the map."""
    torch = pytest.importorskip("torch")
    from diffusers import MarigoldDepthPipeline

    found: list[Array] = []
    solve = scipy.optimize.minimize

    def overheard(*args: object, **settings: object) -> object:
        result = solve(*args, **settings)
        found.append(result.x)
        return result

    monkeypatch.setattr(scipy.optimize, "minimize", overheard)
    MarigoldDepthPipeline.ensemble_depth(torch.from_numpy(maps)[:, None])
    monkeypatch.undo()
    return tuple(np.split(found[0], 2))  # type: ignore[return-value]


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("seed", [0, 1])
def test_cost_is_no_higher_than_diffusers(monkeypatch: pytest.MonkeyPatch, noise: float, seed: int) -> None:
    maps = corrupted(np.random.default_rng(seed), 5, noise)
    maps = (maps - maps.min((1, 2), keepdims=True)) / np.ptp(maps, axis=(1, 2), keepdims=True)  # theirs wants 0..1
    theirs, ours = diffusers_fit(maps, monkeypatch), align_ensemble(maps)
    assert spread_cost(maps, ours[0]) <= spread_cost(maps, theirs[0])
    if noise < 0.1:  # beyond, the range of the merged map is that of its two wildest pixels, and a matter of luck
        assert full_cost(maps, *ours) <= full_cost(maps, *theirs)


def spread_cost(maps: FloatImage, scale: Array) -> float:
    """Pairwise cost with shifts at their best, at a mean spread of one."""
    flat = maps.reshape(len(maps), -1)
    return pairwise_rms(np.log(scale * flat.std(axis=1)), np.corrcoef(flat))[0]


def test_a_flat_member_is_left_out(rng: np.random.Generator) -> None:
    maps = corrupted(rng, 3, noise=0.02)
    flat = np.full_like(maps[:1], 0.5)
    np.testing.assert_allclose(merge_ensemble(np.concatenate([maps, flat]))[0], merge_ensemble(maps)[0])
    merged, uncertainty = merge_ensemble(flat)
    assert not merged.any()
    assert not uncertainty.any()


def test_one_member_is_only_renormalised() -> None:
    scene = smooth_scene()
    merged, uncertainty = merge_ensemble(3 * scene[None] + 1)
    np.testing.assert_allclose(merged, scene, atol=1e-6)
    assert not uncertainty.any()


def test_refuses_what_is_no_ensemble() -> None:
    with pytest.raises(InputError, match=r"\(N, H, W\)"):
        merge_ensemble(np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match="finite"):
        merge_ensemble(np.full((2, 4, 4), np.nan, np.float32))
    with pytest.raises(InputError, match="reduction"):
        reduce_ensemble(np.zeros((2, 4, 4)), "mode")  # type: ignore[arg-type]
