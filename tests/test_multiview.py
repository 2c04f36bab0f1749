"""The sweep finds exact depth from a bent prior, the merge never loses to its parts, and refinement of a clip pays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from marigold3d.config import RefineConfig
from marigold3d.depth.device import in_parallel
from marigold3d.multiview.merge import merge
from marigold3d.multiview.refine import (
    DepthAccess,
    Keyframes,
    bend,
    enlarged,
    has_parallax,
    merge_keyframes,
    reduced,
    refine_between,
    sweep_keyframes,
    sweep_size,
)
from marigold3d.multiview.sweep import SweepView, _box, gray, semi_global, sweep
from marigold3d.progress import run
from marigold3d.types import DepthMap, SparseCues
from tests import synthetic

CAMERA = synthetic.camera(160, 120)


@pytest.fixture(scope="module")
def clip() -> synthetic.Clip:
    return synthetic.Clip(CAMERA, synthetic.walk(9, length=0.9))


@pytest.fixture(scope="module")
def views(clip: synthetic.Clip) -> list[SweepView]:
    return [
        SweepView(gray(rgb, CAMERA.width, CAMERA.height), T)
        for (rgb, _), T in zip(clip.frames, clip.T_world_camera, strict=True)
    ]


def bent(depth: np.ndarray, amount: float) -> np.ndarray:
    return (depth * np.exp(amount * synthetic.wave(depth.shape))).astype(np.float32)


def error(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.abs(estimate / truth - 1)


@pytest.mark.parametrize("amount", [0.0, 0.15, -0.3])
def test_the_sweep_escapes_a_wrong_prior(clip: synthetic.Clip, views: list[SweepView], amount: float) -> None:
    truth = clip.frames[4][1]
    others = [views[i] for i in (1, 2, 3, 5, 6, 7)]
    found = sweep(views[4], others, CAMERA, bent(truth, amount), 0.15)
    assert np.median(error(found.depth, truth)) < 0.012
    assert (error(found.depth, truth) < 0.05).mean() > 0.85
    assert np.median(found.score) > 0.8


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
        scaled.append(SweepView(view.gray, T))
    one = sweep(picked[0], picked[1:], CAMERA, truth, 0.1)
    hundred = sweep(scaled[0], scaled[1:], CAMERA, 100 * truth, 0.1)
    np.testing.assert_allclose(hundred.depth / 100, one.depth, rtol=1e-2)
    assert np.median(np.abs(hundred.depth / 100 / one.depth - 1)) < 1e-4


def test_without_texture_the_prior_stands(clip: synthetic.Clip, views: list[SweepView]) -> None:
    blank = [SweepView(np.full_like(v.gray, 0.5), v.T_world_camera) for v in views[3:6]]
    truth = clip.frames[4][1]
    found = sweep(blank[1], [blank[0], blank[2]], CAMERA, truth, 0.1)
    inner = np.s_[20:-20, 30:-30]  # seen by both; elsewhere a hypothesis can win by leaving the image
    np.testing.assert_allclose(found.depth[inner], truth[inner], rtol=0.03)
    assert found.score.max() < 0.1


def test_the_window_mean_is_the_window_mean() -> None:
    image = torch.rand(2, 1, 20, 24)
    mean = _box(image)
    assert mean.shape == image.shape
    expected = image[1, 0, 6:13, 9:16].mean()
    assert float(mean[1, 0, 9, 12]) == pytest.approx(float(expected), rel=1e-5)


def test_aggregation_keeps_a_clear_minimum_and_fills_a_gap() -> None:
    cost = torch.ones(7, 9, 11)
    cost[4] = 0.0
    cost[:, 4, 5] = 0.5  # a pixel that knows nothing
    assert (semi_global(cost, torch.zeros(9, 11)).argmin(0) == 4).all()


def test_merging_takes_what_views_agree_on_and_leaves_no_seam(clip: synthetic.Clip) -> None:
    truth = clip.frames[4][1]
    prior = DepthMap(bent(truth, 0.2), np.ones(truth.shape, bool), np.float32(0.1) * truth)
    agreed = np.zeros(truth.shape, bool)
    agreed[:, :50] = True
    merged = merge(prior, truth, np.full(truth.shape, 0.005, np.float32), agreed)
    assert np.median(error(merged.depth.depth, truth)[agreed]) < 0.005
    beside = np.s_[:, 50:62]
    assert error(merged.depth.depth, truth)[beside].mean() < 0.5 * error(prior.depth, truth)[beside].mean()
    step = np.abs(np.diff(np.log(merged.depth.depth / truth), axis=1))[:, 49]
    assert np.median(step) < 0.01, "the border between the two sources does not show"
    assert merged.depth.sigma is not None
    assert np.median(merged.depth.sigma[:, :40]) < np.median(merged.depth.sigma[:, 130:])


def test_merging_nothing_is_the_prior(clip: synthetic.Clip) -> None:
    prior = synthetic.depth_maps(clip)[0]
    merged = merge(prior, prior.depth, np.full(prior.depth.shape, 0.01, np.float32), np.zeros(prior.depth.shape, bool))
    assert merged.depth is prior
    assert not merged.from_views.any()


def keyframes(clip: synthetic.Clip, rows: list[int]) -> Keyframes:
    return Keyframes(np.array(rows), clip.T_world_camera[rows], CAMERA, 2.5)


def test_refining_a_clip_pays_on_keyframes_and_between(clip: synthetic.Clip) -> None:
    """All frames start 20 % bent; keyframes are matched, the frames between follow them."""
    truth = [z for _, z in clip.frames]
    prior = {i: DepthMap(bent(z, 0.2), np.ones(z.shape, bool), np.float32(0.1) * z) for i, z in enumerate(truth)}
    swept: dict[int, DepthMap] = {}
    refined: dict[int, DepthMap] = {}
    access = DepthAccess(prior.__getitem__, swept.__getitem__, swept.__setitem__, refined.__setitem__)
    keys = keyframes(clip, [0, 2, 4, 6, 8])
    config = RefineConfig(max_side=160)
    run(sweep_keyframes(keys, (clip.frames[i][0] for i in keys.positions), access, config, "cpu"))
    share = run(merge_keyframes(keys, access, config))
    run(refine_between(np.array([3, 5]), clip.T_world_camera, keys, access, refined.__getitem__))
    assert share > 0.5
    for i in (2, 4, 6):
        assert error(refined[i].depth, truth[i]).mean() < 0.2 * error(prior[i].depth, truth[i]).mean()
    for i in (3, 5):
        assert error(refined[i].depth, truth[i]).mean() < 0.4 * error(prior[i].depth, truth[i]).mean()


def test_parallax_is_seen_where_there_is_some(clip: synthetic.Clip) -> None:
    assert has_parallax(keyframes(clip, list(range(9))), 8)
    turning = synthetic.Clip(CAMERA, synthetic.pan(9))
    assert not has_parallax(keyframes(turning, list(range(9))), 8)


def test_bending_without_cues_changes_nothing(clip: synthetic.Clip) -> None:
    depth = synthetic.depth_maps(clip)[0]
    assert bend(depth, SparseCues.empty()) is depth


def test_sizes() -> None:
    assert sweep_size(CAMERA, 320) == (160, 120)
    assert sweep_size(synthetic.camera(640, 481), 320) == (320, 240)
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(enlarged(image, 8, 6)[::2, ::2], image)
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
