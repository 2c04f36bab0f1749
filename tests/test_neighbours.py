"""Matching views are chosen by what they see and from where: laws of the choice, and cases where there is none."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from marigold3d.errors import InputError
from marigold3d.multiview import neighbours
from marigold3d.multiview.neighbours import MatchingViews, coarse_depth
from marigold3d.rigid import Similarity
from marigold3d.types import Array, DepthMap
from tests import synthetic

CAMERA = synthetic.camera(20, 15)
COUNT = 8


def room(T_world_camera: Array) -> MatchingViews:
    return MatchingViews(T_world_camera, depths(T_world_camera), CAMERA)


def depths(T_world_camera: Array) -> Array:
    return np.array([synthetic.depth_of(CAMERA, T) for T in T_world_camera]).reshape(-1, CAMERA.height, CAMERA.width)


def wander(seed: int, count: int = 14) -> Array:
    """(count, 4, 4) cameras at random places and in random directions near the middle of the room."""
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            synthetic.look(rng.uniform(-0.6, 0.6, 3), *rng.uniform(-0.4, 0.4, 2), rng.uniform(-1, 1))
            for _ in range(count)
        ]
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_chosen_views_meet_the_limits(seed: int) -> None:
    views = room(wander(seed, 30))
    for i in range(len(views)):
        near, pairing = views.of(i, COUNT), views.pairing(i)
        assert len(near) == len(set(near)) <= COUNT
        assert i not in near
        assert (pairing.overlap[near] >= neighbours.MIN_OVERLAP).all()
        assert (pairing.angle_deg[near] >= neighbours.MIN_ANGLE_DEG).all()
        assert (pairing.angle_deg[near] <= neighbours.MAX_ANGLE_DEG).all()
        assert (pairing.zoom[near] <= neighbours.MAX_ZOOM).all()


@given(
    seed=st.integers(0, 1000),
    scale=st.floats(1e-3, 1e3),
    turn=st.tuples(*[st.floats(-3, 3)] * 3),
    shift=st.tuples(*[st.floats(-5, 5)] * 3),
)
@settings(max_examples=25, deadline=None)
def test_the_world_does_not_matter(seed: int, scale: float, turn: tuple[float, ...], shift: tuple[float, ...]) -> None:
    """Turned, shifted (in its own units) and scaled."""
    T = wander(seed)
    moved = Similarity(scale, Rotation.from_rotvec(turn).as_matrix(), scale * np.array(shift)).apply_to_poses(T)
    here, there = room(T), MatchingViews(moved, scale * depths(T), CAMERA)
    for i in range(0, len(T), 5):
        one, other = here.pairing(i), there.pairing(i)
        np.testing.assert_allclose(other.overlap, one.overlap, atol=0.01)  # a point may lie on a border
        np.testing.assert_allclose(other.angle_deg, one.angle_deg, atol=0.2)
        if np.array_equal(other.seen, one.seen):
            assert there.of(i, COUNT) == here.of(i, COUNT)


@given(seed=st.integers(0, 1000), shuffle=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_views_does_not_matter(seed: int, shuffle: int) -> None:
    T = wander(seed)
    order = np.random.default_rng(shuffle).permutation(len(T))
    here, there = room(T), room(T[order])
    for new, old in enumerate(order.tolist()):
        assert [order[j] for j in there.of(new, COUNT)] == here.of(old, COUNT)


def test_angle_and_overlap_are_what_they_are_called() -> None:
    """A camera before a wall at 2, and one that stands 0.2 to the right: it sees the same but for a strip."""
    T = np.stack([synthetic.look((0, 0, 0)), synthetic.look((0.2, 0, 0)), synthetic.look((0, 0, 1.2))])
    wall = np.array([2.0, 2.0, 0.8])[:, None, None] * np.ones((3, 150, 200))
    pairing = MatchingViews(T, wall, synthetic.camera(200, 150)).pairing(0)
    rays = MatchingViews(T, wall, synthetic.camera(200, 150))._rays
    to_right = np.degrees(np.arccos(np.sum(_unit(rays) * _unit(2 * rays - [0.2, 0, 0]), axis=1)))
    strip_px = 0.2 / 2 * synthetic.camera(200, 150).fx
    assert pairing.angle_deg[0] == 0
    assert pairing.overlap[0] == 1
    assert pairing.angle_deg[1] == pytest.approx(np.median(to_right), rel=0.03)
    assert pairing.overlap[1] == pytest.approx(1 - strip_px / 200, abs=0.01)
    np.testing.assert_allclose(pairing.towards[1], [1, 0, 0])
    assert pairing.zoom[2] == pytest.approx(2.5, rel=1e-6), "2 away, and 0.8 away"


def _unit(v: Array) -> Array:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def test_what_stands_before_the_scene_hides_it() -> None:
    T = np.stack([synthetic.look((0, 0, 0)), synthetic.look((0.2, 0, 0))])
    wall = np.full((2, 15, 20), 2.0)
    wall[1, :, :10] = 0.5  # something close to the second camera, over half its image
    assert 0.3 < MatchingViews(T, wall, CAMERA).pairing(0).overlap[1] < 0.6
    wall[1, :, :10] = np.nan  # nothing known of what is there
    assert MatchingViews(T, wall, CAMERA).pairing(0).overlap[1] > 0.85


def test_a_camera_that_stands_or_turns_has_none() -> None:
    for T in (np.tile(np.eye(4), (9, 1, 1)), synthetic.pan(9), np.eye(4)[None], np.zeros((0, 4, 4))):
        views = room(T)
        assert all(views.of(i, COUNT) == [] for i in range(len(views)))
        assert views.parallax_share() == 0


def test_two_views_have_each_other() -> None:
    views = room(synthetic.walk(2, length=0.3))
    assert (views.of(0, COUNT), views.of(1, COUNT)) == ([1], [0])
    assert views.of(0, 0) == []
    assert views.parallax_share() == 0, "with a single other view"


def test_a_walk_has_parallax() -> None:
    assert room(synthetic.walk(9)).parallax_share() == 1


def test_one_of_several_cameras_in_one_place_is_enough() -> None:
    T = synthetic.walk(9)
    views = room(np.concatenate([T, T, T]))
    for i in range(len(views)):
        places = [j % len(T) for j in views.of(i, 20)]
        assert len(places) == len(set(places))


def test_views_come_from_all_sides_and_from_several_distances() -> None:
    """A camera among others on a square grid: some on each side, near ones and far ones."""
    side = np.linspace(-0.5, 0.5, 9)
    T = np.stack([synthetic.look((0, 0, -1.0)), *(synthetic.look((x, y, -1.0)) for x in side for y in side)])
    views = room(T)
    near = views.of(0, 8)
    centres = T[near, :2, 3]
    assert (centres[:, 0] < -0.05).sum() >= 2
    assert (centres[:, 0] > 0.05).sum() >= 2
    assert (centres[:, 1] < -0.05).sum() >= 2
    assert (centres[:, 1] > 0.05).sum() >= 2
    angles = views.pairing(0).angle_deg[near]
    assert angles.max() > 2 * angles.min()


def test_very_near_and_very_far_scenes() -> None:
    T = synthetic.walk(9)
    far = MatchingViews(T, np.full((9, 15, 20), 1e4), CAMERA)
    near = MatchingViews(T, np.full((9, 15, 20), 1e-4), CAMERA)
    assert far.of(4, COUNT) == near.of(4, COUNT) == [], "no angle, and no overlap"


def test_views_without_depth_are_left_out_or_asked_in_vain() -> None:
    T = synthetic.walk(9)
    z = depths(T)
    z[2] = np.nan
    views = MatchingViews(T, z, CAMERA)
    assert views.of(2, COUNT) == []
    assert views.of(4, COUNT), "a view that knows no depth of its own can still be matched"


def test_hundreds_of_views_take_milliseconds() -> None:
    T = synthetic.walk(300, length=3.0)
    views = MatchingViews(T, np.tile(depths(T[:1]), (300, 1, 1)), CAMERA)
    began = time.perf_counter()
    for i in range(0, 300, 30):
        assert len(views.of(i, COUNT)) == COUNT
    assert (time.perf_counter() - began) / 10 < 0.25, "generous: a machine under load"


def test_coarse_depth_takes_pixels_and_keeps_holes() -> None:
    z = np.arange(1, 49, dtype=np.float32).reshape(6, 8)
    valid = np.ones(z.shape, bool)
    valid[1, 2] = False
    coarse = coarse_depth(DepthMap(z, valid), 2, 2)
    np.testing.assert_array_equal(coarse, [[np.nan, z[1, 6]], [z[4, 2], z[4, 6]]])
    maps = (DepthMap(d, np.ones(d.shape, bool)) for d in [np.full((480, 640), 2.0, np.float32)] * 2)
    views = MatchingViews.of_depth_maps(synthetic.walk(2, length=0.3), maps, synthetic.camera(640, 480))
    assert views.of(0, 3) == [1]


def test_shapes_are_checked() -> None:
    with pytest.raises(InputError, match=r"\(N, h, w\)"):
        MatchingViews(synthetic.walk(3), np.ones((2, 3, 4)), CAMERA)
