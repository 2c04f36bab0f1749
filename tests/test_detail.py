"""Level of detail and colours of a cloud."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial import cKDTree

from marigold3d.cloud_colors import COLORINGS, UNKNOWN, color_cloud
from marigold3d.detail import nearby, progressive_order
from marigold3d.errors import UsageError
from marigold3d.types import PointCloud
from marigold3d.viewpoint import along_ray

clouds = hnp.arrays(np.float32, st.tuples(st.integers(0, 60), st.just(3)), elements=st.floats(-10, 10, width=32))


@given(clouds)
def test_the_order_holds_every_point_once(points):
    assert np.array_equal(np.sort(progressive_order(points)), np.arange(len(points)))


@pytest.mark.parametrize("share", [0.002, 0.02, 0.2])
def test_every_beginning_covers_the_cloud(rng, share):
    """No point is far from a shown one, though most points crowd in a corner: at random the sparse part would gape."""
    wall = np.concatenate([rng.random((50_000, 3)) * 0.1, rng.random((5_000, 3))]).astype(np.float32)
    wall[:, 2] = 0
    shown = wall[progressive_order(wall)[: int(share * len(wall))]]
    at_random = wall[rng.choice(len(wall), len(shown), replace=False)]
    gap, random_gap = (cKDTree(subset).query(wall)[0].max() for subset in (shown, at_random))
    assert gap < 2.5 / np.sqrt(len(shown))  # cells of an even grid have sides 1 / sqrt(n)
    assert gap < random_gap


def test_nearby_is_a_ball_or_a_cylinder():
    points = np.array([[0, 0, 0], [0, 0, 5], [0, 1.5, 5], [0, 0.9, -7]], np.float32)
    assert nearby(points, np.zeros(3), None, 1).tolist() == [True, False, False, False]
    assert nearby(points, np.zeros(3), np.array([0, 0, 2.0]), 1).tolist() == [True, True, False, True]


def test_a_ray_meets_the_first_surface():
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21)), -1).reshape(-1, 2)
    near, far = (np.column_stack([grid, np.full(len(grid), z)]).astype(np.float32) for z in (2, 4))
    points = np.concatenate([far, near])
    hit = along_ray(points, np.array([0.52, -0.31, -3]), np.array([0, 0, 1.0]), 0.08)
    np.testing.assert_allclose(points[hit], [0.5, -0.3, 2], atol=1e-6)
    assert along_ray(points, np.array([5.0, 0, -3]), np.array([0, 0, 1.0]), 0.08) is None
    assert along_ray(points[:0], np.zeros(3), np.array([0, 0, 1.0]), 1) is None


def cloud_of(n: int) -> PointCloud:
    steps = np.arange(n, dtype=np.float32)
    points = np.column_stack([0 * steps, -steps, 0 * steps])
    ramp = steps.astype(np.int32)
    return PointCloud(points, np.full((n, 3), 9, np.uint8), 0 * points, (1 + steps) / 100, ramp, ramp // 10)


def test_every_coloring_runs_from_red_to_blue():
    cloud, poses = cloud_of(101), {i: np.eye(4) for i in range(11)}
    for by in COLORINGS:
        found = color_cloud(cloud, by, poses)
        assert found.colors.shape == (101, 3)
        assert found.colors.dtype == np.uint8
        if by == "rgb":
            assert np.array_equal(found.colors, cloud.colors)
            continue
        first, last = found.colors[[2, -1]].astype(int)
        assert first[0] > first[2], by
        assert last[2] > last[0], by
        assert found.low < found.high
        turned = color_cloud(cloud.select(np.arange(101)[::-1]), by, poses)
        assert np.array_equal(turned.colors, found.colors[::-1]), "a colour belongs to a value, not to a row"


def test_what_is_not_known_is_grey():
    cloud = cloud_of(5)
    without = PointCloud(cloud.points, cloud.colors, cloud.normals, np.full(5, np.nan, np.float32), *[
        np.full(5, v, np.int32) for v in (1, -1)
    ])  # fmt: skip
    for by in ("sigma", "time"):
        assert (color_cloud(without, by).colors == UNKNOWN).all()
    with pytest.raises(UsageError, match="camera path"):
        color_cloud(cloud, "depth")
    with pytest.raises(UsageError, match="use one of"):
        color_cloud(cloud, "taste")
