"""The sweep finds exact depth from a bent prior, merging never loses to its parts, and refinement of a clip pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter1d

from marigold3d.config import RefineConfig
from marigold3d.depth.device import in_parallel, in_parallel_or_waiting
from marigold3d.multiview.matching import Matcher, SweepView, box, distorted
from marigold3d.multiview.merge import Evidence, enlarged, merge
from marigold3d.multiview.refine import DepthAccess, Keyframes, Refinement, sweep_size
from marigold3d.multiview.semi_global import semi_global, sub_step
from marigold3d.multiview.sizes import reduced, shrunk
from marigold3d.multiview.sweep import SweepResult, sweep
from marigold3d.progress import run
from marigold3d.types import DepthMap, Intrinsics
from tests import synthetic

CAMERA = synthetic.camera(160, 120)


@pytest.fixture(scope="module")
def clip() -> synthetic.Clip:
    return synthetic.Clip(CAMERA, synthetic.walk(9, length=0.9))


@pytest.fixture(scope="module")
def views(clip: synthetic.Clip) -> list[SweepView]:
    return [SweepView(rgb, T) for (rgb, _), T in zip(clip.frames, clip.T_world_camera, strict=True)]


def bent(depth: np.ndarray, amount: float) -> np.ndarray:
    return (depth * np.exp(amount * synthetic.wave(depth.shape))).astype(np.float32)


def error(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.abs(estimate / truth - 1)


# -- matching ---------------------------------------------------------------------------------------------------------


def test_the_window_mean_is_the_window_mean() -> None:
    image = torch.rand(2, 1, 20, 24)
    mean = box(image)
    assert mean.shape == image.shape
    assert float(mean[1, 0, 9, 12]) == pytest.approx(float(image[1, 0, 6:13, 9:16].mean()), rel=1e-5)


def test_true_depth_scores_best_and_exposure_does_not_matter(clip: synthetic.Clip, views: list[SweepView]) -> None:
    truth = torch.as_tensor(clip.frames[4][1])
    darker = SweepView((views[5].rgb * 0.6).astype(np.uint8), views[5].T_world_camera)
    factors = torch.tensor([0.8, 1.0, 1.25])[:, None, None]
    best = []
    for other in (views[5], darker):
        matcher = Matcher(views[4], [other], CAMERA, torch.device("cpu"), colour=True)
        matcher.equalise(truth)
        scores = matcher.scores(truth * factors)
        assert (scores[1] > torch.maximum(scores[0], scores[2])).float().mean() > 0.85
        best.append(float(scores[1].mean()))
    assert best[1] == pytest.approx(best[0], abs=0.05)


def test_mean_colours_tell_what_texture_does_not() -> None:
    """Two plain halves, side by side: correlation says nothing of them, their colours do."""
    rgb = np.zeros((60, 80, 3), np.uint8)
    rgb[:, :40], rgb[:, 40:] = (200, 60, 60), (60, 60, 200)
    T = np.eye(4)
    T[0, 3] = 0.5
    matcher = Matcher(
        SweepView(rgb, np.eye(4)), [SweepView(rgb, T)], synthetic.camera(80, 60), torch.device("cpu"), colour=True
    )
    z = torch.stack([torch.full((60, 80), 1e3), torch.full((60, 80), 1.5)])  # no shift, and a shift of some 20 px
    scores = matcher.scores(z)
    beside = np.s_[20:40, 46:54]  # blue here; with the shift, the red half lies there
    assert (scores[0][beside] > scores[1][beside] + 0.3).all()


def test_lens_distortion_is_the_cameras_own() -> None:
    from marigold3d.camera import distort

    coefficients = (-0.2, 0.05, 0.002, -0.003)
    xy = np.random.default_rng(0).uniform(-0.6, 0.6, (50, 2))
    expected = distort(xy, Intrinsics(100, 100, 50, 50, 100, 100, distortion=coefficients))
    x, y = distorted(torch.as_tensor(xy[:, 0]), torch.as_tensor(xy[:, 1]), coefficients)
    np.testing.assert_allclose(np.stack([x, y], 1), expected, rtol=1e-9)


def test_shrinking_averages() -> None:
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[::2] = 100
    assert (shrunk(rgb, 3, 2) == 50).all()
    assert shrunk(rgb, 6, 4) is rgb


def test_aggregation_keeps_a_clear_minimum_and_fills_a_gap() -> None:
    cost = torch.ones(7, 9, 11)
    cost[4] = 0.0
    cost[:, 4, 5] = 0.5  # a pixel that knows nothing
    assert (semi_global(cost, torch.zeros(9, 11)).argmin(0) == 4).all()


def test_the_parabola_finds_the_minimum_between_hypotheses() -> None:
    offsets = torch.linspace(-0.1, 0.1, 9)
    for true in (-0.04, 0.007, 0.05):
        cost = ((offsets - true) ** 2)[:, None, None].expand(9, 2, 3)
        found, _, sigma = sub_step(cost, 1 - cost, offsets)
        np.testing.assert_allclose(found, true, atol=1e-5)
        assert (sigma > 0).all()


# -- the sweep --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0.0, 0.15, -0.3])
def test_the_sweep_escapes_a_wrong_prior(clip: synthetic.Clip, views: list[SweepView], amount: float) -> None:
    truth = clip.frames[4][1]
    others = [views[i] for i in (1, 2, 3, 5, 6, 7)]
    found = sweep(views[4], others, CAMERA, bent(truth, amount), 0.15)
    assert np.median(error(found.depth, truth)) < 0.012
    assert (error(found.depth, truth) < 0.05).mean() > 0.85
    assert np.median(found.score) > 0.7


def test_a_prior_without_any_shape_is_escaped_too(clip: synthetic.Clip, views: list[SweepView]) -> None:
    truth = clip.frames[4][1]
    constant = np.full_like(truth, 1.7)
    found = sweep(views[4], [views[i] for i in (1, 2, 3, 5, 6, 7)], CAMERA, constant, 0.4)
    assert np.median(error(constant, truth)) > 0.3
    assert np.median(error(found.depth, truth)) < 0.02


def test_the_sweep_sees_through_a_lens(clip: synthetic.Clip) -> None:
    """Images of a lens with barrel distortion: known to the sweep, it does not matter."""
    from scipy.ndimage import map_coordinates

    from marigold3d.camera import pixel_grid, project, unproject

    lens = Intrinsics(CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy, 160, 120, distortion=(-0.15, 0.02, 0.0, 0.0))
    at = project(unproject(pixel_grid(160, 120).reshape(-1, 2), np.ones(160 * 120), lens), CAMERA).reshape(120, 160, 2)

    def through_lens(image: np.ndarray) -> np.ndarray:
        rows, columns = at[..., 1] - 0.5, at[..., 0] - 0.5
        return np.asarray(map_coordinates(image.astype(float), [rows, columns], order=1, mode="nearest"))

    def seen(i: int) -> SweepView:
        rgb = np.stack([through_lens(clip.frames[i][0][..., c]) for c in range(3)], -1).round().astype(np.uint8)
        return SweepView(rgb, clip.T_world_camera[i])

    truth = through_lens(clip.frames[4][1]).astype(np.float32)
    others = [seen(i) for i in (2, 3, 5, 6)]
    inner = np.s_[15:-15, 20:-20]
    known = sweep(seen(4), others, lens, bent(truth, 0.15), 0.15)
    ignored = sweep(seen(4), others, CAMERA, bent(truth, 0.15), 0.15)
    assert np.median(error(known.depth, truth)[inner]) < 0.015
    assert np.median(error(known.depth, truth)[inner]) < 0.8 * np.median(error(ignored.depth, truth)[inner])


def test_sigma_and_score_rank_the_errors(clip: synthetic.Clip, views: list[SweepView]) -> None:
    truth = clip.frames[4][1]
    found = sweep(views[4], [views[i] for i in (2, 3, 5, 6)], CAMERA, bent(truth, 0.15), 0.15)
    wrong = error(found.depth, truth)
    sure = found.score > np.median(found.score)
    assert wrong[sure].mean() < 0.8 * wrong[~sure].mean()
    best = found.sigma < np.quantile(found.sigma, 0.3)
    assert wrong[best].mean() < wrong[~best].mean()


def test_units_do_not_matter(clip: synthetic.Clip, views: list[SweepView]) -> None:
    truth = clip.frames[4][1]
    picked = [views[i] for i in (4, 2, 6)]
    scaled = []
    for view in picked:
        T = view.T_world_camera.copy()
        T[:3, 3] *= 100
        scaled.append(SweepView(view.rgb, T))
    one = sweep(picked[0], picked[1:], CAMERA, truth, 0.1)
    hundred = sweep(scaled[0], scaled[1:], CAMERA, 100 * truth, 0.1)
    assert np.mean(error(hundred.depth / 100, one.depth) < 1e-2) > 0.999  # ties may fall otherwise
    assert np.median(error(hundred.depth / 100, one.depth)) < 1e-4


def test_without_texture_nothing_is_believed_and_the_prior_stands(clip: synthetic.Clip) -> None:
    prior = bent_clip(clip)
    kept = Kept(prior)
    blank = [np.full((120, 160, 3), 128, np.uint8) for _ in clip.frames]
    agreed, _ = refine(keyframes(clip.T_world_camera, list(range(9))), kept, Images(blank))
    assert agreed == 0
    assert max(swept.score.max() for swept in kept.swept.values()) < 0.1
    assert all(kept.refined[i] is prior[i] for i in range(9))


# -- merging ----------------------------------------------------------------------------------------------------------


def evidence(truth: np.ndarray, agreed: np.ndarray, sigma: float = 0.005) -> Evidence:
    none = Evidence.none(truth.shape)
    depth = np.where(agreed, truth, 0).astype(np.float32)
    return Evidence(DepthMap(depth, agreed, np.float32(sigma) * depth), none.likely, none.likely_weight)


def test_merging_takes_what_views_agree_on_and_leaves_no_seam(clip: synthetic.Clip) -> None:
    rgb, truth = clip.frames[4]
    prior = DepthMap(bent(truth, 0.2), np.ones(truth.shape, bool), np.float32(0.1) * truth)
    agreed = np.zeros(truth.shape, bool)
    agreed[:, :50] = True
    merged = merge(prior, evidence(truth, agreed), rgb)
    inside = np.s_[:, :40]
    assert np.median(error(merged.depth.depth, truth)[inside]) < 0.012
    beside = np.s_[:, 50:62]
    assert error(merged.depth.depth, truth)[beside].mean() < 0.5 * error(prior.depth, truth)[beside].mean()
    step = np.abs(np.diff(np.log(merged.depth.depth / truth), axis=1))[:, 49]
    assert np.median(step) < 0.02, "the border between the two sources does not show"
    assert merged.depth.sigma is not None
    share = merged.depth.sigma / merged.depth.depth
    assert np.median(share[:, :40]) < np.median(share[:, 130:])
    assert merged.from_views[:, :40].mean() > 0.9


def test_merging_nothing_is_the_prior(clip: synthetic.Clip) -> None:
    prior = synthetic.depth_maps(clip)[0]
    merged = merge(prior, Evidence.none(prior.depth.shape), clip.frames[0][0])
    assert merged.depth is prior
    assert not merged.from_views.any()


def test_depth_fills_a_plain_surface_from_its_rims_and_stops_at_its_outline() -> None:
    """A plain near square before a far wall, known at a few pixels each; the prior sees the wall only."""
    rgb = np.full((60, 80, 3), 220, np.uint8)
    rgb[20:45, 25:55] = (150, 30, 30)
    truth = np.full((60, 80), 3.0, np.float32)
    truth[20:45, 25:55] = 1.5
    agreed = np.zeros(truth.shape, bool)
    agreed[:10], agreed[52:], agreed[26:39, 25:32] = True, True, True
    prior = DepthMap(np.full_like(truth, 2.8), truth > 0, np.full_like(truth, 0.5))
    merged = merge(prior, evidence(truth, agreed), rgb).depth.depth
    assert error(merged, truth)[24:41, 29:51].max() < 0.1
    assert error(merged, truth)[:, 62:].max() < 0.1
    assert error(merged, truth).mean() < 0.04


def test_a_map_is_enlarged_along_the_images_outlines_and_keeps_its_detail() -> None:
    fine = np.full((80, 120), 2.0, np.float32)
    fine[:, 61:] = 4.0
    fine[40:42] *= 1.1  # a line of the prior too thin for the smaller map
    rgb = np.where(np.arange(120)[None, :, None] < 61, 40, 200).astype(np.uint8).repeat(80, 0).repeat(3, 2)
    aligned = DepthMap(fine, fine > 0, np.float32(0.1) * fine)
    prior = reduced(aligned, 60, 40)
    same = enlarged(prior, prior, aligned, rgb)
    np.testing.assert_allclose(same.depth, fine, rtol=1e-5)
    half = DepthMap(prior.depth * np.float32(0.5), prior.valid, prior.sigma)
    np.testing.assert_allclose(enlarged(half, prior, aligned, rgb).depth, 0.5 * fine, rtol=1e-4)


# -- a clip -----------------------------------------------------------------------------------------------------------


class Kept:
    """A DepthAccess in memory."""

    def __init__(self, aligned: dict[int, DepthMap]) -> None:
        self.swept: dict[int, SweepResult] = {}
        self.sure: dict[int, DepthMap] = {}
        self.refined: dict[int, DepthMap] = {}
        self.share: dict[int, float] = {}
        self.access = DepthAccess(
            aligned.__getitem__,
            self.swept.get,
            self.swept.__setitem__,
            self.sure.__getitem__,
            self.sure.__setitem__,
            self.refined.__getitem__,
            self._keep,
            self.share.get,
        )

    def _keep(self, position: int, depth: DepthMap, share: float) -> None:
        self.refined[position], self.share[position] = depth, share


class Images:
    """Frames by position; counts what was asked for."""

    def __init__(self, frames: list[np.ndarray]) -> None:
        self.frames, self.asked = frames, 0

    def __call__(self, positions: Sequence[int]) -> Iterator[np.ndarray]:
        self.asked += len(positions)
        return (self.frames[i] for i in positions)


CONFIG = RefineConfig(max_side=160)


def keyframes(T_world_camera: np.ndarray, rows: list[int]) -> Keyframes:
    return Keyframes(np.array(rows), T_world_camera[rows], CAMERA, 2.5)


def refine(keys: Keyframes, kept: Kept, images: Images) -> tuple[float, Refinement]:
    """The steps up to the merged keyframes: the share of pixels that sweeps agree on, and what can go on."""
    refinement = Refinement(keys, kept.access, images, CONFIG)
    run(refinement.sweep())
    agreed = run(refinement.confirm())
    run(refinement.merge_keyframes())
    return agreed, refinement


def bent_clip(clip: synthetic.Clip, amount: float = 0.2) -> dict[int, DepthMap]:
    truth = [z for _, z in clip.frames]
    return {i: DepthMap(bent(z, amount), np.ones(z.shape, bool), np.float32(0.1) * z) for i, z in enumerate(truth)}


def test_refining_a_clip_pays_on_keyframes_and_between(clip: synthetic.Clip) -> None:
    """All frames start 20 % bent; keyframes are matched, the frames between follow them. Nothing is done twice."""
    prior, truth = bent_clip(clip), [z for _, z in clip.frames]
    kept, images = Kept(prior), Images([rgb for rgb, _ in clip.frames])
    keys = keyframes(clip.T_world_camera, [0, 2, 4, 6, 8])
    agreed, refinement = refine(keys, kept, images)
    assert agreed > 0.5
    run(refinement.merge_between(np.array([3, 5]), clip.T_world_camera))
    for i in (2, 4, 6):
        assert error(kept.refined[i].depth, truth[i]).mean() < 0.25 * error(prior[i].depth, truth[i]).mean()
    for i in (3, 5):
        assert error(kept.refined[i].depth, truth[i]).mean() < 0.4 * error(prior[i].depth, truth[i]).mean()
    asked = images.asked
    refine(keys, kept, images)
    assert images.asked == asked, "what is kept is not read again"


def test_poses_of_another_clip_are_not_believed(clip: synthetic.Clip) -> None:
    """With wrong poses the views agree on little, and what they do does not spoil the prior."""
    prior, truth = bent_clip(clip, 0.05), [z for _, z in clip.frames]
    rng = np.random.default_rng(3)
    wrong = np.stack([synthetic.look(rng.uniform(-0.4, 0.4, 3), *rng.uniform(-0.15, 0.15, 3)) for _ in range(9)])
    kept, images = Kept(prior), Images([rgb for rgb, _ in clip.frames])
    right, _ = refine(keyframes(clip.T_world_camera, list(range(9))), Kept(prior), images)
    agreed, _ = refine(keyframes(wrong, list(range(9))), kept, images)
    assert agreed < 0.25 * right
    assert np.mean([error(kept.refined[i].depth, truth[i]).mean() for i in range(9)]) < 0.15


def test_exposure_jumps_do_not_matter(clip: synthetic.Clip) -> None:
    prior, truth = bent_clip(clip), [z for _, z in clip.frames]
    jumping = [(rgb * (1.0, 0.6, 0.8)[i % 3]).astype(np.uint8) for i, (rgb, _) in enumerate(clip.frames)]
    kept = Kept(prior)
    refine(keyframes(clip.T_world_camera, list(range(9))), kept, Images(jumping))
    for i in (3, 4, 5):
        assert error(kept.refined[i].depth, truth[i]).mean() < 0.3 * error(prior[i].depth, truth[i]).mean()


def test_motion_blur_costs_detail_not_truth(clip: synthetic.Clip) -> None:
    """Every second frame smeared over 11 pixels: less is matched, what is made of it is better than the prior."""
    prior, truth = bent_clip(clip), [z for _, z in clip.frames]
    smear = [uniform_filter1d(rgb, 11, axis=1) if i % 2 else rgb for i, (rgb, _) in enumerate(clip.frames)]
    sharp, kept = Kept(prior), Kept(prior)
    keys = keyframes(clip.T_world_camera, list(range(9)))
    agreed_sharp, _ = refine(keys, sharp, Images([rgb for rgb, _ in clip.frames]))
    agreed, _ = refine(keys, kept, Images(smear))
    assert agreed < agreed_sharp
    for i in (3, 4, 5):
        assert error(kept.refined[i].depth, truth[i]).mean() < 0.5 * error(prior[i].depth, truth[i]).mean()


def upside_down(depth: DepthMap) -> DepthMap:
    return DepthMap(depth.depth[::-1, ::-1].copy(), depth.valid, depth.sigma[::-1, ::-1].copy())


def test_a_cut_in_the_middle_does_not_make_things_up(clip: synthetic.Clip) -> None:
    """From frame 5 on the clip shows another scene, under poses that go on as if nothing had happened."""
    prior, truth = bent_clip(clip, 0.1), [z for _, z in clip.frames]
    frames = [rgb if i < 5 else rgb[::-1, ::-1].copy() for i, (rgb, _) in enumerate(clip.frames)]
    scene = [z if i < 5 else z[::-1, ::-1].copy() for i, z in enumerate(truth)]
    turned = {i: prior[i] if i < 5 else upside_down(prior[i]) for i in prior}
    kept = Kept(turned)
    refine(keyframes(clip.T_world_camera, list(range(9))), kept, Images(frames))
    for i in range(9):
        before = error(turned[i].depth, scene[i]).mean()
        after = error(kept.refined[i].depth, scene[i])
        assert after.mean() < 1.2 * before
        sure = kept.refined[i].sigma < 0.02 * kept.refined[i].depth
        assert (sure & (after > 0.1)).mean() < 0.02, "confident and wrong"
    for i in (1, 2, 3):  # the first scene has views enough of its own
        assert error(kept.refined[i].depth, scene[i]).mean() < 0.6 * error(turned[i].depth, scene[i]).mean()


def test_someone_who_walks_through_half_the_picture_keeps_the_priors_depth(clip: synthetic.Clip) -> None:
    """A striped block that moves with the camera, as no still thing does: what it hides is unknown, itself is prior."""
    truth = [z.copy() for _, z in clip.frames]
    frames = [rgb.copy() for rgb, _ in clip.frames]
    stripes = np.random.default_rng(1).integers(60, 220, (120, 70, 3)).astype(np.uint8)
    for i, (rgb, z) in enumerate(zip(frames, truth, strict=True)):
        at = 5 + 7 * i
        rgb[:, at : at + 70], z[:, at : at + 70] = stripes[:, : 160 - at], 1.0
    prior = {i: DepthMap(bent(z, 0.1), np.ones(z.shape, bool), np.float32(0.1) * z) for i, z in enumerate(truth)}
    kept = Kept(prior)
    refine(keyframes(clip.T_world_camera, list(range(9))), kept, Images(frames))
    for i in (3, 4, 5):
        at = 5 + 7 * i
        inside, outside = np.s_[10:-10, at + 12 : at + 58], np.ones((120, 160), bool)
        outside[:, max(0, at - 6) : at + 76] = False
        wrong = error(kept.refined[i].depth, truth[i])
        assert wrong[inside].mean() < 0.25
        assert wrong[outside].mean() < 0.7 * error(prior[i].depth, truth[i])[outside].mean()


def test_two_frames_and_no_parallax(clip: synthetic.Clip) -> None:
    prior, frames = bent_clip(clip), Images([rgb for rgb, _ in clip.frames])
    two = Kept(prior)
    assert refine(keyframes(clip.T_world_camera, [3, 5]), two, frames)[0] > 0.2
    turning = synthetic.Clip(CAMERA, synthetic.pan(5))
    keys = Keyframes(np.arange(5), turning.T_world_camera, CAMERA, 2.5)
    still = Kept(prior)
    agreed, refinement = refine(keys, still, Images([rgb for rgb, _ in turning.frames]))
    assert agreed == 0
    assert refinement.views.parallax_share() == 0
    assert all(still.refined[i] is prior[i] for i in range(5))


def test_sizes() -> None:
    assert sweep_size(CAMERA, 320) == (160, 120)
    assert sweep_size(synthetic.camera(640, 481), 320) == (320, 240)
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    depth = DepthMap(image + 1, image > 0, image)
    small = reduced(depth, 2, 3)
    assert small.depth.shape == (3, 2)
    assert set(small.depth.ravel()) <= set((image + 1).ravel()), "no depth is made up"


def test_work_in_parallel_keeps_its_order_and_the_thread_setting() -> None:
    before = torch.get_num_threads()
    assert list(in_parallel(lambda i: i * i, 9, torch.device("cpu"))) == [i * i for i in range(9)]
    assert torch.get_num_threads() == before
    some = in_parallel(lambda i: i, 100, torch.device("cpu"))
    assert next(some) == 0
    some.close()
    assert torch.get_num_threads() == before


def test_waiting_for_work_is_said_and_closing_does_not_wait_for_it() -> None:
    """The work ends after the generator was closed: were it waited for, it would have ended before."""
    closed, ended = Event(), []

    def work(i: int) -> int:
        if i == 0:
            return 7
        ended.append(closed.wait(20))
        return i

    results = in_parallel_or_waiting(work, 100, torch.device("cpu"))
    assert next(r for r in results if r is not None) == 7
    assert next(results) is None
    assert next(results) is None
    results.close()
    assert not ended
    closed.set()
    with pytest.raises(ZeroDivisionError):
        list(in_parallel_or_waiting(lambda i: 1 // (3 - i), 9, torch.device("cpu")))
