"""Links between frames: exact depth disagrees nowhere, what is hidden says nothing, and gains are derivatives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from marigold3d.align.flow import Flow
from marigold3d.align.grid import SampleGrid
from marigold3d.align.links import Rays, Residuals, Surface, by_flow, by_pose
from marigold3d.camera import pixel_grid, project, unproject
from marigold3d.rigid import inverse, transform
from marigold3d.types import Intrinsics
from tests import synthetic

CAMERA = synthetic.camera(160, 120)
BARREL = replace(CAMERA, distortion=(-0.12, 0.02, 0.001, -0.001))
GRID = SampleGrid.of(160, 120, 160, 1)
HERE = synthetic.look((0, 0, 0))
ASIDE = synthetic.look((0.35, 0.1, -0.1), -0.15, 0.05, 0.03)
cameras = pytest.mark.parametrize("camera", [CAMERA, BARREL], ids=["pinhole", "barrel"])
angles = st.floats(-0.3, 0.3)
steps = st.floats(-0.4, 0.4)


def surface(camera: Intrinsics, T_world_camera: np.ndarray, factor: float = 1.0) -> Surface:
    depth = factor * synthetic.depth_of(camera, T_world_camera)
    return Surface.of(np.log(depth).ravel(), GRID)


def linked(
    camera: Intrinsics, a: np.ndarray, b: np.ndarray, hidden: float = np.inf, every: int = 1, factor: float = 1.0
) -> Residuals:
    """Exact depth of the room seen from two poses."""
    scale = np.diag([factor, factor, factor, 1.0])
    T_b_a = scale @ inverse(b) @ a @ np.linalg.inv(scale)
    rays = Rays(camera, GRID)
    return by_pose(surface(camera, a, factor), surface(camera, b, factor), T_b_a, rays, GRID, hidden, every)


@settings(deadline=None, max_examples=30)
@given(centre=st.tuples(steps, steps, steps), yaw=angles, pitch=angles, roll=angles, bent=st.booleans())
def test_exact_depth_agrees_from_any_two_poses(
    centre: tuple[float, float, float], yaw: float, pitch: float, roll: float, bent: bool
) -> None:
    found = linked(BARREL if bent else CAMERA, HERE, synthetic.look(centre, yaw, pitch, roll))
    assert len(found.residual) > 0.15 * len(GRID)
    assert np.median(np.abs(found.residual)) < 1e-3
    assert np.quantile(np.abs(found.residual), 0.8) < 0.01  # most of the rest lies behind the ball


@cameras
def test_samples_hidden_behind_the_ball_are_dropped(camera: Intrinsics) -> None:
    every_sample, visible = (linked(camera, HERE, ASIDE, hidden) for hidden in (np.inf, 0.05))
    dropped = np.setdiff1d(every_sample.source, visible.source)
    assert len(dropped) > 50
    assert visible.residual.max() < 0.05
    assert np.mean(np.abs(visible.residual) < 0.01) > 0.95
    # What was dropped is not seen from there: its point lies behind the surface in front of it, as truth says.
    uv = GRID.uv[dropped]
    points = unproject(uv, synthetic.depth_of(camera, HERE)[tuple((uv[:, ::-1] - 0.5).astype(int).T)], camera)
    there = transform(inverse(ASIDE) @ HERE, points.astype(float))
    seen_at = np.floor(project(there, camera)).astype(int)
    nearest = synthetic.depth_of(camera, ASIDE)[seen_at[:, 1], seen_at[:, 0]]
    assert np.mean(there[:, 2] > 1.02 * nearest) > 0.95


def test_a_sample_in_front_of_the_other_surface_is_kept() -> None:
    """It is seen from there, so one of the two depths is wrong: that is what links are for."""
    near = surface(CAMERA, HERE)
    near = replace(near, log_z=near.log_z - np.float32(0.5))
    found = by_pose(near, surface(CAMERA, HERE), np.eye(4), Rays(CAMERA, GRID), GRID, 0.05)
    np.testing.assert_allclose(found.residual, -0.5, atol=1e-5)


@cameras
def test_the_same_pose_gives_the_same_pixels(camera: Intrinsics) -> None:
    found = linked(camera, HERE, HERE)
    np.testing.assert_array_equal(found.source, found.target)
    np.testing.assert_allclose(found.residual, 0, atol=2e-5)
    np.testing.assert_allclose(found.gain, 1, atol=1e-4)
    assert len(found.source) > 0.9 * len(GRID)


@cameras
def test_every_nth_sample_is_a_selection_of_them_all(camera: Intrinsics) -> None:
    all_of_them, some = linked(camera, HERE, ASIDE), linked(camera, HERE, ASIDE, every=7)
    keep = all_of_them.source % 7 == 0
    np.testing.assert_array_equal(some.source, all_of_them.source[keep])
    np.testing.assert_array_equal(some.target, all_of_them.target[keep])
    np.testing.assert_allclose(some.residual, all_of_them.residual[keep], atol=1e-6)
    np.testing.assert_allclose(some.gain, all_of_them.gain[keep], atol=1e-6)


@cameras
@pytest.mark.parametrize("there", [ASIDE, synthetic.look((0, 0, 0.4), 0.1), synthetic.look((0, 0, 0), 0.3)])
def test_the_gain_is_the_derivative_by_the_samples_log_depth(camera: Intrinsics, there: np.ndarray) -> None:
    """Central differences, of samples that stay in the cell they meet."""
    a, b, rays = surface(camera, HERE), surface(camera, there), Rays(camera, GRID)
    T_b_a, step = inverse(there) @ HERE, np.float32(5e-3)
    middle, less, more = (
        by_pose(replace(a, log_z=a.log_z + d), b, T_b_a, rays, GRID, np.inf) for d in (0, -step, step)
    )
    target = [dict(zip(r.source.tolist(), r.target.tolist(), strict=True)) for r in (less, more)]
    stays = [
        k
        for k, (s, t) in enumerate(zip(middle.source.tolist(), middle.target.tolist(), strict=True))
        if target[0].get(s) == t == target[1].get(s)
    ]
    assert len(stays) > 1000
    source = middle.source[stays]
    low, high = (r.residual[np.searchsorted(r.source, source)] for r in (less, more))
    # The slide along the epipolar line leaves out how the lens bends it, which is a few percent of it.
    difference = np.abs((high - low) / (2 * step) - middle.gain[stays])
    assert np.quantile(difference, 0.99) < (2e-3 if camera.distortion is None else 0.05)


@settings(deadline=None, max_examples=10)
@given(angle=st.tuples(*[st.floats(-3, 3)] * 3), centre=st.tuples(*[st.floats(-5, 5)] * 3))
def test_the_name_of_the_world_frame_does_not_matter(
    angle: tuple[float, float, float], centre: tuple[float, float, float]
) -> None:
    move = np.eye(4)
    move[:3, :3], move[:3, 3] = Rotation.from_rotvec(angle).as_matrix(), centre
    rays, a, b = Rays(CAMERA, GRID), surface(CAMERA, HERE), surface(CAMERA, ASIDE)
    one, other = (
        by_pose(a, b, inverse(world @ ASIDE) @ (world @ HERE), rays, GRID, np.inf) for world in (np.eye(4), move)
    )
    both = np.intersect1d(one.source, other.source)
    assert len(both) > 0.999 * len(one.source)
    one_of, other_of = (r.residual[np.searchsorted(r.source, both)] for r in (one, other))
    assert np.quantile(np.abs(one_of - other_of), 0.999) < 1e-4  # a sample on the edge of a cell may change sides


@cameras
@pytest.mark.parametrize("factor", [1e-3, 0.3, 40.0, 1e4])
def test_units_do_not_matter(camera: Intrinsics, factor: float) -> None:
    one, other = linked(camera, HERE, ASIDE, 0.05), linked(camera, HERE, ASIDE, 0.05, factor=factor)
    both = np.intersect1d(one.source, other.source)
    assert len(both) > 0.99 * max(len(one.source), len(other.source))
    one_of, other_of = (r.residual[np.searchsorted(r.source, both)] for r in (one, other))
    assert np.quantile(np.abs(one_of - other_of), 0.99) < 1e-4
    assert np.abs(np.median(one.gain) - np.median(other.gain)) < 1e-4


@pytest.mark.parametrize("columns", [40, 55, 80])
def test_noise_does_not_push_depth_away(columns: int) -> None:
    """r (1 - gain) is the pull on a common scale. Noise of the other surface must not be in both of its factors."""
    grid, rng, pulls = SampleGrid.of(160, 120, columns, 1), np.random.default_rng(0), []
    pixels = np.ix_(*grid.pixels)
    for there in (ASIDE, synthetic.look((-0.4, 0.05, -0.1), 0.2), synthetic.look((0.5, 0, 0), -0.2)):
        exact = [np.log(synthetic.depth_of(CAMERA, T)[pixels]).ravel() for T in (HERE, there)]
        for _ in range(10):
            noisy = exact[1] + np.float32(0.02) * rng.normal(size=len(grid)).astype(np.float32)
            a, b = Surface.of(exact[0], grid), Surface.of(noisy, grid)
            found = by_pose(a, b, inverse(there) @ HERE, Rays(CAMERA, grid), grid, 0.12)
            pulls.append(float((found.residual * (1 - found.gain)).mean()))
    assert abs(np.mean(pulls)) < 1.5e-4  # with samples to one side of their cells: 5e-4, or 4 % of the scale


# -- optical flow -----------------------------------------------------------------------------------------------------


def true_flow(camera: Intrinsics, a: np.ndarray, b: np.ndarray) -> Flow:
    width, height = camera.width, camera.height
    uv, z = pixel_grid(width, height), synthetic.depth_of(camera, a).astype(float)
    there = transform(inverse(b) @ a, unproject(uv, z, camera))
    to = project(there, camera)
    inside = np.all((to >= 0) & (to < (width, height)), axis=2)
    at = np.floor(np.where(inside[..., None], to, 0)).astype(int)
    visible = there[..., 2] < 1.03 * synthetic.depth_of(camera, b)[at[..., 1], at[..., 0]]
    return Flow(((to - uv) / (width, height)).astype(np.float32), inside & visible)


@cameras
def test_flow_of_a_sideways_step_ties_equal_depths(camera: Intrinsics) -> None:
    """Depth along z does not change when the camera steps sideways: the residuals vanish, as with the poses."""
    there = synthetic.look((0.3, 0.05, 0))
    cells, seen = true_flow(camera, HERE, there).cells(GRID)
    found = by_flow(surface(camera, HERE), surface(camera, there), cells, seen, GRID)
    assert len(found.residual) > 0.5 * len(GRID)
    assert np.median(np.abs(found.residual)) < 1e-3
    assert np.quantile(np.abs(found.residual), 0.9) < 0.01
    np.testing.assert_array_equal(found.gain, 1)
    posed = linked(camera, HERE, there, 0.03)
    both = np.intersect1d(found.source, posed.source)
    same = found.target[np.searchsorted(found.source, both)] == posed.target[np.searchsorted(posed.source, both)]
    assert len(both) > 0.9 * len(found.source)
    assert same.mean() > 0.97


def test_flow_of_any_resolution_says_the_same() -> None:
    there = synthetic.look((0.3, 0.05, 0))
    fine, coarse = (true_flow(camera, HERE, there) for camera in (CAMERA, synthetic.camera(80, 60)))
    (cells, seen), (other_cells, other_seen) = fine.cells(GRID), coarse.cells(GRID)
    assert np.mean(seen == other_seen) > 0.95
    both = seen & other_seen
    assert np.median(np.abs(cells - other_cells)[:, both]) < 0.2


def test_flow_every_nth_sample_and_what_is_not_known() -> None:
    there = synthetic.look((0.3, 0.05, 0))
    cells, seen = true_flow(CAMERA, HERE, there).cells(GRID)
    a, b = surface(CAMERA, HERE), surface(CAMERA, there)
    whole, some = by_flow(a, b, cells, seen, GRID), by_flow(a, b, cells, seen, GRID, every=5)
    np.testing.assert_array_equal(some.source, whole.source[whole.source % 5 == 0])
    assert seen[whole.source].all()
    assert len(by_flow(a, b, cells, np.zeros_like(seen), GRID).source) == 0


# -- surfaces and gaps ------------------------------------------------------------------------------------------------


def test_slopes_are_those_of_a_plane() -> None:
    column, row = GRID.cells
    plane = Surface.of((0.01 * column - 0.02 * row).astype(np.float32), GRID)
    inner = np.zeros((120, 160), bool)
    inner[1:-1, 1:-1] = True
    np.testing.assert_allclose(plane.slope[0][inner.ravel()], 0.01, atol=1e-5)
    np.testing.assert_allclose(plane.slope[1][inner.ravel()], -0.02, atol=1e-5)
    assert plane.smooth.all()


def test_samples_beside_an_edge_or_a_gap_say_nothing() -> None:
    image = np.zeros((120, 160), np.float32)
    image[:, 80:] = 1.0
    image[40, 30] = np.nan
    smooth = Surface.of(image.ravel(), GRID).smooth.reshape(120, 160)
    assert not smooth[:, 79:81].any()
    assert not smooth[39:42, 30].any()
    assert not smooth[40, 29:32].any()
    assert smooth.mean() > 0.98
    found = by_pose(*[Surface.of(image.ravel(), GRID)] * 2, np.eye(4), Rays(CAMERA, GRID), GRID, np.inf)
    assert np.isfinite(found.residual).all()
    assert smooth.ravel()[found.source].all()
    assert smooth.ravel()[found.target].all()


def test_a_frame_without_depth_meets_nothing() -> None:
    empty = Surface.of(np.full(len(GRID), np.nan, np.float32), GRID)
    for a, b in ((empty, surface(CAMERA, HERE)), (surface(CAMERA, HERE), empty)):
        assert len(by_pose(a, b, np.eye(4), Rays(CAMERA, GRID), GRID, np.inf).source) == 0


def test_what_lies_behind_the_other_camera_is_not_seen_by_it() -> None:
    turned = synthetic.look((0, 0, 0), np.pi)
    assert len(linked(CAMERA, HERE, turned).source) == 0
