"""Laws of rigid motions and similarities, near the identity and far from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from marigold3d.errors import GeometryError
from marigold3d.rigid import (
    Similarity,
    from_quaternion_xyzw,
    interpolate,
    inverse,
    quaternion_xyzw,
    transform,
    umeyama,
)

vectors = arrays(np.float64, 3, elements=st.floats(-10, 10, allow_subnormal=False))
angles = st.one_of(st.floats(-1e-8, 1e-8), st.floats(-3.14, 3.14), st.just(np.pi))
seeds = st.integers(0, 2**32 - 1)


@st.composite
def poses(draw: st.DrawFn) -> np.ndarray:
    """A rigid motion; tiny and half-turn rotations are as likely as ordinary ones."""
    axis = draw(vectors)
    length = np.linalg.norm(axis)
    axis = axis / length if length > 1e-3 else np.array([0.0, 0, 1])
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec(axis * draw(angles)).as_matrix()
    T[:3, 3] = draw(vectors)
    return T


@given(T=poses())
def test_inverse(T: np.ndarray) -> None:
    np.testing.assert_allclose(T @ inverse(T), np.eye(4), atol=1e-12)
    np.testing.assert_allclose(inverse(inverse(T)), T, atol=1e-12)
    np.testing.assert_allclose(inverse(T), np.linalg.inv(T), atol=1e-10)


@given(A=poses(), B=poses(), seed=seeds)
def test_transform_is_an_action(A: np.ndarray, B: np.ndarray, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(2, 5, 3))
    np.testing.assert_allclose(transform(A @ B, points), transform(A, transform(B, points)), atol=1e-11)
    np.testing.assert_allclose(transform(np.eye(4), points), points)
    np.testing.assert_allclose(transform(inverse(A), transform(A, points)), points, atol=1e-11)


@given(A=poses(), B=poses())
def test_inverse_works_on_stacks(A: np.ndarray, B: np.ndarray) -> None:
    np.testing.assert_array_equal(inverse(np.stack([A, B])), np.stack([inverse(A), inverse(B)]))


@given(T=poses())
def test_quaternion_round_trip(T: np.ndarray) -> None:
    q = quaternion_xyzw(T[None])
    assert q[0, 3] >= 0
    assert np.linalg.norm(q) == pytest.approx(1)
    np.testing.assert_allclose(from_quaternion_xyzw(q, T[None, :3, 3])[0], T, atol=1e-9)
    np.testing.assert_allclose(from_quaternion_xyzw(-q, T[None, :3, 3])[0], T, atol=1e-9)


def test_no_poses_at_all() -> None:
    assert quaternion_xyzw(np.zeros((0, 4, 4))).shape == (0, 4)
    assert from_quaternion_xyzw(np.zeros((0, 4)), np.zeros((0, 3))).shape == (0, 4, 4)


@given(A=poses(), B=poses())
def test_interpolation_meets_its_ends(A: np.ndarray, B: np.ndarray) -> None:
    found = interpolate(np.array([2.0, 5.0]), np.stack([A, B]), np.array([2.0, 5.0]))
    np.testing.assert_allclose(found, np.stack([A, B]), atol=1e-9)


@given(T=poses(), angle=st.floats(-3.0, 3.0), share=st.floats(0, 1))
def test_interpolation_turns_evenly(T: np.ndarray, angle: float, share: float) -> None:
    turn, part = np.eye(4), np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([0, 0, angle]).as_matrix()
    part[:3, :3] = Rotation.from_rotvec([0, 0, share * angle]).as_matrix()
    found = interpolate(np.array([0.0, 1.0]), np.stack([T, T @ turn]), np.array([share]))[0]
    np.testing.assert_allclose(found, T @ part, atol=1e-7)


def test_interpolation_never_extrapolates() -> None:
    T = np.tile(np.eye(4), (2, 1, 1))
    for outside in (-0.1, 1.1):
        with pytest.raises(GeometryError):
            interpolate(np.array([0.0, 1.0]), T, np.array([outside]))
    np.testing.assert_array_equal(interpolate(np.array([3.0]), T[:1], np.array([3.0, 3.0])), T)


def test_interpolation_of_nothing() -> None:
    with pytest.raises(GeometryError):
        interpolate(np.zeros(0), np.zeros((0, 4, 4)), np.array([0.0]))


@given(T=poses(), scale=st.floats(1e-3, 1e3), seed=seeds)
@settings(deadline=None)
def test_umeyama_recovers_a_known_similarity(T: np.ndarray, scale: float, seed: int) -> None:
    source = np.random.default_rng(seed).normal(size=(12, 3)) * [1, 2, 0.5]
    target = Similarity(scale, T[:3, :3], T[:3, 3]).apply(source)
    found = umeyama(source, target)
    assert found.scale == pytest.approx(scale, rel=1e-9)
    np.testing.assert_allclose(found.rotation, T[:3, :3], atol=1e-7)
    np.testing.assert_allclose(found.apply(source), target, atol=1e-8 * max(1, scale))


@given(T=poses(), seed=seeds)
def test_umeyama_of_planar_points_is_right_handed(T: np.ndarray, seed: int) -> None:
    source = np.random.default_rng(seed).normal(size=(9, 3)) * [1, 1, 0]
    found = umeyama(source, transform(T, source))
    assert np.linalg.det(found.rotation) == pytest.approx(1)
    np.testing.assert_allclose(found.rotation, T[:3, :3], atol=1e-6)


def test_umeyama_never_mirrors() -> None:
    source = np.random.default_rng(0).normal(size=(20, 3))
    assert np.linalg.det(umeyama(source, source * [-1, 1, 1]).rotation) == pytest.approx(1)


def test_umeyama_agrees_with_evo() -> None:
    geometry = pytest.importorskip("evo.core.geometry")
    rng = np.random.default_rng(3)
    source, target = rng.normal(size=(2, 30, 3))
    R, t, scale = geometry.umeyama_alignment(source.T, target.T, with_scale=True)
    found = umeyama(source, target)
    np.testing.assert_allclose(found.rotation, R, atol=1e-12)
    np.testing.assert_allclose(found.translation, t, atol=1e-12)
    assert found.scale == pytest.approx(scale)
    assert umeyama(source, target, with_scale=False).scale == 1.0


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((0, 3)),
        np.eye(3)[:2],
        np.ones((5, 3)),
        np.outer(np.arange(6.0), [1, 2, 3]),
        np.zeros((4, 2)),
    ],
)
def test_umeyama_refuses_points_that_fix_no_rotation(source: np.ndarray) -> None:
    with pytest.raises(GeometryError):
        umeyama(source, source.copy())


@given(T=poses(), scale=st.floats(0.01, 100), seed=seeds)
def test_similarities_and_poses(T: np.ndarray, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarity = Similarity(scale, T[:3, :3], T[:3, 3])
    points = rng.normal(size=(6, 3))
    np.testing.assert_allclose(similarity.inverse().apply(similarity.apply(points)), points, atol=1e-9)
    pose = np.eye(4)[None].copy()
    pose[0, :3, :3] = Rotation.random(rng=rng).as_matrix()
    pose[0, :3, 3] = rng.normal(size=3)
    moved = similarity.apply_to_poses(pose)[0]
    in_camera = rng.normal(size=(6, 3))
    # What a camera sees in a scaled world is the scaled view.
    np.testing.assert_allclose(
        transform(moved, scale * in_camera), similarity.apply(transform(pose[0], in_camera)), atol=1e-7
    )
