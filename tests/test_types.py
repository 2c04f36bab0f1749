"""Value types refuse what would be wrong later, and their methods keep the meaning."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marigold3d.camera import project
from marigold3d.errors import InputError
from marigold3d.types import DepthMap, Frame, Intrinsics, PointCloud, RelativeDepth, SparseCues, Trajectory

CAMERA = Intrinsics(500.0, 510.0, 321.0, 239.0, 640, 480, (0.1, -0.02, 0.001, 0.002))
POINT = np.array([[0.3, -0.2, 2.0], [-1.0, 0.5, 5.0], [0.0, 0.0, 1.0]])

sizes = st.integers(1, 4000)


@given(width=sizes, height=sizes)
def test_scaling_the_camera_scales_the_pixels(width: int, height: int) -> None:
    scaled = CAMERA.scaled_to(width, height)
    expected = project(POINT, CAMERA) * [width / 640, height / 480]
    np.testing.assert_allclose(project(POINT, scaled), expected, rtol=1e-9, atol=1e-9)


@given(width=sizes, height=sizes)
def test_scaling_there_and_back(width: int, height: int) -> None:
    back = CAMERA.scaled_to(width, height).scaled_to(640, 480)
    np.testing.assert_allclose(back.K, CAMERA.K, rtol=1e-12)
    assert (back.width, back.height, back.distortion) == (640, 480, CAMERA.distortion)


@given(left=st.integers(0, 300), top=st.integers(0, 200))
def test_cropping_shifts_the_pixels(left: int, top: int) -> None:
    cropped = CAMERA.cropped(left, top, 300, 200)
    np.testing.assert_allclose(project(POINT, cropped), project(POINT, CAMERA) - [left, top], atol=1e-9)


@given(fov=st.floats(1, 169), width=sizes, height=sizes)
def test_field_of_view_round_trip(fov: float, width: int, height: int) -> None:
    camera = Intrinsics.from_fov(fov, width, height)
    assert camera.fov_x_deg == pytest.approx(fov)
    edge = np.array([[np.tan(np.radians(fov) / 2), 0, 1.0]])
    np.testing.assert_allclose(project(edge, camera), [[width, height / 2]], rtol=1e-9)


def test_focal_length_of_35_mm_film() -> None:
    full_frame = Intrinsics.from_focal_35mm(50, 3600, 2400)
    assert full_frame.fx == pytest.approx(5000)
    assert Intrinsics.from_focal_35mm(50, 2400, 3600).fx == pytest.approx(full_frame.fx)  # turned by a quarter


def test_camera_is_described_in_json() -> None:
    entry = json.loads(json.dumps(CAMERA.as_dict()))
    assert entry["model"] == "OPENCV"
    assert entry["distortion"] == list(CAMERA.distortion or ())
    assert CAMERA.undistorted().as_dict()["model"] == "PINHOLE"


@pytest.mark.parametrize(
    "change",
    [
        {"fx": 0},
        {"fy": -1},
        {"cx": np.nan},
        {"fx": np.inf},
        {"width": 0},
        {"cy": 5000},
        {"distortion": (np.nan, 0, 0, 0)},
    ],
)
def test_impossible_cameras(change: dict[str, object]) -> None:
    entry = {"fx": 500.0, "fy": 500.0, "cx": 320.0, "cy": 240.0, "width": 640, "height": 480, **change}
    with pytest.raises(InputError):
        Intrinsics(**entry)  # type: ignore[arg-type]


@pytest.mark.parametrize("fov", [0, -5, 180, 170, np.nan])
def test_impossible_fields_of_view(fov: float) -> None:
    with pytest.raises(InputError):
        Intrinsics.from_fov(fov, 640, 480)


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        CAMERA.fx = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("rgb", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_frames_are_rgb_bytes(rgb: np.ndarray) -> None:
    with pytest.raises(InputError):
        Frame(0, 0.0, rgb)


def test_relative_depth_is_checked() -> None:
    good = np.zeros((4, 5), np.float32)
    RelativeDepth(good, "disparity", good)
    for bad in (
        lambda: RelativeDepth(good, "inverse"),  # type: ignore[arg-type]
        lambda: RelativeDepth(good.astype(float), "depth"),  # type: ignore[arg-type]
        lambda: RelativeDepth(good[0], "depth"),
        lambda: RelativeDepth(good, "depth", good[:2]),
    ):
        with pytest.raises(InputError):
            bad()


def depth_map() -> DepthMap:
    depth = np.array([[1.0, 2.0], [np.nan, -1.0]], np.float32)
    return DepthMap(depth, np.array([[True, True], [False, False]]), np.full((2, 2), 0.1, np.float32))


def test_depth_scales_with_its_sigma() -> None:
    scaled = depth_map().scaled(3.0)
    np.testing.assert_allclose(scaled.depth[scaled.valid], [3, 6])
    assert scaled.sigma is not None
    np.testing.assert_allclose(scaled.sigma, 0.3, rtol=1e-6)
    assert scaled.depth.dtype == scaled.sigma.dtype == np.float32


def test_restriction_only_removes() -> None:
    mask = np.array([[False, True], [True, True]])
    assert depth_map().restricted_to(mask).valid.tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_valid_depth_is_finite_and_positive(value: float) -> None:
    with pytest.raises(InputError):
        DepthMap(np.full((2, 2), value, np.float32), np.ones((2, 2), bool))


def test_scaling_depth_by_nothing_is_refused() -> None:
    with pytest.raises(InputError):
        depth_map().scaled(0.0)


@pytest.mark.parametrize("spoil", ["nan", "behind", "sigma", "shape"])
def test_cues_are_checked(spoil: str) -> None:
    uv, depth, sigma = np.ones((3, 2)), np.ones(3), np.ones(3)
    if spoil == "nan":
        uv[1, 0] = np.nan
    if spoil == "behind":
        depth[2] = -1
    if spoil == "sigma":
        sigma[0] = 0
    if spoil == "shape":
        uv = uv[:2]
    with pytest.raises(InputError):
        SparseCues(uv, depth, sigma)


def test_selecting_cues() -> None:
    cues = SparseCues(np.arange(6.0).reshape(3, 2), np.array([1.0, 2, 3]), np.array([0.1, 0.2, 0.3]), "lidar")
    for keep in (np.array([True, False, True]), np.array([0, 2])):
        part = cues.select(keep)
        assert (part.depth.tolist(), len(part), part.source) == ([1, 3], 2, "lidar")
        assert part.sigma is not None
        assert part.sigma.tolist() == [0.1, 0.3]
    assert len(SparseCues.empty()) == 0


def test_trajectories_are_rigid_and_ordered() -> None:
    T = np.tile(np.eye(4), (3, 1, 1))
    times_s = np.arange(3.0)
    T[:, 0, 3] = [0, 1, 2]
    assert Trajectory(times_s, T).scaled(2.0).centres[:, 0].tolist() == [0, 2, 4]
    assert T[1, 0, 3] == 1
    assert len(Trajectory(times_s[:0], T[:0])) == 0
    for bad_times, bad_T in (
        (times_s[::-1], T),
        (np.zeros(3), T),
        (times_s, T * 2),
        (times_s, T @ np.diag([1, 1, -1, 1.0])),
        (times_s, T[:, :3]),
        (times_s, np.where(T == 1, np.nan, T)),
        (times_s[:2], T),
    ):
        with pytest.raises(InputError):
            Trajectory(bad_times, bad_T)


def test_clouds_keep_their_columns_together() -> None:
    n = 5
    columns = {
        "points": np.arange(15, dtype=np.float32).reshape(n, 3),
        "colors": np.zeros((n, 3), np.uint8),
        "normals": np.zeros((n, 3), np.float32),
        "sigma": np.arange(n, dtype=np.float32),
        "observations": np.arange(n, dtype=np.int32),
        "frame_index": np.arange(n, dtype=np.int32),
    }
    part = PointCloud(**columns, units="m").select(np.array([4, 1]))
    assert (part.sigma.tolist(), part.points[:, 0].tolist(), part.units, len(part)) == ([4, 1], [12, 3], "m", 2)
    for name in columns:
        with pytest.raises(InputError):
            PointCloud(**{**columns, name: columns[name][:3]})
