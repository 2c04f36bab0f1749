"""Figures, edges, intervals and the protocol's fit: hand-computed values and laws."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from marigold3d.types import Domain, RelativeDepth
from training.evaluation.bootstrap import interval, mean_of_groups
from training.evaluation.datasets import PROTOCOLS
from training.evaluation.edges import RATIOS, edge_metrics
from training.evaluation.metrics import FIGURES, depth_metrics
from training.evaluation.protocol import Protocol, aligned, fit_space

ANY = Protocol("any", (0.0, np.inf), (1e-6, np.inf))
EVERYWHERE = np.ones((12, 16), bool)


def scene(seed: int, shape: tuple[int, int] = (12, 16)) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(1.0, 9.0, shape)


def relative(values: NDArray[np.floating], domain: Domain = "depth") -> RelativeDepth:
    return RelativeDepth(values.astype(np.float32), domain)


# -- figures ----------------------------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    depth, truth = np.array([[1.0, 4.0, 99.0]]), np.array([[2.0, 4.0, 1.0]])
    found = depth_metrics(depth, truth, np.array([[True, True, False]]))
    ln2 = math.log(2.0)
    assert found == pytest.approx(
        {
            "abs_rel": 0.25,  # (1/2 + 0) / 2
            "sq_rel": 0.25,  # (1/2 + 0) / 2
            "rmse": math.sqrt(0.5),
            "rmse_log": ln2 / math.sqrt(2),
            "log10": math.log10(2.0) / 2,
            "silog": 100 * ln2 / 2,  # d = -ln 2, 0: mean square ln2^2 / 2, squared mean ln2^2 / 4
            "delta1": 0.5,
            "delta2": 0.5,
            "delta3": 0.5,  # 2 > 1.25^3
            "irmse": math.sqrt(0.125),  # (1 - 1/2)^2 / 2
        }
    )


@pytest.mark.parametrize(("factor", "within"), [(1.249, 1.0), (1.251, 0.0), (1 / 1.249, 1.0), (1 / 1.251, 0.0)])
def test_delta_treats_too_near_and_too_far_alike(factor: float, within: float) -> None:
    truth = scene(1)
    assert depth_metrics(factor * truth, truth, EVERYWHERE)["delta1"] == within


def test_a_perfect_map_has_no_error() -> None:
    found = depth_metrics(scene(2), scene(2), EVERYWHERE) | edge_metrics(scene(2), scene(2), EVERYWHERE)
    assert set(found) == set(FIGURES)
    for name, figure in FIGURES.items():
        assert found[name] == pytest.approx(0.0 if figure.better == "less" else 1.0), name


@given(st.integers(0, 99), st.floats(0.1, 10.0))
def test_silog_is_blind_to_a_factor_and_relative_figures_to_the_unit(seed: int, factor: float) -> None:
    depth, truth = scene(seed), scene(seed + 1)
    found, scaled = (depth_metrics(k * depth, truth, EVERYWHERE) for k in (1.0, factor))
    assert scaled["silog"] == pytest.approx(found["silog"])
    both = depth_metrics(factor * depth, factor * truth, EVERYWHERE)
    for name in ("abs_rel", "rmse_log", "log10", "delta1", "delta2", "delta3"):
        assert both[name] == pytest.approx(found[name])
    for name, power in (("rmse", 1), ("sq_rel", 1), ("irmse", -1)):
        assert both[name] == pytest.approx(found[name] * factor**power)


@given(st.integers(0, 99), st.floats(0.05, 0.9), st.floats(0.05, 0.9))
def test_nearer_to_the_truth_is_better(seed: int, a: float, b: float) -> None:
    depth, truth = scene(seed), scene(seed + 1)
    less, more = sorted((a, b))
    near, far = (depth_metrics(truth + share * (depth - truth), truth, EVERYWHERE) for share in (less, more))
    for name in near:
        if name != "silog":  # it may rise where a common factor shrinks
            assert near[name] <= far[name] + 1e-12 if FIGURES[name].better == "less" else near[name] >= far[name]


def test_swapping_map_and_truth_keeps_the_symmetric_figures() -> None:
    there, back = depth_metrics(scene(3), scene(4), EVERYWHERE), depth_metrics(scene(4), scene(3), EVERYWHERE)
    for name in ("delta1", "delta2", "delta3", "rmse", "rmse_log", "log10", "silog", "irmse"):
        assert back[name] == pytest.approx(there[name])
    assert back["abs_rel"] != pytest.approx(there["abs_rel"])


# -- edges ------------------------------------------------------------------------------------------------------------


def box(near: float, far: float, left: int = 5) -> NDArray[np.float64]:
    """A near box, four columns wide from column `left` on, before a far wall."""
    image = np.full((12, 16), far)
    image[3:9, left : left + 4] = near
    return image


def edges(depth: NDArray[np.float64], truth: NDArray[np.float64], valid: NDArray[np.bool_] = EVERYWHERE) -> list[float]:
    found = edge_metrics(depth, truth, valid)
    return [found[f"edge_{name}"] for name in ("precision", "recall", "f1")]


def test_edges_do_not_depend_on_the_unit() -> None:
    assert edges(7.0 * box(2.0, 4.0), box(2.0, 4.0)) == pytest.approx([1.0, 1.0, 1.0])


def test_an_edge_knows_which_side_is_near() -> None:
    assert edges(box(4.0, 2.0), box(2.0, 4.0)) == [0.0, 0.0, 0.0]


def test_half_of_the_edges_found_by_hand() -> None:
    """The map sees a box of 6 x 4 where the truth has one beside it too: 20 pairs of 40, none of them false."""
    truth = np.minimum(box(2.0, 4.0, left=1), box(2.0, 4.0, left=9))
    precision, recall, f1 = edges(box(2.0, 4.0, left=1), truth)
    assert (precision, recall, f1) == pytest.approx((1.0, 0.5, 2 / 3))
    precision, recall, f1 = edges(truth, box(2.0, 4.0, left=1))
    assert (precision, recall, f1) == pytest.approx((0.5, 1.0, 2 / 3))


def test_a_weaker_edge_counts_at_the_ratios_it_exceeds() -> None:
    """Edges of 1.1 in the map and 2 in the truth agree at 1.05, 1.072 and 1.094 only, weighted by the ratio."""
    exceeded = RATIOS < 1.1
    assert exceeded.sum() == 3
    share = RATIOS[exceeded].sum() / RATIOS.sum()
    assert edges(box(2.0, 2.2), box(2.0, 4.0)) == pytest.approx([share, share, share])


def test_an_edge_one_pixel_off_is_missed_and_false_but_its_top_and_bottom_stay() -> None:
    precision, recall, f1 = edges(box(2.0, 4.0, left=6), box(2.0, 4.0, left=5))
    assert precision == recall == f1 == pytest.approx(6 / 20)  # 3 of 4 columns, above and below


def test_edges_beside_unmeasured_pixels_do_not_count() -> None:
    truth = box(2.0, 4.0)
    valid = truth > 3.0  # only the wall is measured: it has no edge
    assert all(math.isnan(score) for score in edges(scene(5), truth, valid))
    valid[:, :] = True
    valid[:, 9:] = False  # the right edge of the box is not measured
    wrong = truth.copy()
    wrong[:, 9:] = 1.0
    assert edges(wrong, truth, valid) == pytest.approx([1.0, 1.0, 1.0])


def test_a_flat_map_has_no_edges_and_a_flat_truth_none_to_find() -> None:
    assert edges(np.ones((12, 16)), box(2.0, 4.0)) == [0.0, 0.0, 0.0]
    assert all(math.isnan(score) for score in edges(box(2.0, 4.0), np.ones((12, 16))))


def test_the_coarse_scores_forgive_blur() -> None:
    truth = np.full((64, 512), 4.0)
    truth[:, 257:] = 2.0
    blurred = np.apply_along_axis(lambda row: np.convolve(np.pad(row, 20, "edge"), np.ones(41) / 41, "valid"), 1, truth)
    found = edge_metrics(blurred, truth, np.ones(truth.shape, bool))
    assert found["edge_recall"] == 0.0
    assert found["coarse_edge_recall"] > 0.3


# -- the fit ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 99), st.floats(0.01, 100.0), st.floats(-50.0, 50.0), st.booleans())
def test_an_affine_map_of_the_truth_is_fitted_exactly(seed: int, scale: float, shift: float, turned: bool) -> None:
    truth, sign = scene(seed), -1.0 if turned else 1.0
    depth = aligned(relative(sign * scale * truth + shift), truth, EVERYWHERE, ANY)
    np.testing.assert_allclose(depth, truth, rtol=2e-3)


@pytest.mark.parametrize(
    ("domain", "scale", "shift"), [("depth", 7.0, 3.0), ("metric", 0.2, -1.0), ("log_depth", 1.0, 4.0)]
)
def test_figures_do_not_change_with_what_the_domain_leaves_open(domain: Domain, scale: float, shift: float) -> None:
    values, truth = scene(6) / 4, scene(7)
    as_is, changed = (
        depth_metrics(aligned(relative(v, domain), truth, EVERYWHERE, ANY), truth, EVERYWHERE)
        for v in (values, scale * values + shift)
    )
    assert changed == pytest.approx(as_is, rel=1e-4)


def test_disparity_is_fitted_in_disparity_and_far_is_bounded() -> None:
    truth = scene(8)
    np.testing.assert_allclose(aligned(relative(3.0 / truth, "disparity"), truth, EVERYWHERE, ANY), truth, rtol=1e-4)
    sky = (3.0 / truth).astype(np.float32)
    sky[0, 0] = 0.0  # not fitted to, and 1/z falls to its least value there
    depth = aligned(RelativeDepth(sky, "disparity"), truth, EVERYWHERE, ANY)
    np.testing.assert_allclose(depth.ravel()[1:], truth.ravel()[1:], rtol=1e-4)
    assert depth[0, 0] == pytest.approx(1000.0)


def test_log_depth_becomes_depth_before_the_fit_even_where_it_is_large() -> None:
    truth = scene(9)
    depth = aligned(relative(np.log(truth) + 500.0, "log_depth"), truth, EVERYWHERE, ANY)
    np.testing.assert_allclose(depth, truth, rtol=1e-3)
    assert fit_space("log_depth") != fit_space("depth") != fit_space("disparity")


@given(st.integers(0, 99))
def test_the_fit_is_numpys_least_squares(seed: int) -> None:
    values, truth, valid = scene(seed), scene(seed + 1), scene(seed + 2) > 3.0
    design = np.stack((values[valid], np.ones(valid.sum())), 1)
    s, b = np.linalg.lstsq(design, truth[valid], rcond=None)[0]
    np.testing.assert_allclose(aligned(relative(values), truth, valid, ANY), s * values + b, rtol=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.1, 1e6])
def test_a_constant_becomes_the_mean_of_the_valid_truth(level: float) -> None:
    truth, valid = scene(10), scene(11) > 4.0
    depth = aligned(relative(np.full(truth.shape, level)), truth, valid, ANY)
    np.testing.assert_allclose(depth, truth[valid].mean())


def test_depth_is_clipped_to_the_data_sets_range() -> None:
    truth = np.linspace(1.0, 9.0, 192).reshape(12, 16)
    values = truth.copy()
    values[0, 0], values[-1, -1] = -100.0, 100.0
    valid = EVERYWHERE.copy()
    valid[0, 0] = valid[-1, -1] = False
    depth = aligned(relative(values), truth, valid, PROTOCOLS["nyu"])
    assert (depth[0, 0], depth[-1, -1]) == (1e-3, 10.0)


def test_leaving_pixels_out_does_not_pay() -> None:
    truth = scene(12)
    values = truth.copy()
    values[:6] = np.nan
    depth = aligned(relative(values), truth, EVERYWHERE, ANY)
    filled = np.where(np.isnan(values), np.median(truth[6:]), truth)
    np.testing.assert_allclose(depth, aligned(relative(filled), truth, EVERYWHERE, ANY), rtol=1e-4)
    assert depth_metrics(depth, truth, EVERYWHERE)["abs_rel"] > 0.1


def test_large_maps_are_thinned_by_columns_for_the_fit_only() -> None:
    """ETH3D: 8 px of 32 a side: every fourth column is fitted, every pixel is returned."""
    truth, values = scene(13, (16, 32)), scene(14, (16, 32))
    thinned = Protocol("thinned", (0.0, np.inf), (1e-6, np.inf), alignment_px=8)
    depth = aligned(relative(values), truth, np.ones(truth.shape, bool), thinned)
    s, b = np.polyfit(values[:, ::4].ravel(), truth[:, ::4].ravel(), 1)
    np.testing.assert_allclose(depth, s * values + b, rtol=1e-4)


# -- intervals --------------------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_the_normal_distribution_for_many_images() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    low, high = interval([values], seed=1)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert (low, high) == interval([values], seed=1)
    assert (low, high) != interval([values], seed=2)


def test_groups_count_alike_and_nan_are_no_images() -> None:
    groups = [np.array([1.0, 3.0, np.nan]), np.array([10.0]), np.array([np.nan])]
    assert mean_of_groups(groups) == 6.0
    low, high = interval(groups)
    assert (low, high) == (5.5, 6.5)  # (1 + 10) / 2 and (3 + 10) / 2: both of three equal draws are likely


@settings(max_examples=20)
@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=30))
def test_the_interval_lies_within_the_values(values: list[float]) -> None:
    low, high = interval([np.array(values)])
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12


def test_one_image_has_no_interval() -> None:
    assert all(math.isnan(end) for end in interval([np.array([0.3]), np.array([np.nan, 0.2])]))
    assert math.isnan(mean_of_groups([np.array([np.nan])]))
