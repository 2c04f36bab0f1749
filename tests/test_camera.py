"""Projection and back-projection undo each other, with lens distortion too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marigold3d.camera import (
    depth_to_points,
    distort,
    normalised,
    pixel_grid,
    project,
    ray_grid,
    undistort,
    unproject,
)
from marigold3d.types import Intrinsics

PLAIN = Intrinsics(500.0, 510.0, 321.0, 239.0, 640, 480)


@st.composite
def cameras(draw: st.DrawFn) -> Intrinsics:
    """Cameras with the distortion of ordinary lenses."""
    width, height = draw(st.integers(16, 64)), draw(st.integers(16, 64))
    focal = draw(st.floats(0.7, 3.0)) * max(width, height)
    k1, k2 = draw(st.floats(-0.12, 0.12)), draw(st.floats(-0.02, 0.02))
    p1, p2 = draw(st.floats(-0.005, 0.005)), draw(st.floats(-0.005, 0.005))
    distortion = draw(st.sampled_from([None, (k1, k2, p1, p2)]))
    return Intrinsics(
        focal, focal * draw(st.floats(0.9, 1.1)), width / 2 + 1, height / 2 - 1, width, height, distortion
    )


@given(camera=cameras(), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_project_undoes_unproject(camera: Intrinsics, seed: int) -> None:
    rng = np.random.default_rng(seed)
    uv = rng.uniform(0, 1, (4, 5, 2)) * [camera.width, camera.height]
    depth = rng.uniform(0.1, 50, (4, 5))
    points = unproject(uv, depth, camera)
    np.testing.assert_allclose(points[..., 2], depth)
    np.testing.assert_allclose(project(points, camera), uv, atol=1e-9)


@given(camera=cameras())
@settings(deadline=None)
def test_undistort_undoes_distort(camera: Intrinsics) -> None:
    xy = normalised(pixel_grid(camera.width, camera.height), camera)
    np.testing.assert_allclose(undistort(distort(xy, camera), camera), xy, atol=1e-12)


@pytest.mark.parametrize("k", [(0.25, 0.1, 0.0, 0.0), (0.5, 0.3, 0.01, 0.01), (-0.42, 0.2, 0.005, 0.005)])
def test_undistort_converges_for_strong_lenses(k: tuple[float, float, float, float]) -> None:
    camera = Intrinsics(500.0, 500.0, 320.0, 240.0, 640, 480, k)
    xy = np.stack(np.meshgrid(np.linspace(-0.9, 0.9, 30), np.linspace(-0.6, 0.6, 20)), -1)
    np.testing.assert_allclose(undistort(distort(xy, camera), camera), xy, atol=1e-12)


def test_undistort_stays_finite_where_the_model_folds() -> None:
    camera = Intrinsics(500.0, 500.0, 320.0, 240.0, 640, 480, (-0.4, 0.0, 0.0, 0.0))
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(undistort(np.array([[3.0, 2.0], [1.0, 1.0], [0.0, 0.0]]), camera)).all()


def test_distortion_agrees_with_opencv() -> None:
    cv2 = pytest.importorskip("cv2", reason="compares with OpenCV where it is installed")
    camera = Intrinsics(500.0, 510.0, 321.0, 239.0, 640, 480, (-0.2, 0.05, 0.003, -0.002))
    points = np.random.default_rng(0).uniform([-1, -1, 2], [1, 1, 5], (50, 3))
    theirs, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), camera.K, np.array(camera.distortion))
    np.testing.assert_allclose(project(points, camera), theirs[:, 0], atol=1e-9)


def test_distortion_agrees_with_pycolmap() -> None:
    pycolmap = pytest.importorskip("pycolmap")
    camera = Intrinsics(500.0, 510.0, 321.0, 239.0, 640, 480, (-0.2, 0.05, 0.003, -0.002))
    numbers = [camera.fx, camera.fy, camera.cx, camera.cy, *(camera.distortion or ())]
    theirs = pycolmap.Camera(model="OPENCV", width=640, height=480, params=numbers)
    points = np.random.default_rng(0).uniform([-1, -1, 2], [1, 1, 5], (50, 3))
    np.testing.assert_allclose(project(points, camera), theirs.img_from_cam(points), atol=1e-9)


def test_points_behind_the_camera_have_no_pixel() -> None:
    uv = project(np.array([[0, 0, -1.0], [0, 0, 0.0], [1.0, 1, 0], [0, 0, 2.0]]), PLAIN)
    assert np.isnan(uv[:3]).all()
    np.testing.assert_allclose(uv[3], [321, 239])


def test_pixel_centres() -> None:
    grid = pixel_grid(3, 2)
    assert grid.shape == (2, 3, 2)
    assert grid[0, 0].tolist() == [0.5, 0.5]
    assert grid[1, 2].tolist() == [2.5, 1.5]


@given(camera=cameras())
@settings(deadline=None)
def test_rays_are_points_at_depth_one(camera: Intrinsics) -> None:
    rays = ray_grid(camera)
    assert rays.dtype == np.float32
    expected = unproject(pixel_grid(camera.width, camera.height), np.ones((camera.height, camera.width)), camera)
    np.testing.assert_allclose(rays, expected, atol=1e-6)


def test_axes_are_x_right_y_down_z_forward() -> None:
    right_below = project(np.array([1.0, 1.0, 10.0]), PLAIN)
    assert right_below[0] > PLAIN.cx
    assert right_below[1] > PLAIN.cy


def test_depth_becomes_world_points() -> None:
    camera = Intrinsics(50.0, 50.0, 16.0, 12.0, 32, 24)
    T_world_camera = np.eye(4)
    T_world_camera[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]  # looking along the world's x
    T_world_camera[:3, 3] = [1, 2, 3]
    points = depth_to_points(np.full((24, 32), 4, np.float32), camera, T_world_camera)
    assert points.shape == (24, 32, 3)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points[..., 0], 5, rtol=1e-6)
    back = project((points.astype(float) - [1, 2, 3]) @ T_world_camera[:3, :3], camera)
    np.testing.assert_allclose(back, pixel_grid(32, 24), atol=1e-4)
