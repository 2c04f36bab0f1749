"""What views say of each other: the same surface agrees, a blob in the air is contradicted, an occluder is neutral."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marigold3d.multiview.consistency import View, carried, clear_of_edges, compare, consistent, neighbour_positions
from marigold3d.types import DepthMap
from tests import synthetic

RATIO = 0.05


@pytest.fixture(scope="module")
def views() -> list[View]:
    clip = synthetic.Clip(synthetic.camera(), synthetic.walk(5, length=0.8))
    return [View(d, T) for d, T in zip(synthetic.depth_maps(clip), clip.T_world_camera, strict=True)]


def with_depth(view: View, depth: np.ndarray) -> View:
    depth = depth.astype(np.float32)
    return View(DepthMap(depth, depth > 0, np.float32(0.02) * depth), view.T_world_camera)


def test_identical_surfaces_agree_wherever_they_are_seen(views: list[View]) -> None:
    verdict = compare(views[2], [views[1], views[3]], synthetic.camera(), RATIO)
    # Pixels beside the ball's outline may fall on its other side; behind it, nothing is seen.
    assert (verdict.agree >= 1).mean() > 0.97
    assert (verdict.contradict > 0).mean() < 0.02
    np.testing.assert_allclose(verdict.depth, views[2].depth.depth, rtol=0.03)


def test_a_view_agrees_with_itself_everywhere(views: list[View]) -> None:
    verdict = compare(views[0], [views[0], views[0]], synthetic.camera(), RATIO)
    assert (verdict.agree == 2).all()
    assert not verdict.contradict.any()
    np.testing.assert_allclose(verdict.depth, views[0].depth.depth, rtol=1e-5)
    np.testing.assert_allclose(verdict.sigma, views[0].depth.sigma / np.sqrt(3), rtol=1e-4)


def test_a_blob_in_the_air_is_contradicted(views: list[View]) -> None:
    depth = views[2].depth.depth.copy()
    blob = np.s_[20:30, 10:20]  # in front of the far wall
    depth[blob] *= 0.5
    verdict = compare(with_depth(views[2], depth), [views[1], views[3], views[4]], synthetic.camera(), RATIO)
    assert (verdict.contradict[blob] >= 2).all()
    assert (verdict.agree[blob] == 0).all()
    keep = consistent(verdict, 3, 2)
    assert not keep[blob].any()
    elsewhere = np.ones_like(keep)
    elsewhere[blob] = False
    assert keep[elsewhere].mean() > 0.8


def test_an_occluder_in_another_view_says_nothing(views: list[View]) -> None:
    near = np.full_like(views[3].depth.depth, 0.4)
    verdict = compare(views[2], [with_depth(views[3], near)], synthetic.camera(), RATIO)
    assert not verdict.agree.any()
    assert not verdict.contradict.any()
    np.testing.assert_allclose(verdict.depth, views[2].depth.depth, rtol=1e-5)


def test_invalid_pixels_take_no_part(views: list[View]) -> None:
    depth = views[2].depth.depth.copy()
    depth[:, :30] = 0
    verdict = compare(with_depth(views[2], depth), [views[1]], synthetic.camera(), RATIO)
    assert not verdict.agree[:, :30].any()
    empty = with_depth(views[1], np.zeros_like(depth))
    silent = compare(views[2], [empty], synthetic.camera(), RATIO)
    assert not silent.agree.any()
    assert not silent.contradict.any()


def test_views_that_look_elsewhere_say_nothing(views: list[View]) -> None:
    behind = View(views[1].depth, synthetic.look((0, 0, 0), np.pi))
    verdict = compare(views[2], [behind], synthetic.camera(), RATIO)
    assert not verdict.agree.any()
    assert not verdict.contradict.any()


def test_averaging_over_views_takes_noise_away(views: list[View], rng: np.random.Generator) -> None:
    noisy = [with_depth(v, v.depth.depth * np.exp(rng.normal(0, 0.02, v.depth.depth.shape))) for v in views]
    verdict = compare(noisy[2], [noisy[i] for i in (0, 1, 3, 4)], synthetic.camera(), 0.1)
    truth = views[2].depth.depth
    seen = verdict.agree == 4
    before = np.std((noisy[2].depth.depth / truth)[seen])
    after = np.std((verdict.depth / truth)[seen])
    assert seen.mean() > 0.5
    assert after < 0.65 * before
    claimed = np.median((verdict.sigma / truth)[seen])
    assert after == pytest.approx(claimed, rel=0.5)


def test_every_nth_pixel_is_a_sample_of_all(views: list[View]) -> None:
    whole = compare(views[2], [views[1], views[3]], synthetic.camera(), RATIO)
    coarse = compare(views[2], [views[1], views[3]], synthetic.camera(), RATIO, step=4)
    np.testing.assert_array_equal(coarse.agree, whole.agree[::4, ::4])
    np.testing.assert_allclose(coarse.depth, whole.depth[::4, ::4], rtol=1e-6)


@settings(deadline=None)
@given(k=st.floats(0.01, 100), order=st.permutations([0, 1, 3, 4]))
def test_units_and_order_are_nothing(views: list[View], k: float, order: list[int]) -> None:
    camera = synthetic.camera()
    plain = compare(views[2], [views[i] for i in (0, 1, 3, 4)], camera, RATIO, step=4)
    scaled = [_scaled(v, k) for v in views]
    other = compare(scaled[2], [scaled[i] for i in order], camera, RATIO, step=4)
    assert (other.agree != plain.agree).mean() < 0.01  # pixels on the borders of the image and the tolerance
    np.testing.assert_allclose(np.median(other.depth / plain.depth), k, rtol=1e-4)


def _scaled(view: View, k: float) -> View:
    T = view.T_world_camera.copy()
    T[:3, 3] *= k
    return View(view.depth.scaled(k), T)


def test_with_few_views_fewer_must_agree(views: list[View]) -> None:
    verdict = compare(views[2], [views[1]], synthetic.camera(), RATIO)
    assert consistent(verdict, 1, 3).mean() > 0.8
    assert not consistent(verdict, 3, 3).any()


def test_neighbours_are_near_face_the_same_way_and_are_spread() -> None:
    T = np.stack([synthetic.look((0.05 * i, 0, 0)) for i in range(60)])
    found = neighbour_positions(T, 20, depth=2.0, count=6)
    offsets = np.abs(np.array(found) - 20) * 0.05
    assert len(set(found)) == 6
    assert 20 not in found
    assert offsets.max() < 1.0
    assert offsets.max() > 0.7, "some must be far enough for parallax"
    assert offsets.min() < 0.3, "and some near enough to see the same"
    turned = np.stack([synthetic.look((0.05 * i, 0, 0), yaw=0.4 * i) for i in range(8)])
    assert neighbour_positions(turned, 0, 2.0, 6) == [1]


def test_a_lonely_view_has_no_neighbours() -> None:
    assert neighbour_positions(np.eye(4)[None], 0, 2.0, 6) == []


def test_carried_depth_is_the_depth_of_the_frame_it_is_carried_to(views: list[View]) -> None:
    here = views[2]
    found = carried([views[1], views[3]], here.T_world_camera, synthetic.camera())
    assert found.valid.mean() > 0.8
    off = np.abs(found.depth / np.maximum(here.depth.depth, 1e-9) - 1)[found.valid]
    assert np.median(off) < 0.01
    assert (off < 0.05).mean() > 0.95  # beside outlines a pixel's ray may pass the ball
    assert found.sigma is not None
    assert (found.sigma[found.valid] > 0).all()


def test_carried_to_itself_a_map_is_itself_and_what_is_invalid_stays_away(views: list[View]) -> None:
    holed = DepthMap(
        views[0].depth.depth, np.arange(views[0].depth.depth.size).reshape(views[0].depth.depth.shape) % 3 > 0
    )
    found = carried([View(holed, views[0].T_world_camera)], views[0].T_world_camera, synthetic.camera())
    np.testing.assert_array_equal(found.valid, holed.valid)
    np.testing.assert_allclose(found.depth[holed.valid], holed.depth[holed.valid], rtol=1e-5)
    assert not carried([], views[0].T_world_camera, synthetic.camera()).valid.any()


def test_the_nearest_surface_is_carried(views: list[View]) -> None:
    behind = with_depth(views[1], 2 * views[1].depth.depth)
    T = views[1].T_world_camera
    found = carried([behind, views[1]], T, synthetic.camera())
    np.testing.assert_allclose(found.depth[found.valid], views[1].depth.depth[found.valid], rtol=1e-4)


def test_the_near_side_of_an_outline_is_not_clear() -> None:
    depth = np.full((20, 30), 2.0, np.float32)
    depth[:, 15:] = 3.0
    clear = clear_of_edges(DepthMap(depth, depth > 0), 3)
    assert not clear[:, 12:15].any()
    assert clear[:, :12].all()
    assert clear[:, 15:].all(), "the farther side is"
