"""What a sparse reconstruction says of a frame: cues, their sigma, and poses between keyframes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marigold3d.poses.sparse import MIN_SIN_ANGLE, SparseModel, complete_poses, widest_sine
from marigold3d.types import Intrinsics
from tests import synthetic

CAMERA = synthetic.camera()


def model_of(
    frames: list[int], T: np.ndarray, points: np.ndarray, camera: Intrinsics = CAMERA, sine: float = 0.2
) -> SparseModel:
    """Every frame has seen every point."""
    seen_frame, seen_point = np.divmod(np.arange(len(frames) * len(points)), len(points))
    return SparseModel(
        camera, np.array(frames), T, points, np.full(len(points), sine), seen_frame.astype(np.int64), seen_point
    )


@pytest.fixture
def points(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform((-0.5, -0.4, 2.0), (0.5, 0.4, 3.0), (50, 3))


def test_cues_are_projections(points: np.ndarray) -> None:
    T = synthetic.walk(3, length=0.4)
    cues, ids = model_of([0, 10, 20], T, points).cues(10, T[1])
    assert len(cues) == 50
    rotated = (points[ids] - T[1, :3, 3]) @ T[1, :3, :3]
    np.testing.assert_allclose(cues.depth, rotated[:, 2])
    np.testing.assert_allclose(cues.uv[:, 0], CAMERA.fx * rotated[:, 0] / rotated[:, 2] + CAMERA.cx)
    np.testing.assert_allclose(cues.uv[:, 1], CAMERA.fy * rotated[:, 1] / rotated[:, 2] + CAMERA.cy)


def test_points_behind_or_beside_the_camera_are_no_cues(points: np.ndarray) -> None:
    model = model_of([0], np.eye(4)[None], np.concatenate([points, -points, points * [20, 1, 1]]))
    cues, ids = model.cues(0, np.eye(4))
    assert set(range(50)) <= set(ids.tolist())
    assert not set(range(50, 100)) & set(ids.tolist())
    assert (cues.uv >= 0).all()
    assert (cues.uv <= (CAMERA.width, CAMERA.height)).all()


def test_points_without_parallax_are_no_cues(points: np.ndarray) -> None:
    assert len(model_of([0], np.eye(4)[None], points, sine=0.9 * MIN_SIN_ANGLE).cues(0, np.eye(4))[0]) == 0
    assert len(model_of([0], np.eye(4)[None], points, sine=1.1 * MIN_SIN_ANGLE).cues(0, np.eye(4))[0]) == 50


def test_sigma_falls_with_the_angle(points: np.ndarray) -> None:
    """Half the angle, twice the error: z / (f sin)."""
    sigmas = []
    for sine in (0.1, 0.2):
        sigma = model_of([0], np.eye(4)[None], points, sine=sine).cues(0, np.eye(4))[0].sigma
        assert sigma is not None
        sigmas.append(sigma)
    np.testing.assert_allclose(sigmas[0], 2 * sigmas[1])
    np.testing.assert_allclose(sigmas[1], points[:, 2] / (CAMERA.fx * 0.2))


def test_a_frame_is_told_what_it_or_its_neighbours_saw(points: np.ndarray) -> None:
    """Keyframe k of three saw points 10 k to 10 k + 9 only."""
    seen = np.arange(30)
    model = SparseModel(CAMERA, np.array([0, 10, 20]), synthetic.walk(3), points, np.ones(50), seen // 10, seen)
    assert model.points_near(10).tolist() == list(range(10, 20))
    assert model.points_near(14).tolist() == list(range(10, 30))
    assert model.points_near(3).tolist() == list(range(20))
    assert model.points_near(99).tolist() == list(range(20, 30))


@settings(deadline=None)
@given(k=st.floats(1e-3, 1e3))
def test_scaling_the_model_scales_its_cues(k: float) -> None:
    points = np.random.default_rng(0).uniform((-0.5, -0.4, 2.0), (0.5, 0.4, 3.0), (30, 3))
    model = model_of([0, 5], synthetic.walk(2, 0.3), points)
    large = model.scaled(k)
    (a, ids), (b, ids_large) = model.cues(5, model.T_world_camera[1]), large.cues(5, large.T_world_camera[1])
    np.testing.assert_array_equal(ids, ids_large)
    np.testing.assert_allclose(b.uv, a.uv, atol=1e-6)
    np.testing.assert_allclose(b.depth, k * a.depth)
    np.testing.assert_allclose(b.sigma, k * a.sigma)  # type: ignore[operator, arg-type]
    np.testing.assert_array_equal(model.T_world_camera, synthetic.walk(2, 0.3))  # the model itself is not changed


@pytest.mark.parametrize("distortion", [None, (-0.1, 0.02, 0.001, 0.0)])
def test_arrays_there_and_back(points: np.ndarray, distortion: tuple[float, float, float, float] | None) -> None:
    camera = Intrinsics(80.0, 81.0, 47.0, 36.5, 96, 72, distortion)
    model = model_of([0, 7], synthetic.walk(2), points, camera)
    again = SparseModel.from_arrays(model.as_arrays())
    assert again.camera.__dict__ == camera.__dict__
    for name in ("frames", "T_world_camera", "points", "sin_angle", "seen_frame", "seen_point"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))


# -- ray angles -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(base=st.floats(0.01, 2), depth=st.floats(0.5, 10), count=st.integers(2, 9))
def test_the_widest_angle_of_a_straight_track(base: float, depth: float, count: int) -> None:
    """Cameras on a line, the point abreast of its middle: the ends see it under the widest angle."""
    centres = np.stack([np.linspace(-base / 2, base / 2, count), np.zeros(count), np.zeros(count)], 1)
    angle = 2 * np.arctan(base / 2 / depth)
    if angle > np.pi / 2:
        return
    shuffled = np.random.default_rng(count).permutation(count)
    found = widest_sine(centres, np.array([[0, 0, depth]]), shuffled, np.zeros(count, np.int64))
    assert found[0] == pytest.approx(np.sin(angle), rel=1e-6)


def test_a_point_seen_once_or_never_has_no_angle() -> None:
    centres, points = np.eye(3), np.array([[0, 0, 5.0], [0, 0, 6.0], [0, 0, 7.0]])
    found = widest_sine(centres, points, np.array([0, 0, 1]), np.array([0, 2, 2]))
    assert found[0] == found[1] == 0
    assert found[2] > 0.1


# -- poses between keyframes ------------------------------------------------------------------------------------------


def test_poses_between_keyframes_are_interpolated() -> None:
    T = np.stack([synthetic.look((0, 0, 0)), synthetic.look((1, 0, 0), 0.2)])
    posed, all_poses = complete_poses(model_of([0, 4], T, np.zeros((1, 3))), np.arange(5) * 0.1)
    assert posed.all()
    np.testing.assert_allclose(all_poses[:, 0, 3], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(all_poses[2], synthetic.look((0.5, 0, 0), 0.1), atol=1e-12)
    np.testing.assert_array_equal(all_poses[[0, 4]], T)


def test_gaps_too_long_or_too_wide_are_left_open() -> None:
    """Frames 0 to 4 lie 1.2 s apart, 4 to 8 turn by more than half the view, 8 to 12 are safe; none after 12."""
    T = np.stack([synthetic.look((0, 0, 0), a) for a in (0.0, 0.0, np.radians(40), np.radians(40))])
    times = np.concatenate([np.arange(5) * 0.3, 1.2 + 0.1 * np.arange(1, 12)])
    posed, _ = complete_poses(model_of([0, 4, 8, 12], T, np.zeros((1, 3))), times)
    assert np.flatnonzero(posed).tolist() == [0, 4, 8, 9, 10, 11, 12]
