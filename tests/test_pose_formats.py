"""Every pose format against independent knowledge: pycolmap, OpenCV, ARKit's axes; conventions against pictures."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from marigold3d.camera import pixel_grid
from marigold3d.cli import main
from marigold3d.config import PoseConfig, RefineConfig, RunConfig, VideoConfig
from marigold3d.errors import InputError, UsageError
from marigold3d.export.trajectories import image_names, write_colmap, write_poses_npy, write_transforms, write_tum
from marigold3d.lens import Lens, undistorted
from marigold3d.pipeline import reconstruct
from marigold3d.poses.camera_files import read_camera, read_lens
from marigold3d.poses.convention import COLMAP, OPENCV, OPENGL, TUM, WORDS, Convention, reread
from marigold3d.poses.files import read_pose_lens, read_poses, read_records
from marigold3d.poses.reprojection import check_reading
from marigold3d.progress import Steps
from marigold3d.progress import run as drive
from marigold3d.rigid import inverse
from marigold3d.types import Intrinsics, Trajectory
from marigold3d.video import VideoSource, open_video
from tests import synthetic

K = (300.0, 310.0, 318.0, 243.0)
LENSES = (  # one of each of COLMAP's models that k1, k2, p1, p2 cannot express
    Lens("OPENCV_FISHEYE", 640, 480, (*K, 0.02, -0.01, 0.003, -0.001)),
    Lens("FULL_OPENCV", 640, 480, (*K, 0.1, 0.02, 0.001, -0.002, 0.01, 0.15, 0.01, 0.001)),
    Lens("FOV", 640, 480, (*K, 0.8)),
    Lens("SIMPLE_RADIAL_FISHEYE", 640, 480, (300.0, 318.0, 243.0, 0.02)),
    Lens("RADIAL_FISHEYE", 640, 480, (300.0, 318.0, 243.0, 0.02, -0.01)),
    Lens("THIN_PRISM_FISHEYE", 640, 480, (*K, 0.02, -0.01, 0.001, 0.001, 0.002, 0.0, 0.001, 0.001)),
    Lens("RAD_TAN_THIN_PRISM_FISHEYE", 640, 480, (*K, 0.02, -0.01, *[0.001] * 10)),
    Lens("SIMPLE_DIVISION", 640, 480, (300.0, 318.0, 243.0, -0.05)),
    Lens("DIVISION", 640, 480, (*K, -0.05)),
    Lens("SIMPLE_FISHEYE", 640, 480, (300.0, 318.0, 243.0)),
    Lens("FISHEYE", 640, 480, K),
    Lens("EUCM", 640, 480, (*K, 0.6, 1.1)),
)
by_model = pytest.mark.parametrize("lens", LENSES, ids=lambda lens: lens.model)


def path_of(n: int, seed: int = 7) -> Trajectory:
    rng = np.random.default_rng(seed)
    T = np.tile(np.eye(4), (n, 1, 1))
    T[:, :3, :3] = Rotation.random(n, rng).as_matrix()
    T[:, :3, 3] = rng.normal(size=(n, 3)) * 3
    return Trajectory(np.arange(n) / 30.0, T)


# -- lenses -----------------------------------------------------------------------------------------------------------


def test_every_model_of_colmap_is_read_or_refused() -> None:
    expressible = {"SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV"}
    known = set(pycolmap.CameraModelId.__members__) - {"INVALID", "EQUIRECTANGULAR"}
    assert {lens.model for lens in LENSES} | expressible == known
    with pytest.raises(InputError, match="panorama"):
        Lens("EQUIRECTANGULAR", 640, 480, (640.0, 480.0))


@by_model
@pytest.mark.parametrize("binary", [True, False])
def test_models_that_pycolmap_wrote(tmp_path: Path, lens: Lens, binary: bool) -> None:
    model, truth = pycolmap.Reconstruction(), path_of(3)
    camera = pycolmap.Camera(model=lens.model, width=lens.width, height=lens.height, params=lens.params, camera_id=4)
    model.add_camera_with_trivial_rig(camera)
    for i, T in enumerate(inverse(truth.T_world_camera)):
        image = pycolmap.Image(name=image_names([i])[0], camera_id=4, image_id=i + 1)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(T[:3, :3]), T[:3, 3]))
    model.write_binary(str(tmp_path)) if binary else model.write_text(str(tmp_path))
    found = read_poses(tmp_path, truth.timestamps_s, np.arange(3))
    np.testing.assert_allclose(found.T_world_camera, truth.T_world_camera, atol=1e-9)
    for read in (read_pose_lens(tmp_path), read_lens(tmp_path), Lens.parse(str(lens))):
        assert read == lens
    assert found.intrinsics is not None
    assert found.intrinsics.as_dict() == lens.pinhole.as_dict() == read_camera(tmp_path, 640, 480).as_dict()


@by_model
def test_an_undistorted_picture_is_the_pinholes(lens: Lens) -> None:
    small = lens.scaled_to(320, 240)
    camera = small.pinhole
    assert (camera.width, camera.height, camera.distortion) == (320, 240, None)
    assert camera.fov_x_deg < 112
    rays = small.normalised(pixel_grid(320, 240).reshape(-1, 2))
    seen = smooth_scene(rays).reshape(240, 320, 3)
    xy = (pixel_grid(320, 240) - (camera.cx, camera.cy)) / (camera.fx, camera.fy)
    expected = smooth_scene(xy.reshape(-1, 2)).reshape(240, 320, 3)
    error = np.abs(undistorted(seen, small).astype(float) - expected)[3:-3, 3:-3]
    assert error.mean() < 0.6  # half a pixel of misplacement makes 4
    assert error.max() < 8
    assert np.abs(seen.astype(float) - expected).mean() > 4  # so there was something to undo


def smooth_scene(xy: np.ndarray) -> np.ndarray:
    """uint8 colours of directions (N, 2)."""
    x, y = np.nan_to_num(xy).T
    waves = np.stack([np.sin(9 * x + 3 * y), np.cos(8 * y - 2 * x), np.sin(6 * x) * np.cos(7 * y)], 1)
    return np.asarray((127.5 + 120 * waves).round(), np.uint8)


def test_lenses_agree_with_opencv() -> None:
    rng = np.random.default_rng(1)
    xy = rng.uniform(-0.9, 0.9, (200, 2))
    matrix = np.array([[K[0], 0, K[2]], [0, K[1], K[3]], [0, 0, 1]])
    fisheye, full = LENSES[0], LENSES[1]
    theirs, _ = cv2.fisheye.projectPoints(
        np.c_[xy, np.ones(200)][:, None], np.zeros(3), np.zeros(3), matrix, np.array(fisheye.params[4:])
    )
    np.testing.assert_allclose(fisheye.pixels(xy), theirs[:, 0], atol=1e-9)
    theirs, _ = cv2.projectPoints(np.c_[xy, np.ones(200)], np.zeros(3), np.zeros(3), matrix, np.array(full.params[4:]))
    np.testing.assert_allclose(full.pixels(xy), theirs[:, 0], atol=1e-9)


def test_the_pinhole_of_an_ideal_fisheye() -> None:
    """Equidistant, 90 degrees from side to side: the corners' rays are the first to leave the picture."""
    lens = Lens("SIMPLE_FISHEYE", 400, 400, (200 / (np.pi / 4), 200.0, 200.0))
    camera = lens.pinhole
    # Along a side's middle 45 degrees would do, but there the corner lies at atan(sqrt 2) = 54.7 degrees, whose image
    # (0.955 f, along the diagonal) is inside: the middle of the sides decides, where pinhole and fisheye touch.
    assert camera.fx == pytest.approx(200.0, rel=1e-3)
    np.testing.assert_allclose(lens.pixels(np.array([[1.0, 0.0]])), [[400.0, 200.0]], atol=1e-6)


def test_a_very_wide_lens_is_not_stretched_beyond_use() -> None:
    wide = Lens("SIMPLE_FISHEYE", 400, 400, (400 / np.pi, 200.0, 200.0))  # half of the sphere
    assert wide.pinhole.fov_x_deg == pytest.approx(110, abs=0.1)


@pytest.mark.parametrize("line", ["FOV 640 480 1 2 3", "NEWFANGLED 640 480 1 2 3", "FISHEYE 640 480 -3 300 320 240"])
def test_lenses_that_are_none(tmp_path: Path, line: str) -> None:
    (tmp_path / "cameras.txt").write_text(f"1 {line}\n")
    with pytest.raises(InputError, match=r"cameras\.txt"):
        read_camera(tmp_path / "cameras.txt", 640, 480)


def test_a_full_model_without_higher_terms_needs_no_undistortion(tmp_path: Path) -> None:
    (tmp_path / "cameras.txt").write_text("1 FULL_OPENCV 640 480 300 310 318 243 0.1 0.02 0.001 0.002 0 0 0 0\n")
    assert read_lens(tmp_path) is None
    assert read_camera(tmp_path, 640, 480).distortion == (0.1, 0.02, 0.001, 0.002)


# -- round trips ------------------------------------------------------------------------------------------------------

finite = st.floats(-1e4, 1e4)
turns = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 1e-4)


@st.composite
def paths(draw: st.DrawFn) -> Trajectory:
    """Any poses, at any increasing times."""
    count = draw(st.integers(1, 6))
    steps_s = draw(st.lists(st.floats(1e-3, 1e3), min_size=count, max_size=count))
    T = np.tile(np.eye(4), (count, 1, 1))
    T[:, :3, :3] = Rotation.from_quat([draw(turns) for _ in range(count)]).as_matrix()
    T[:, :3, 3] = [draw(st.tuples(finite, finite, finite)) for _ in range(count)]
    return Trajectory(np.cumsum(steps_s), T)


@st.composite
def cameras(draw: st.DrawFn) -> Intrinsics:
    width, height = draw(st.integers(16, 8000)), draw(st.integers(16, 8000))
    f = st.floats(0.1, 10).map(lambda x: x * width)
    cx, cy = (draw(st.floats(0.1, 0.9)) * side for side in (width, height))
    distortion = draw(st.none() | st.tuples(*[st.floats(-0.3, 0.3)] * 4).filter(any))
    return Intrinsics(draw(f), draw(f), cx, cy, width, height, distortion)


anything = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@anything
@given(truth=paths(), camera=cameras())
def test_what_is_written_is_read_back(tmp_path: Path, truth: Trajectory, camera: Intrinsics) -> None:
    frames, times_s = np.arange(len(truth)), truth.timestamps_s
    names = image_names(frames)
    write_tum(tmp_path / "t.txt", truth, "m")
    write_poses_npy(tmp_path / "t.npy", truth)
    write_transforms(tmp_path / "transforms.json", truth, camera, names, "m")
    write_colmap(tmp_path / "sparse" / "0", truth, camera, names, "m")
    reach = np.abs(truth.centres).max() + 1
    for name in ("t.txt", "t.npy", "transforms.json", "sparse/0"):
        found = read_poses(tmp_path / name, times_s, frames)
        assert found.has_pose.all(), name
        error = np.abs(found.T_world_camera - truth.T_world_camera)
        assert error[:, :3, :3].max() < 1e-6, name
        assert error[:, :3, 3].max() < 1e-6 * reach, name
        if found.intrinsics is not None:
            np.testing.assert_allclose(found.intrinsics.K, camera.K, rtol=1e-6)
            np.testing.assert_allclose(found.intrinsics.distortion or [0] * 4, camera.distortion or [0] * 4, atol=1e-6)
        assert (found.intrinsics is None) == name.startswith("t.")


# -- conventions ------------------------------------------------------------------------------------------------------


def matrices_in(convention: Convention, T_world_camera: np.ndarray) -> np.ndarray:
    """What a file of that convention holds, as matrices, from first principles: its axes are permuted by hand."""
    M = T_world_camera.copy()
    if convention.opengl:
        M[:, :3, 1:3] *= -1  # the camera's y and z axes point the other way
    return np.linalg.inv(M) if convention.world_to_camera else M


EVERY = [Convention(gl, way, q) for gl in (False, True) for way in (False, True) for q in ("xyzw", "wxyz")]


@pytest.mark.parametrize("meant", EVERY)
@pytest.mark.parametrize("read", EVERY)
def test_a_wrong_reading_can_be_put_right(meant: Convention, read: Convention) -> None:
    truth = path_of(5).T_world_camera
    file = matrices_in(meant, truth)
    if meant.quaternion != read.quaternion:  # four numbers stand in the file; both orders name them differently
        xyzw = Rotation.from_matrix(file[:, :3, :3]).as_quat()
        numbers = xyzw[:, [3, 0, 1, 2]] if meant.quaternion == "wxyz" else xyzw
        misread = numbers if read.quaternion == "xyzw" else numbers[:, [1, 2, 3, 0]]
        file[:, :3, :3] = Rotation.from_quat(misread).as_matrix()
    as_read = np.linalg.inv(file) if read.world_to_camera else file.copy()
    if read.opengl:
        as_read[:, :3, 1:3] *= -1
    np.testing.assert_allclose(reread(as_read, read, meant), truth, atol=1e-9)
    assert read.told(meant.words_from(read)) == meant


def test_files_in_another_convention(tmp_path: Path) -> None:
    truth = path_of(8)
    np.save(tmp_path / "gl.npy", matrices_in(Convention(opengl=True, world_to_camera=True), truth.T_world_camera))
    found = read_poses(tmp_path / "gl.npy", truth.timestamps_s, np.arange(8), convention=("opengl", "world-to-camera"))
    np.testing.assert_allclose(found.T_world_camera, truth.T_world_camera, atol=1e-9)
    with pytest.raises(UsageError, match="no quaternions"):
        read_records(tmp_path / "gl.npy").told(["wxyz"])
    with pytest.raises(UsageError, match="made of opencv"):
        read_records(tmp_path / "gl.npy").told(["upside-down"])
    q = Rotation.from_matrix(truth.T_world_camera[:, :3, :3]).as_quat()[:, [3, 0, 1, 2]]
    np.savetxt(tmp_path / "w.txt", np.column_stack([truth.timestamps_s, truth.centres, q]))
    found = read_poses(tmp_path / "w.txt", truth.timestamps_s, np.arange(8), convention=("wxyz",))
    np.testing.assert_allclose(found.T_world_camera, truth.T_world_camera, atol=1e-9)


# -- ARKit ------------------------------------------------------------------------------------------------------------

ARKIT = [[1, 0, 0, 0], [0, 0.6, -0.8, 1.5], [0, 0.8, 0.6, 0.25], [0, 0, 0, 1.0]]
"""A phone 1.5 m above the ground, tilted: its y axis is up and away, its z axis towards the user and down."""


def check_arkit(T: np.ndarray) -> None:
    np.testing.assert_allclose(T[:3, 3], [0, 1.5, 0.25], atol=1e-9)
    np.testing.assert_allclose(T[:3, 0], [1, 0, 0], atol=1e-9)  # image right
    np.testing.assert_allclose(T[:3, 2], [0, 0.8, -0.6], atol=1e-9)  # it looks along ARKit's -z
    np.testing.assert_allclose(T[:3, 1], [0, -0.6, -0.8], atol=1e-9)  # image down is ARKit's -y


def record3d(frames: int = 3, **changes: Any) -> dict[str, Any]:
    quaternion = Rotation.from_matrix(np.array(ARKIT)[:3, :3]).as_quat().tolist()
    K_by_column = [700.0, 0, 0, 0, 702.0, 0, 358.0, 481.0, 1]
    poses = [[*quaternion, 0.0, 1.5, 0.25]] * frames
    return {"w": 720, "h": 960, "K": K_by_column, "fps": 60, "poses": poses, **changes}


def as_r3d(folder: Path, content: Any) -> Path:
    with zipfile.ZipFile(folder / "take.r3d", "w") as archive:
        archive.writestr("metadata", json.dumps(content))
        archive.writestr("rgbd/0.jpg", b"")
    return folder / "take.r3d"


def as_metadata(folder: Path, content: Any) -> Path:
    (folder / "metadata").write_text(json.dumps(content))
    return folder / "metadata"


@pytest.mark.parametrize("write", [as_r3d, as_metadata])
def test_record3d(tmp_path: Path, write: Callable[[Path, Any], Path]) -> None:
    found = read_poses(write(tmp_path, record3d()), np.arange(3) / 60, np.arange(3))
    check_arkit(found.T_world_camera[2])
    camera = found.intrinsics
    assert camera is not None
    assert (camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height) == (700, 702, 358, 481, 720, 960)
    by_frame = record3d(perFrameIntrinsicCoeffs=[[700, 700, 360, 480], [710, 710, 360, 480], [800, 800, 360, 480]])
    found = read_poses(write(tmp_path, by_frame), np.arange(3) / 60, np.arange(3))
    assert found.intrinsics is not None
    assert found.intrinsics.fx == 710
    half = read_poses(write(tmp_path, record3d(8)), np.arange(4) / 30, np.arange(0, 8, 2), source_frame_count=8)
    assert len(half) == 4


@pytest.mark.parametrize(
    "content", [[], {}, record3d(0), record3d(K=[1]), record3d(poses=[[1, 2]]), record3d(w=None), record3d(w=0)]
)
def test_damaged_recordings(tmp_path: Path, content: Any) -> None:
    with pytest.raises(InputError, match=r"take\.r3d: .*record"):
        read_poses(as_r3d(tmp_path, content), np.arange(3) / 60, np.arange(3))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off"])
def test_recordings_that_are_no_archives(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "take.r3d").write_bytes(content)
    with pytest.raises(InputError, match="not a recording of Record3D"):
        read_poses(tmp_path / "take.r3d", np.arange(3) / 60, np.arange(3))


def polycam(folder: Path, names: list[str], **changes: Any) -> Path:
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        numbers = {f"t_{row}{column}": ARKIT[row][column] for row in range(3) for column in range(4)}
        camera = {"fx": 765.0 + i, "fy": 766.0 + i, "cx": 512.0, "cy": 384.0, "width": 1024, "height": 768}
        (folder / f"{name}.json").write_text(json.dumps({**numbers, **camera, "blur_score": 300.0, **changes}))
    return folder


def test_polycam(tmp_path: Path) -> None:
    names = ["1643920384", "1643920391", "1643920402"]
    folder = polycam(tmp_path / "keyframes" / "corrected_cameras", names)
    polycam(tmp_path / "keyframes" / "cameras", names, t_03=9.0)  # before the loops were closed
    places = (tmp_path, tmp_path / "keyframes", folder, folder / f"{names[0]}.json")
    for place in places:
        found = read_poses(place, np.arange(2.0), np.arange(2), frame_names=[f"{names[2]}.jpg", f"{names[0]}.jpg"])
        check_arkit(found.T_world_camera[1])
        assert found.intrinsics is not None
        assert found.intrinsics.K.tolist() == [[766, 0, 512], [0, 767, 384], [0, 0, 1]]
    for change in ({"t_11": None}, {"fx": "wide"}):
        spoiled = polycam(tmp_path / "_".join(change) / "cameras", names, **change)
        with pytest.raises(InputError, match="not a camera of Polycam"):
            read_poses(spoiled, np.arange(3.0), np.arange(3))


# -- OpenSfM and nerfstudio -------------------------------------------------------------------------------------------


def opensfm(folder: Path, truth: Trajectory, **camera: Any) -> Path:
    """Shots world-to-camera, as OpenSfM documents them: axis-angle and translation."""
    T = np.linalg.inv(truth.T_world_camera)
    shots = {
        name: {"rotation": Rotation.from_matrix(M[:3, :3]).as_rotvec().tolist(), "translation": M[:3, 3].tolist()}
        for name, M in zip(image_names(range(len(T))), T, strict=True)
    }
    entry = {"projection_type": "perspective", "width": 800, "height": 600, "focal": 0.75, "k1": 0.0, "k2": 0.0}
    model = {"cameras": {"c": {**entry, **camera}}, "shots": {n: {**s, "camera": "c"} for n, s in shots.items()}}
    small = {"cameras": model["cameras"], "shots": {}, "points": {}}
    (folder / "reconstruction.json").write_text(json.dumps([small, {**model, "points": {}}]))
    return folder / "reconstruction.json"


def test_opensfm_needs_no_tracks_for_poses(tmp_path: Path) -> None:
    truth = path_of(6)
    for place in (opensfm(tmp_path, truth, k1=0.1), tmp_path):
        found = read_poses(place, truth.timestamps_s, np.arange(6))
        np.testing.assert_allclose(found.T_world_camera, truth.T_world_camera, atol=1e-9)
        assert found.intrinsics is not None
        assert found.intrinsics.K.tolist() == [[600, 0, 400], [0, 600, 300], [0, 0, 1]]
        assert found.intrinsics.distortion == (0.1, 0, 0, 0)


@pytest.mark.parametrize(
    ("camera", "model", "params"),
    [
        ({"projection_type": "fisheye", "k1": 0.02, "k2": 0.01}, "OPENCV_FISHEYE", (0.02, 0.01, 0, 0)),
        (
            {"projection_type": "fisheye_opencv", "k1": 0.02, "k2": 0.01, "k3": 0.003, "k4": 0.004},
            "OPENCV_FISHEYE",
            (0.02, 0.01, 0.003, 0.004),
        ),
        (
            {"projection_type": "brown", "k1": 0.02, "k2": 0.01, "p1": 0.001, "p2": 0.002, "k3": 0.003},
            "FULL_OPENCV",
            (0.02, 0.01, 0.001, 0.002, 0.003, 0, 0, 0),
        ),
    ],
)
def test_lenses_of_opensfm(tmp_path: Path, camera: dict[str, Any], model: str, params: tuple[float, ...]) -> None:
    lens = read_pose_lens(opensfm(tmp_path, path_of(3), **camera))
    assert lens == Lens(model, 800, 600, (600.0, 600.0, 400.0, 300.0, *map(float, params)))


def test_reconstructions_that_cannot_be_used(tmp_path: Path) -> None:
    truth = path_of(3)
    for change, words in (
        ({"projection_type": "spherical"}, "spherical camera is not supported"),
        ({"focal": 0}, "focal"),
    ):
        with pytest.raises(InputError, match=words):
            read_records(opensfm(tmp_path, truth, **change))
    for content in ([], [{}], [{"shots": {"a": {"rotation": [0, 0, 0]}}, "cameras": {}}]):
        (tmp_path / "reconstruction.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match="not a reconstruction of OpenSfM"):
            read_records(tmp_path)


def test_lenses_of_nerfstudio(tmp_path: Path) -> None:
    truth = path_of(3)
    camera = Intrinsics(*K, 640, 480, (0.02, 0.01, 0.001, 0.002))
    write_transforms(tmp_path / "transforms.json", truth, camera, image_names(range(3)), "m")
    scene = json.loads((tmp_path / "transforms.json").read_text())
    for change, model, params in (
        ({"camera_model": "OPENCV_FISHEYE", "k3": 0.003}, "OPENCV_FISHEYE", (0.02, 0.01, 0.003, 0.0)),
        ({"is_fisheye": True}, "OPENCV_FISHEYE", (0.02, 0.01, 0.0, 0.0)),
        ({"k3": 0.003}, "FULL_OPENCV", (0.02, 0.01, 0.001, 0.002, 0.003, 0.0, 0.0, 0.0)),
    ):
        (tmp_path / "transforms.json").write_text(json.dumps({**scene, **change}))
        assert read_pose_lens(tmp_path) == Lens(model, 640, 480, (*K, *params))
    (tmp_path / "transforms.json").write_text(json.dumps({**scene, "k3": 0}))
    assert read_pose_lens(tmp_path) is None


# -- readings that the pictures contradict ----------------------------------------------------------------------------

look = synthetic.look
STEPS = np.linspace(-0.5, 0.5, 12)
WORLD = look((3.0, -2.0, 1.0), 0.5, -1.1, 2.0)  # of the files: an axis of the room is none of theirs
PATHS = {
    "walk": synthetic.walk(12),
    "sideways": np.stack([look((x, 0, 0)) for x in STEPS]),
    "upwards": np.stack([look((0, x, 0)) for x in STEPS]),
    "forwards": np.stack([look((0, 0, 2 * x)) for x in STEPS]),
    "pan": synthetic.pan(12),
    "tilt": np.stack([look((0, 0, 0), 0, 0.5 * x) for x in STEPS]),
    "turn": np.stack([look((0.02 * x, 0, 0), 0.5 * x, 0.3 * np.cos(3 * x), 0.4 * x) for x in STEPS]),
    "loop": np.stack(
        [look((0.4 * np.cos(a), 0.4 * np.sin(a), 0.2 * np.sin(a)), 0.1 * np.cos(a)) for a in 2 * np.pi * STEPS]
    ),
}
CAMERA = synthetic.camera(192, 144)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], VideoSource]:
    """`clips(name)`: a path of PATHS as a clip, rendered once."""
    folder = tmp_path_factory.mktemp("clips")

    def clip(name: str) -> VideoSource:
        file = folder / f"{name}.mp4"
        return open_video(file if file.exists() else synthetic.Clip(CAMERA, PATHS[name]).write(file))

    return clip


def check(
    video: VideoSource, T: np.ndarray, read_as: Convention, camera: Intrinsics = CAMERA, standard: Convention = TUM
) -> None:
    def steps() -> Steps[None]:
        yield from check_reading(
            video, np.arange(len(T)), T, camera, read_as, Path("poses"), standard=standard, camera_stated=True
        )

    drive(steps(), lambda _: None)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("world", [np.eye(4), WORLD], ids=["room", "world"])
def test_right_poses_are_never_refused(clips: Callable[[str], VideoSource], path: str, world: np.ndarray) -> None:
    T = world @ PATHS[path]
    check(clips(path), T, TUM)
    noise = np.stack([look(0.004 * n[:3], *(0.003 * n[3:])) for n in np.random.default_rng(3).normal(size=(len(T), 6))])
    check(clips(path), T @ noise, OPENGL)  # a sensor's: 0.2 degrees, 0.2 % of the depth


@pytest.mark.parametrize("path", ["walk", "turn", "loop"])
@pytest.mark.parametrize("words", ["world-to-camera", "opengl", "opengl,world-to-camera", "wxyz"])
def test_mistakes_are_named(clips: Callable[[str], VideoSource], path: str, words: str) -> None:
    meant = TUM.told(words.split(","))
    as_read = reread(WORLD @ PATHS[path], meant, TUM)  # the file means one thing, TUM another
    with pytest.raises(InputError, match=rf"poses: .* (9\d|100)% if read as {words}: give --poses-convention {words}$"):
        check(clips(path), as_read, TUM)
    check(clips(path), reread(as_read, TUM, meant), meant)  # told so, the pictures agree


@pytest.mark.parametrize(("standard", "words"), [(COLMAP, "camera-to-world"), (OPENGL, "opencv"), (OPENCV, "opengl")])
def test_mistakes_in_other_formats(clips: Callable[[str], VideoSource], standard: Convention, words: str) -> None:
    as_read = reread(WORLD @ PATHS["walk"], standard.told([words]), standard)
    with pytest.raises(InputError, match=rf"if read as {words}: give --poses-convention {words}$"):
        check(clips("walk"), as_read, standard, standard=standard)
    both = standard.told(["world-to-camera"]) if words != "camera-to-world" else standard.told(["opengl"])
    with pytest.raises(InputError, match=rf": give --poses-convention {words}$"):  # whatever else was told
        check(clips("walk"), reread(WORLD @ PATHS["walk"], standard.told([words]), both), both, standard=standard)


@pytest.mark.parametrize("path", ["sideways", "upwards", "forwards", "pan", "tilt"])
@pytest.mark.parametrize("words", ["world-to-camera", "opengl"])
def test_simple_motions_leave_a_choice_of_readings_that_explain_it(
    clips: Callable[[str], VideoSource], path: str, words: str
) -> None:
    """Sideways, both kinds of axes see the same; what is told instead always explains the pictures."""
    T = reread(WORLD @ PATHS[path], TUM.told([words]), TUM)
    try:
        check(clips(path), T, TUM)
    except InputError as error:
        offered = [part.split()[0] for part in str(error).split("--poses-convention ")[1:]]
        assert words in offered
        for told in offered:
            wanted = TUM.told(told.split(","))
            check(clips(path), reread(T, TUM, wanted), wanted)
    else:
        assert (path, words) in {("sideways", "opengl"), ("tilt", "opengl")}


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_cameras_of_another_size_are_named(clips: Callable[[str], VideoSource], factor: float) -> None:
    width = round(192 * factor)
    longer = replace(CAMERA, fx=CAMERA.fx * factor, fy=CAMERA.fy * factor)
    with pytest.raises(
        InputError, match=rf"{1 / factor:g} times the focal length: .* {width} px wide, the clip's are 192"
    ):
        check(clips("walk"), PATHS["walk"], TUM, longer)
    scaled = replace(longer, cx=CAMERA.cx * factor, cy=CAMERA.cy * factor)
    with pytest.raises(InputError, match=rf"{1 / factor:g} times the focal length and centre: .* {width} px wide"):
        check(clips("walk"), PATHS["walk"], TUM, scaled)


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_names_the_mistake_and_takes_the_option(
    tmp_path: Path, clips: Callable[[str], VideoSource], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file = clips("walk").info.path
    np.save(tmp_path / "gl.npy", matrices_in(OPENGL, WORLD @ PATHS["walk"]))
    command = ["marigold3d", "video", str(file), "-o", str(tmp_path / "run"), "--quiet", "--no-fuse", "--no-refine"]
    command += ["--fov", "65", "--poses", str(tmp_path / "gl.npy")]

    def run(*options: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", [*command, *options])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    code, error = run()
    assert (code, error.count("\n")) == (3, 1)
    assert error.strip().endswith("give --poses-convention opengl")
    assert not (tmp_path / "run").exists()
    assert run("--poses-convention", "sideways")[0] == 2
    code, error = run("--poses-convention", "opengl")
    assert code == 0, error
    assert run("--poses-convention", "wxyz", "--overwrite")[0] == 2
    settings_kept = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert RunConfig.from_dict(settings_kept).poses.convention == ("opengl",)


@pytest.mark.slow
def test_a_clip_through_a_fisheye(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames are undistorted on the way in: depth, poses and colours are as if a pinhole had filmed."""
    lens = Lens("OPENCV_FISHEYE", 320, 240, (190.0, 190.0, 160.0, 120.0, 0.01, -0.005, 0.0, 0.0))
    T = synthetic.walk(10, length=0.8)
    pinhole = synthetic.Clip(lens.pinhole, T)
    truth = [depth for _, depth in pinhole.frames]
    rays = np.pad(lens.normalised(pixel_grid(320, 240).reshape(-1, 2)), ((0, 0), (0, 1)), constant_values=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "ray_grid", lambda _: rays.reshape(240, 320, 3))
        file = synthetic.Clip(CAMERA, T).write(tmp_path / "fisheye.mp4")
    model = tmp_path / "sparse" / "0"
    write_colmap(model, Trajectory(np.arange(10.0), T), Intrinsics(*K, 640, 480), image_names(range(10)), "m")
    (model / "cameras.txt").write_text(f"1 {lens}\n")
    monkeypatch.setattr("marigold3d.pipeline.load_estimator", lambda _: synthetic.Oracle(pinhole, bend=0.03))
    config = RunConfig(poses=PoseConfig("file", tmp_path, metric=True), refine=RefineConfig(enabled=False))
    run = reconstruct(file, tmp_path / "run", config)
    assert run.manifest["settings"]["video"]["lens"] == str(lens)
    assert run.manifest["report"]["cameras"]["undistorted_from"] == str(lens)
    assert json.loads((tmp_path / "run" / "camera.json").read_text())["fx"] == lens.pinhole.fx
    errors = [np.abs(run.depth(i).depth / truth[i] - 1)[run.depth(i).valid] for i in run.frame_indices]
    assert np.mean(np.concatenate(errors)) < 0.03
    distance = synthetic.distance_to_surface(run.cloud().points.astype(float))
    assert np.median(distance) < 0.02
    truly = synthetic.colour_of(run.cloud().points.astype(float)) * 255
    assert np.median(np.abs(truly - run.cloud().colors)) < 20  # as if it had been filmed without the fisheye
    again, raw = RunConfig.from_dict(run.manifest["settings"]).video, VideoConfig()
    seen, distorted = (next(open_video(file, video).frames()).rgb.astype(float) for video in (again, raw))
    assert np.abs(seen - pinhole.frames[0][0]).mean() < 0.4 * np.abs(distorted - pinhole.frames[0][0]).mean()


def test_words_of_the_option_are_all_understood() -> None:
    assert all(TUM.told([word]) for word in WORDS)
    assert VideoConfig().lens is None
