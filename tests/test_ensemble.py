"""Merging an ensemble: it undoes affine corruption, does not care for order, and is at least as good as diffusers'."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from marigold3d.depth.ensemble import Mode, align_ensemble, merge_ensemble, pairwise_rms
from marigold3d.depth.reduction import Reduction
from marigold3d.errors import InputError
from tests.ensemble_cases import (
    corrupted,
    diffusers_merge,
    full_cost,
    smooth_scene,
    sparsification_errors,
    spread_cost,
    uneven_ensemble,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_undoes_affine_corruption(rng: np.random.Generator) -> None:
    maps = corrupted(rng, 5, noise=0.0)
    merged, uncertainty = merge_ensemble(maps)
    np.testing.assert_allclose(merged, smooth_scene(), atol=1e-5)
    assert uncertainty.max() < 1e-5


def test_scale_mode_undoes_scales_and_keeps_zero(rng: np.random.Generator) -> None:
    depth = smooth_scene() + 0.3
    scales = rng.uniform(0.2, 5.0, (6, 1, 1)).astype(np.float32)
    merged, uncertainty = merge_ensemble(scales * depth, mode="scale")
    np.testing.assert_allclose(merged, depth / depth.max(), rtol=1e-5)
    assert uncertainty.max() < 1e-5


def test_scale_mode_aligns_walls_seen_head_on() -> None:
    walls = np.array([1.0, 2.0, 4.0], np.float32)[:, None, None] * np.ones((3, 6, 8), np.float32)
    merged, uncertainty = merge_ensemble(walls, mode="scale")
    np.testing.assert_allclose(merged, 1.0, rtol=1e-6)
    assert uncertainty.max() < 1e-6


def test_aligned_maps_keep_their_units(rng: np.random.Generator) -> None:
    depth_m = (2.0 + 8.0 * rng.random((5, 6, 8))).astype(np.float32)
    merged, sigma_m = merge_ensemble(depth_m, "mean", "none")
    np.testing.assert_allclose(merged, depth_m.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(sigma_m, depth_m.std(axis=0, ddof=1), rtol=1e-5)
    scale, shift = align_ensemble(depth_m, "none")
    assert (set(scale), set(shift)) == ({1.0}, {0.0})


@pytest.mark.parametrize("reduction", ["median", "mean"])
def test_merging_beats_its_members_and_says_by_how_much_they_differ(
    rng: np.random.Generator, reduction: Reduction
) -> None:
    scene = smooth_scene()
    members = (scene + 0.03 * rng.standard_normal((9, *scene.shape))).astype(np.float32)
    merged, uncertainty = merge_ensemble(members, reduction)
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


@pytest.mark.parametrize("mode", ["affine", "scale"])
@pytest.mark.parametrize(("noise", "seed"), [(0.01, 0), (0.05, 1), (0.2, 0)])
def test_cost_is_no_higher_than_diffusers(mode: Mode, noise: float, seed: int) -> None:
    maps = corrupted(np.random.default_rng(seed), 5, noise, mode=mode)
    low = maps.min((1, 2), keepdims=True) if mode == "affine" else 0.0  # theirs wants 0..1
    maps = (maps - low) / (maps.max((1, 2), keepdims=True) - low)
    scale, shift = align_ensemble(maps, mode)
    _, _, their_scale, their_shift = diffusers_merge(maps, mode)
    assert spread_cost(maps, scale, mode) <= spread_cost(maps, their_scale, mode)
    if noise < 0.1:  # beyond, the range of the merged map is that of its two wildest pixels, and a matter of luck
        assert full_cost(maps, scale, shift, mode) <= full_cost(maps, their_scale, their_shift, mode)


@pytest.mark.parametrize("mode", ["affine", "scale"])
def test_both_merge_equal_maps_alike(mode: Mode) -> None:
    maps = corrupted(np.random.default_rng(3), 5, 0.0, mode=mode)
    ours, theirs = merge_ensemble(maps, "mean", mode)[0], diffusers_merge(maps, mode, "mean")[0]
    np.testing.assert_allclose(ours, theirs, atol=2e-3)  # theirs stops after two steps


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


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("mode", ["affine", "scale", "none"])
def test_tiny_ensembles(rng: np.random.Generator, members: int, mode: Mode) -> None:
    maps = corrupted(rng, members, noise=0.05, mode="scale")
    merged, uncertainty = merge_ensemble(maps, mode=mode)
    assert merged.shape == uncertainty.shape == maps.shape[1:]
    assert (merged.dtype, uncertainty.dtype) == (np.float32, np.float32)
    assert np.isfinite(merged).all()
    assert uncertainty.any() == (members == 2)


def test_a_large_mean_does_not_spoil_the_alignment(rng: np.random.Generator) -> None:
    maps = corrupted(rng, 5, noise=0.02)
    lifted = (maps.astype(np.float64) + 100.0).astype(np.float32)
    np.testing.assert_allclose(merge_ensemble(lifted)[0], merge_ensemble(maps)[0], atol=1e-4)


@pytest.mark.parametrize(("reduction", "share"), [("median", 0.3), ("mean", 0.25)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_uncertainty_ranks_errors(reduction: Reduction, share: float, seed: int) -> None:
    """Leaving out what is most uncertain lowers the error nearly as fast as leaving out what is most wrong."""
    maps, scene = uneven_ensemble(np.random.default_rng(seed), 10)
    merged, uncertainty = merge_ensemble(maps, reduction)
    fitted = np.polyval(np.polyfit(merged.ravel(), scene.ravel(), 1), merged)
    ause, at_random = sparsification_errors(fitted - scene, uncertainty)
    assert 0.0 <= ause < share * at_random


def test_sparsification_of_the_error_itself_is_perfect_and_of_noise_is_none(rng: np.random.Generator) -> None:
    error = rng.standard_normal(20_000)
    ause, at_random = sparsification_errors(error, np.abs(error))
    assert ause == 0.0
    assert sparsification_errors(error, rng.random(20_000))[0] == pytest.approx(at_random, rel=0.1)


def test_refuses_what_is_no_ensemble() -> None:
    with pytest.raises(InputError, match=r"\(N, H, W\)"):
        merge_ensemble(np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match=r"\(N, H, W\)"):
        merge_ensemble(np.zeros((2, 0, 4), np.float32))
    with pytest.raises(InputError, match="finite"):
        merge_ensemble(np.full((2, 4, 4), np.nan, np.float32))
    with pytest.raises(InputError, match="unknown ensemble mode 'shift': use affine, scale, none"):
        merge_ensemble(np.zeros((2, 4, 4), np.float32), mode="shift")  # type: ignore[arg-type]
