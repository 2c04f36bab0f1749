"""Alignment: known scales and shifts come back, outliers do not matter, held-out points stay out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marigold3d.align import align_clip, align_frame, fit_affine, fit_frame
from marigold3d.align.clip import AlignmentReport
from marigold3d.align.domains import from_domain, to_domain
from marigold3d.align.held_out import held_out_points
from marigold3d.config import AlignConfig
from marigold3d.errors import GeometryError, InputError
from marigold3d.progress import run
from marigold3d.rigid import inverse, transform
from marigold3d.types import DepthMap, Intrinsics, RelativeDepth, SparseCues
from tests import synthetic
from tests.data_paths import data_path

DOMAINS = ("depth", "disparity", "log_depth", "metric")
seeds = st.integers(0, 2**32 - 1)


def scene_depth() -> np.ndarray:
    """(72, 96) a room with a ball."""
    return synthetic.depth_of(synthetic.camera(), synthetic.look((0, 0, 0)))


def network_view(depth: np.ndarray, domain: str, scale: float, shift: float) -> RelativeDepth:
    """The values v for which y(z) = scale * v + shift."""
    return RelativeDepth(((to_domain(depth.astype(float), domain) - shift) / scale).astype(np.float32), domain)  # type: ignore[arg-type]


def cues_of(
    depth: np.ndarray,
    rng: np.random.Generator,
    count: int,
    *,
    noise: float = 0.0,
    outliers: float = 0.0,
    sigma: float | None = None,
) -> SparseCues:
    """`count` random pixels of `depth` with relative Gaussian noise; a share of gross outliers, all to one side."""
    uv = rng.uniform((0, 0), depth.shape[::-1], (count, 2))
    z = depth[uv[:, 1].astype(int), uv[:, 0].astype(int)].astype(float) * np.exp(noise * rng.normal(size=count))
    wrong = rng.permutation(count)[: round(outliers * count)]
    z[wrong] *= rng.uniform(1.5, 4.0, len(wrong))
    return SparseCues(uv, z, None if sigma is None else sigma * z, "test")


def abs_rel(depth: DepthMap, truth: np.ndarray) -> float:
    assert depth.valid.mean() > 0.95
    return float((np.abs(depth.depth - truth) / truth)[depth.valid].mean())


# -- scale and shift --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("robust", [True, False])
@settings(deadline=None, max_examples=25)
@given(seed=seeds, scale=st.floats(0.05, 20), shift=st.floats(-3, 3))
def test_scale_and_shift_come_back(domain: str, robust: bool, seed: int, scale: float, shift: float) -> None:
    z = scene_depth()
    fit = fit_affine(network_view(z, domain, scale, shift), cues_of(z, np.random.default_rng(seed), 60), robust=robust)
    assert fit.determined == "scale and shift"
    assert fit.scale == pytest.approx(scale, rel=1e-3)
    assert fit.shift == pytest.approx(shift, abs=1e-3 * (1 + abs(shift)))
    assert fit.inliers.all()


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_fitted_map_is_the_truth(domain: str, rng: np.random.Generator) -> None:
    z = scene_depth()
    relative = network_view(z, domain, 0.7, 0.2)
    aligned = fit_affine(relative, cues_of(z, rng, 100)).apply(relative)
    np.testing.assert_allclose(aligned.depth, z, rtol=1e-4)
    assert aligned.valid.all()


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_third_of_gross_outliers_hardly_matters(domain: str) -> None:
    z = scene_depth()
    relative = network_view(z, domain, 0.8, 0.1)
    for seed in range(10):
        cues = cues_of(z, np.random.default_rng(seed), 200, noise=0.02, outliers=0.3)
        robust, plain = (fit_affine(relative, cues, robust=r) for r in (True, False))
        assert abs_rel(robust.apply(relative), z) < 0.02
        assert abs_rel(plain.apply(relative), z) > 5 * abs_rel(robust.apply(relative), z)
        assert (~robust.inliers).sum() == pytest.approx(60, abs=6)


@pytest.mark.parametrize("domain", ["depth", "disparity", "log_depth"])
@pytest.mark.parametrize("count", [20, 100, 500])
@pytest.mark.parametrize("outliers", [0.0, 0.3])
def test_intervals_cover_the_truth(domain: str, count: int, outliers: float) -> None:
    """The 95 % interval of scale and of shift holds the truth in 90 to 99 % of 300 trials, and is not idly wide."""
    z = scene_depth()
    relative = network_view(z, domain, 0.8, 0.1)
    trials = []
    for seed in range(300):
        cues = cues_of(z, np.random.default_rng(seed), count, noise=0.03, outliers=outliers, sigma=0.03)
        trials.append(fit_affine(relative, cues))
    trials = [f for f in trials if f.determined == "scale and shift"]
    assert len(trials) > 240, "few cues may all lie on the far wall, but not often"
    errors = np.array([(f.scale - 0.8, f.shift - 0.1) for f in trials])
    claimed = np.array([np.sqrt(np.diag(f.covariance)) for f in trials])
    covered = (np.abs(errors) < 1.96 * claimed).mean(0)
    assert np.all((covered >= 0.90) & (covered <= 0.99)), covered
    typical = 1.4826 * np.median(np.abs(errors), axis=0)
    assert np.all(np.median(claimed, axis=0) < 1.4 * typical)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("loss", ["tukey", "huber"])
def test_scale_is_within_two_percent_under_outliers(domain: str, loss: str) -> None:
    """30 % gross outliers, all to one side: the scale from 200 cues is off by less than 2 %, with Huber's loss 10 %."""
    z = scene_depth()
    relative = network_view(z, domain, 0.8, 0.1)
    fits = [
        fit_affine(relative, cues_of(z, np.random.default_rng(s), 200, noise=0.01, outliers=0.3), loss=loss)  # type: ignore[arg-type]
        for s in range(20)
    ]
    assert max(abs(f.scale / 0.8 - 1) for f in fits) < (0.02 if loss == "tukey" else 0.1)


@pytest.mark.parametrize("domain", ["depth", "disparity", "log_depth"])
@pytest.mark.parametrize("outliers", [0.0, 0.2])
def test_a_bent_map_does_not_mislead_the_fit(domain: str, outliers: float) -> None:
    """A smooth error of 15 % splits the cues in two camps, either of which fits a line of its own better."""
    z = scene_depth()
    for seed in range(10):
        relative = synthetic.corrupted(z, domain, seed, bend=0.15)  # type: ignore[arg-type]
        cues = cues_of(z, np.random.default_rng(seed), 300, noise=0.02, outliers=outliers)
        assert abs_rel(fit_affine(relative, cues).apply(relative), z) < 0.08


def test_half_of_the_cues_on_a_wall_do_not_decide_alone() -> None:
    """Exact cues on a wall across the view fit a horizontal line better than the noisy map fits the scene."""
    z = scene_depth()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        noise = 0.02 * rng.normal(size=z.shape)
        relative = RelativeDepth((z * (1 + noise)).astype(np.float32), "depth")
        assert fit_affine(relative, cues_of(z, rng, 300)).scale == pytest.approx(1, abs=0.03)


def test_sigmas_weigh_the_cues(rng: np.random.Generator) -> None:
    z = scene_depth()
    relative = network_view(z, "depth", 0.8, 0.1)
    good, bad = cues_of(z, rng, 40, noise=0.005), cues_of(z, rng, 400, noise=0.3)
    uv, depth = np.concatenate([good.uv, bad.uv]), np.concatenate([good.depth, bad.depth])
    stated = SparseCues(uv, depth, np.repeat([0.005, 0.3], [40, 400]) * depth)
    unstated = SparseCues(uv, depth, None)
    errors = [abs_rel(fit_affine(relative, c, robust=False).apply(relative), z) for c in (stated, unstated)]
    assert errors[0] < 0.01
    assert errors[1] > 3 * errors[0]


@pytest.mark.parametrize("domain", DOMAINS)
def test_cues_on_one_surface_leave_the_shift_open(domain: str, rng: np.random.Generator) -> None:
    z = scene_depth()
    relative = network_view(z, domain, 0.8, 0.0 if domain != "log_depth" else 0.3)
    cues = cues_of(z, rng, 400)
    cues = cues.select(np.abs(cues.depth - 3.2) < 0.001)
    assert len(cues) > 10
    fit = fit_affine(relative, cues)
    assert fit.determined == "scale only"
    if domain == "log_depth":
        assert (fit.scale, fit.covariance[0, 0]) == (1.0, 0.0)
    else:
        assert (fit.shift, fit.covariance[1, 1]) == (0.0, 0.0)
    at_cues = fit.depth(relative.values)[cues.uv[:, 1].astype(int), cues.uv[:, 0].astype(int)]
    np.testing.assert_allclose(at_cues, cues.depth, rtol=1e-3)


def test_a_network_that_is_the_wrong_way_round_gets_no_negative_scale(rng: np.random.Generator) -> None:
    z = scene_depth()
    upside_down = RelativeDepth((5 - z).astype(np.float32), "depth")
    fit = fit_affine(upside_down, cues_of(z, rng, 100))
    assert fit.determined == "scale only"
    assert fit.scale > 0


@pytest.mark.parametrize("domain", DOMAINS)
@settings(deadline=None, max_examples=60)
@given(seed=seeds, count=st.integers(1, 30), low=st.floats(-2, 1), constant=st.booleans())
def test_scale_is_positive_whatever_comes(domain: str, seed: int, count: int, low: float, constant: bool) -> None:
    """Noise against noise: there may be no fit, or one with a positive scale whose depth is finite and positive."""
    rng = np.random.default_rng(seed)
    values = np.full((24, 32), low) if constant else rng.uniform(low, low + 1, (24, 32))
    relative = RelativeDepth(values.astype(np.float32), domain)  # type: ignore[arg-type]
    cues = SparseCues(rng.uniform((0, 0), (32, 24), (count, 2)), rng.uniform(0.5, 5, count))
    try:
        fit = fit_affine(relative, cues)
    except GeometryError:
        return
    assert fit.scale > 0
    assert np.isfinite([fit.shift, fit.residual_sigma]).all()
    assert np.isfinite(fit.covariance).all()
    fit.apply(relative)  # refuses non-positive depth on construction


# -- bad input: a verdict in words or an error ------------------------------------------------------------------------


@pytest.mark.parametrize("robust", [True, False])
def test_no_cue_on_a_valid_pixel(robust: bool, rng: np.random.Generator) -> None:
    z = scene_depth()
    relative = network_view(z, "depth", 1.0, 0.0)
    outside = SparseCues(np.array([[-3.0, 5.0], [500.0, 5.0]]), np.array([1.0, 2.0]))
    nowhere = RelativeDepth(np.full_like(z, np.nan), "depth")
    left_half = relative.values.copy()
    left_half[:, 48:] = np.nan
    right = cues_of(z, rng, 50)
    right = right.select(right.uv[:, 0] > 48)
    for values, cues, why in (
        (relative, SparseCues.empty(), "there are no cues"),
        (relative, outside, "all 2 lie outside its 96x72 pixels"),
        (nowhere, right, "the map has none"),
        (RelativeDepth(left_half, "depth"), right, "where the network gave no depth"),
    ):
        with pytest.raises(GeometryError, match=f"no cue falls on a valid pixel of the depth map: .*{why}"):
            fit_affine(values, cues, robust=robust)


@pytest.mark.parametrize(
    ("depth", "sigma", "message"),
    [(-1.0, 0.1, "positive"), (np.nan, 0.1, "finite"), (np.inf, 0.1, "finite"), (1.0, 0.0, "sigmas must be positive")],
)
def test_impossible_cues_are_refused(depth: float, sigma: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SparseCues(np.array([[5.0, 5.0]]), np.array([depth]), np.array([sigma]))


def test_one_cue_gives_a_scale_and_says_so() -> None:
    z = scene_depth()
    relative = network_view(z, "disparity", 0.8, 0.1)
    fit = fit_affine(relative, SparseCues(np.array([[20.5, 30.5]]), z[30:31, 20].astype(float)))
    assert fit.depth(relative.values)[30, 20] == pytest.approx(z[30, 20], rel=1e-5)
    assert fit.determined == "scale only"
    assert "from 1 of 1 cue; none is left to check them" in fit.verdict
    assert 0.01 < np.sqrt(fit.covariance[0, 0]) / fit.scale < 0.1, "as doubtful as the cue"


def test_two_cues_give_an_unchecked_line() -> None:
    z = scene_depth()
    relative = network_view(z, "depth", 0.8, 0.1)
    near, far = np.unravel_index([z.argmin(), z.argmax()], z.shape)
    uv = np.stack([far, near], 1).astype(float) + 0.5
    fit = fit_affine(relative, SparseCues(uv, np.array([z.min(), z.max()], float)))
    assert fit.scale == pytest.approx(0.8, rel=1e-4)
    assert fit.verdict.endswith("none is left to check them")
    assert 0.005 < np.sqrt(fit.covariance[0, 0]) / fit.scale < 0.2


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_constant_map_has_no_shift(domain: str, rng: np.random.Generator) -> None:
    flat = RelativeDepth(np.full((72, 96), 0.5, np.float32), domain)  # type: ignore[arg-type]
    fit = fit_affine(flat, cues_of(scene_depth(), rng, 50))
    assert fit.determined == "scale only"
    assert fit.verdict.startswith("shift not determined: cues span 0% of the depth range; scale only, from")


@pytest.mark.parametrize("domain", DOMAINS)
def test_infinite_values_are_no_depth(domain: str, rng: np.random.Generator) -> None:
    z = scene_depth()
    relative = network_view(z, domain, 0.8, 0.1)
    values = relative.values.copy()
    values[::3], values[1::3] = np.inf, -np.inf
    fit = fit_affine(RelativeDepth(values, relative.domain), cues_of(z, rng, 200))
    assert fit.scale == pytest.approx(0.8, rel=1e-3)
    aligned = fit.apply(RelativeDepth(values, relative.domain))
    np.testing.assert_array_equal(aligned.valid, np.isfinite(values))


def test_the_verdict_counts(rng: np.random.Generator) -> None:
    z = scene_depth()
    fit = fit_affine(network_view(z, "depth", 0.8, 0.1), cues_of(z, rng, 100, noise=0.01, outliers=0.2))
    assert fit.rejected == 20 == (~fit.inliers).sum()
    assert 0.5 < fit.span < 1.2
    assert (
        fit.verdict
        == f"scale and shift from 80 of 100 cues (20 rejected), which span {fit.span:.0%} of the depth range"
    )


@pytest.mark.parametrize("robust", [True, False])
def test_contradictory_cues_are_called_so(robust: bool, rng: np.random.Generator) -> None:
    """Three groups, none a majority: twice too far, twice too near, right."""
    z = scene_depth()
    cues = cues_of(z, rng, 120, noise=0.02)
    told = cues.depth * rng.permutation(np.repeat([0.45, 1.0, 2.2], 40))
    fit = fit_affine(network_view(z, "disparity", 0.8, 0.1), SparseCues(cues.uv, told), robust=robust)
    assert fit.verdict.startswith("the cues contradict each other or the map: ")
    assert "of 120 agree within 25%" in fit.verdict


@pytest.mark.parametrize("domain", DOMAINS)
def test_scale_only_on_demand(domain: str, rng: np.random.Generator) -> None:
    """A pure factor on depth, found in spite of outliers."""
    z = scene_depth()
    relative = RelativeDepth(to_domain(z.astype(float), domain).astype(np.float32), domain)  # type: ignore[arg-type]
    cues = cues_of(z, rng, 100, noise=0.02, outliers=0.3)
    fit = fit_affine(relative, SparseCues(cues.uv, 1.7 * cues.depth), scale_only=True)
    assert np.median(fit.depth(relative.values) / z) == pytest.approx(1.7, rel=0.02)
    assert fit.determined == "scale only"
    assert fit.verdict.startswith("scale only, as asked, from 7")


def test_cues_on_invalid_pixels_are_left_out(rng: np.random.Generator) -> None:
    z = scene_depth()
    values = network_view(z, "depth", 0.8, 0.1).values.copy()
    values[:, :48] = np.nan
    cues = cues_of(z, rng, 200)
    fit = fit_affine(RelativeDepth(values, "depth"), cues)
    np.testing.assert_array_equal(fit.inliers, cues.uv[:, 0] >= 48)
    assert fit.scale == pytest.approx(0.8, rel=1e-3)


@pytest.mark.parametrize("domain", DOMAINS)
@settings(deadline=None, max_examples=25)
@given(seed=seeds, k=st.floats(0.01, 100))
def test_cues_in_other_units_scale_the_depth(domain: str, seed: int, k: float) -> None:
    rng = np.random.default_rng(seed)
    z = scene_depth()
    relative = network_view(z, domain, 0.8, 0.1)
    cues = cues_of(z, rng, 80, noise=0.02, outliers=0.2)
    scaled = SparseCues(cues.uv, k * cues.depth, None)
    a, b = fit_affine(relative, cues).apply(relative), fit_affine(relative, scaled).apply(relative)
    np.testing.assert_allclose(b.depth, k * a.depth, rtol=2e-3)
    np.testing.assert_allclose(b.sigma, k * a.sigma, rtol=2e-2)


@settings(deadline=None, max_examples=25)
@given(seed=seeds)
def test_the_order_of_cues_is_nothing(seed: int) -> None:
    """Up to the random start: both must find the same optimum."""
    rng = np.random.default_rng(seed)
    z = scene_depth()
    relative = network_view(z, "disparity", 0.8, 0.1)
    cues = cues_of(z, rng, 120, noise=0.02, outliers=0.2)
    order = rng.permutation(120)
    a, b = fit_affine(relative, cues), fit_affine(relative, cues.select(order))
    assert a.scale == pytest.approx(b.scale, rel=1e-4)
    assert a.shift == pytest.approx(b.shift, abs=1e-4)
    np.testing.assert_array_equal(a.inliers[order], b.inliers)


@settings(deadline=None)
@given(z=st.floats(1e-3, 1e4), domain=st.sampled_from(DOMAINS))
def test_domains_are_bijective(z: float, domain: str) -> None:
    there = to_domain(np.array([z]), domain)  # type: ignore[arg-type]
    np.testing.assert_allclose(from_domain(there, domain), z, rtol=1e-9)  # type: ignore[arg-type]


def test_depth_far_beyond_the_cues_is_not_claimed(rng: np.random.Generator) -> None:
    z = scene_depth()
    disparity = 1 / z
    disparity[:10] = 1e-4  # sky
    fit = fit_affine(RelativeDepth(disparity, "disparity"), cues_of(z, rng, 200, noise=0.0))
    aligned = fit.apply(RelativeDepth(disparity, "disparity"))
    assert not aligned.valid[:10].any()
    assert aligned.valid[10:].all()


# -- one frame, with the field ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["depth", "disparity", "log_depth"])
def test_the_field_takes_what_the_affine_fit_leaves(domain: str, rng: np.random.Generator) -> None:
    z = scene_depth()
    relative = synthetic.corrupted(z, domain, seed=4, bend=0.15)  # type: ignore[arg-type]
    cues = cues_of(z, rng, 300, noise=0.01)
    affine, bent = (abs_rel(align_frame(relative, cues, field=f), z) for f in (False, True))
    assert bent < 0.02
    assert affine > 3 * bent


@pytest.mark.parametrize("domain", ["depth", "disparity", "log_depth"])
@pytest.mark.parametrize("outliers", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("count", [35, 100, 500])
def test_the_field_hardly_ever_harms(domain: str, outliers: float, count: int) -> None:
    """With no bend to take out, and gross outliers to follow, it stays within 1 % of the affine fit."""
    z = scene_depth()
    relative = network_view(z, domain, 0.8, 0.1)
    for seed in range(5):
        cues = cues_of(z, np.random.default_rng(seed), count, noise=0.02, outliers=outliers)
        affine, bent = (abs_rel(align_frame(relative, cues, field=f), z) for f in (False, True))
        assert bent < affine + 0.01


def test_a_corner_full_of_lies_does_not_bend_the_rest(rng: np.random.Generator) -> None:
    z = scene_depth()
    relative = synthetic.corrupted(z, "disparity", 2, bend=0.05)
    cues = cues_of(z, rng, 400, noise=0.01)
    corner = np.hypot(*(cues.uv / (96, 72)).T) < 0.45
    assert 40 < corner.sum() < 120
    told = np.where(corner, 2 * cues.depth, cues.depth)
    aligned = align_frame(relative, SparseCues(cues.uv, told))
    right = np.arange(96) > 60  # a region's own cues may be followed: they may as well be right, and the network wrong
    assert np.mean(np.abs(aligned.depth / z - 1)[:, right]) < 0.03


def test_sigma_is_about_the_error(rng: np.random.Generator) -> None:
    z = scene_depth()
    noisy = (z * np.exp(rng.normal(0, 0.05, z.shape))).astype(np.float32)
    aligned = align_frame(RelativeDepth(noisy, "depth"), cues_of(z, rng, 400, noise=0.005))
    assert aligned.sigma is not None
    standardised = (aligned.depth - z) / aligned.sigma
    assert 0.75 < np.sqrt(np.mean(standardised**2)) < 1.33


def test_the_networks_own_doubt_shows_in_sigma(rng: np.random.Generator) -> None:
    z = scene_depth()
    doubt = np.where(np.arange(96) < 48, 0.02, 0.06) * np.ones_like(z)
    relative = RelativeDepth(z, "depth", doubt.astype(np.float32))
    sigma = align_frame(relative, cues_of(z, rng, 200, noise=0.02)).sigma
    assert sigma is not None
    assert np.median(sigma[:, 60:] / z[:, 60:]) > 1.5 * np.median(sigma[:, :36] / z[:, :36])


def test_few_cues_do_without_the_field(rng: np.random.Generator) -> None:
    z = scene_depth()
    relative = network_view(z, "depth", 0.8, 0.1)
    assert fit_frame(relative, cues_of(z, rng, 29)).field is None
    assert fit_frame(relative, cues_of(z, rng, 31)).field is not None


def test_depth_at_cues_is_the_depth_of_the_map(rng: np.random.Generator) -> None:
    z = scene_depth()
    relative = synthetic.corrupted(z, "disparity", seed=2, bend=0.2)
    alignment = fit_frame(relative, cues_of(z, rng, 200))
    columns, rows = rng.integers(0, 96, 50), rng.integers(0, 72, 50)
    uv = np.stack([columns + 0.5, rows + 0.5], 1)
    np.testing.assert_allclose(
        alignment.depth_at(relative, uv), alignment.apply(relative).depth[rows, columns], rtol=1e-5
    )


@pytest.mark.data
def test_a_real_prediction() -> None:
    """One NYU frame: the affine fit takes AbsRel from 0.140 to 0.112, the field takes more."""
    truth = np.load(data_path("fastdepth_nyu/depth.npy")).squeeze().astype(np.float32)
    prediction = np.load(data_path("fastdepth_nyu/pred.npy")).squeeze().astype(np.float32)
    relative = RelativeDepth(prediction, "depth")
    cues = cues_of(truth, np.random.default_rng(0), 500)
    affine, bent = (abs_rel(align_frame(relative, cues, field=f), truth) for f in (False, True))
    assert abs_rel(DepthMap(prediction, prediction > 0), truth) == pytest.approx(0.140, abs=0.002)
    assert affine == pytest.approx(0.112, abs=0.008)
    assert bent < 0.8 * affine


# -- a clip -----------------------------------------------------------------------------------------------------------


class Points:
    """World points, each told to the frames that see it; frames in `blind` see none.

    `points` may be changed to tell lies about depths; where a point is seen remains true.
    """

    name, units, of_single_frames = "test", "m", False

    @property
    def count(self) -> int:
        return len(self.points)

    def __init__(self, clip: synthetic.Clip, count: int = 600, blind: tuple[int, ...] = ()) -> None:
        rng = np.random.default_rng(8)
        picks = rng.integers(len(clip.frames), size=count)
        uv = rng.uniform((0, 0), (clip.camera.width, clip.camera.height), (count, 2))
        z = np.array([clip.frames[f][1][int(v), int(u)] for f, (u, v) in zip(picks, uv, strict=True)])
        rays = np.stack([(uv[:, 0] - clip.camera.cx) / clip.camera.fx, (uv[:, 1] - clip.camera.cy) / clip.camera.fy], 1)
        local = np.concatenate([rays, np.ones((count, 1))], 1) * z[:, None]
        self.points = np.stack([transform(clip.T_world_camera[f], p) for f, p in zip(picks, local, strict=True)])
        self.true_points = self.points.copy()
        self.clip, self.blind = clip, blind

    def cues(self, position: int, T_world_camera: np.ndarray) -> tuple[SparseCues, np.ndarray]:
        if position in self.blind:
            return SparseCues.empty(), np.zeros(0, np.int64)
        camera, depth = self.clip.camera, self.clip.frames[position][1]
        true = transform(inverse(T_world_camera), self.true_points)
        u, v = camera.fx * true[:, 0] / true[:, 2] + camera.cx, camera.fy * true[:, 1] / true[:, 2] + camera.cy
        seen = (true[:, 2] > 0) & (u > 0) & (u < camera.width) & (v > 0) & (v < camera.height)
        ids = np.flatnonzero(seen)
        ids = ids[np.abs(depth[v[ids].astype(int), u[ids].astype(int)] / true[ids, 2] - 1) < 0.05]  # not hidden
        told = transform(inverse(T_world_camera), self.points)[ids, 2]
        return SparseCues(np.stack([u, v], 1)[ids], told, 0.01 * told, "test"), ids.astype(np.int64)


@pytest.fixture(scope="module")
def clip() -> synthetic.Clip:
    return synthetic.Clip(synthetic.camera(), synthetic.walk(12))


def align(
    clip: synthetic.Clip,
    source: Points | None,
    domain: str = "disparity",
    posed: np.ndarray | None = None,
    bend: float = 0.0,
    config: AlignConfig = AlignConfig(),  # noqa: B008 (frozen)
    blank: int | None = None,
) -> tuple[dict[int, DepthMap], AlignmentReport]:
    """Align a clip of which every frame has a random affine map of its own, and frame `blank` no depth."""
    kept: dict[int, DepthMap] = {}

    def relative(position: int) -> RelativeDepth:
        truth = clip.frames[position][1] * (np.nan if position == blank else 1)
        return synthetic.corrupted(truth, domain, position, bend)  # type: ignore[arg-type]

    report = run(
        align_clip(
            relative,
            kept.__setitem__,
            np.arange(len(clip.frames)) if posed is None else np.flatnonzero(posed),
            [] if source is None else [source],
            config,
            camera=clip.camera,
            T_world_camera=clip.T_world_camera,
        )
    )
    return kept, report


@pytest.mark.parametrize("domain", ["depth", "disparity", "log_depth"])
def test_every_frame_of_a_clip_finds_its_scale(clip: synthetic.Clip, domain: str) -> None:
    kept, report = align(clip, Points(clip), domain, bend=0.1)
    assert sorted(kept) == list(range(12))
    assert max(abs_rel(kept[p], clip.frames[p][1]) for p in kept) < 0.04
    assert report.alignment.verdicts == {"scale and shift": 12}
    numbers = report.as_dict()
    assert numbers["held_out"]["abs_rel"] < 0.5 * numbers["held_out_affine"]["abs_rel"]  # type: ignore[index]
    assert numbers["held_out"]["n"] > 200  # type: ignore[index]
    json.dumps(numbers, allow_nan=False)


def test_frames_without_points_lean_on_the_others(clip: synthetic.Clip) -> None:
    blind = (0, 4, 5, 6, 11)
    kept, report = align(clip, Points(clip, blind=blind))
    assert report.alignment.cues[list(blind)].tolist() == [0] * 5
    assert report.not_aligned == 0
    assert max(abs_rel(kept[p], clip.frames[p][1]) for p in blind) < 0.03


def test_frames_without_pose_are_left_out(clip: synthetic.Clip) -> None:
    posed = np.arange(12) % 3 != 1
    kept, _ = align(clip, Points(clip), posed=posed)
    assert sorted(kept) == np.flatnonzero(posed).tolist()


def test_one_useless_frame_does_not_cost_the_clip(clip: synthetic.Clip) -> None:
    """A frame whose depth is NaN throughout gets no depth; the others are as before."""
    kept, report = align(clip, Points(clip), blank=5)
    assert not kept[5].valid.any()
    assert report.not_aligned == 1
    assert max(abs_rel(kept[p], clip.frames[p][1]) for p in kept if p != 5) < 0.03


def test_held_out_points_never_count(clip: synthetic.Clip) -> None:
    """Whatever is said of held-out points, the depth stays the same to the last bit; only the report changes."""
    honest, lying = Points(clip), Points(clip)
    held = held_out_points(lying.count, AlignConfig().held_out)
    assert 0.15 < held.mean() < 0.25
    lying.points[held] += np.random.default_rng(1).normal(0, 0.3, (held.sum(), 3))
    (a, report_a), (b, report_b) = align(clip, honest), align(clip, lying)
    for p in a:
        np.testing.assert_array_equal(a[p].depth, b[p].depth)
        np.testing.assert_array_equal(a[p].sigma, b[p].sigma)
    assert report_b.aligned.relative > 3 * report_a.aligned.relative


def test_a_clip_without_poses_or_depth(clip: synthetic.Clip) -> None:
    with pytest.raises(GeometryError, match="pose"):
        align(clip, Points(clip), posed=np.zeros(12, bool))
    empty = synthetic.Clip(clip.camera, clip.T_world_camera[:1])
    with pytest.raises(GeometryError, match="no frame has any depth"):
        align(empty, Points(clip), blank=0)


@pytest.mark.parametrize("domain", ["depth", "disparity", "log_depth"])
def test_a_static_clip_keeps_one_scale(domain: str) -> None:
    """Same view, another affine map each frame: all frames say the same depth, median about 1."""
    still = synthetic.Clip(synthetic.camera(), np.tile(np.eye(4), (5, 1, 1)))
    kept, _ = align(still, None, domain)
    assert np.median(kept[0].depth) == pytest.approx(1, abs=0.02)
    for p in range(1, 5):
        np.testing.assert_allclose(kept[p].depth, kept[0].depth, rtol=1e-2)


def test_a_distorted_camera_changes_nothing_for_a_still_camera() -> None:
    """Neighbouring depth is carried through the lens and back."""
    c = synthetic.camera()
    lens = Intrinsics(c.fx, c.fy, c.cx, c.cy, c.width, c.height, (-0.1, 0.01, 0.0, 0.0))
    still = synthetic.Clip(lens, np.tile(np.eye(4), (2, 1, 1)))
    kept, _ = align(still, None)
    np.testing.assert_allclose(kept[1].depth, kept[0].depth, rtol=5e-3)
