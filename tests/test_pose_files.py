"""Poses and cameras from other tools' files: whatever the format, the same poses on the right frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from marigold3d.errors import InputError
from marigold3d.export.trajectories import image_names, write_colmap, write_poses_npy, write_transforms, write_tum
from marigold3d.poses.colmap_files import MODELS, read_cameras
from marigold3d.poses.files import read_camera, read_poses, read_tum
from marigold3d.rigid import inverse
from marigold3d.types import Intrinsics, Trajectory
from tests.data_paths import data_path

N = 24
FPS = 30.0
INDICES = np.arange(N)
TIMES_S = INDICES / FPS
CAMERA = Intrinsics(500.0, 510.0, 321.0, 239.0, 640, 480, (0.1, -0.02, 0.001, 0.002))


def path_of(n: int = N) -> Trajectory:
    """A winding path with every kind of rotation."""
    rng = np.random.default_rng(7)
    T = np.tile(np.eye(4), (n, 1, 1))
    T[:, :3, :3] = Rotation.random(n, rng).as_matrix()
    T[:, :3, 3] = rng.normal(size=(n, 3)) * 3
    return Trajectory(np.arange(n) / FPS, T)


TRUTH = path_of()
Writer = Callable[[Path, Trajectory, list[str]], Path]


def as_tum(folder: Path, trajectory: Trajectory, names: list[str]) -> Path:
    write_tum(folder / "t.txt", trajectory, "m", "a note")
    return folder / "t.txt"


def as_npy(folder: Path, trajectory: Trajectory, names: list[str]) -> Path:
    write_poses_npy(folder / "t.npy", trajectory)
    return folder / "t.npy"


def as_transforms(folder: Path, trajectory: Trajectory, names: list[str]) -> Path:
    write_transforms(folder / "transforms.json", trajectory, CAMERA, names, "m")
    return folder / "transforms.json"


def as_colmap(folder: Path, trajectory: Trajectory, names: list[str]) -> Path:
    write_colmap(folder / "sparse" / "0", trajectory, CAMERA, names, "m")
    return folder


def by_pycolmap(folder: Path, trajectory: Trajectory, names: list[str], binary: bool = True) -> Path:
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction()
    numbers = [CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy, *(CAMERA.distortion or ())]
    camera = pycolmap.Camera(model="OPENCV", width=640, height=480, params=numbers, camera_id=1)
    model.add_camera_with_trivial_rig(camera)
    for i, T in enumerate(inverse(trajectory.T_world_camera)):
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(T[:3, :3]), T[:3, 3])
        image = pycolmap.Image(name=names[i], camera_id=1, image_id=i + 1)
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(np.array([i, 5.0])) for i in range(3)])
        model.add_image_with_trivial_frame(image, pose)
    folder.mkdir(exist_ok=True)
    model.write_binary(str(folder)) if binary else model.write_text(str(folder))
    return folder


def by_pycolmap_text(folder: Path, trajectory: Trajectory, names: list[str]) -> Path:
    return by_pycolmap(folder, trajectory, names, binary=False)


WRITERS = [as_tum, as_npy, as_transforms, as_colmap, by_pycolmap, by_pycolmap_text]


@pytest.mark.parametrize("write", WRITERS)
def test_what_was_written_is_read_back(tmp_path: Path, write: Writer) -> None:
    found = read_poses(write(tmp_path, TRUTH, image_names(range(N))), TIMES_S, INDICES)
    assert found.has_pose.all()
    np.testing.assert_allclose(found.T_world_camera, TRUTH.T_world_camera, atol=1e-9)
    if found.intrinsics is not None:
        assert found.intrinsics.as_dict() == CAMERA.as_dict()
    assert (found.intrinsics is None) == (write in (as_tum, as_npy))


@pytest.mark.parametrize("write", WRITERS)
def test_a_thinned_clip_takes_its_own_frames(tmp_path: Path, write: Writer) -> None:
    used = np.arange(3, N, 5)
    found = read_poses(write(tmp_path, TRUTH, image_names(range(N))), TIMES_S[used], used, source_frame_count=N)
    assert found.has_pose.all()
    np.testing.assert_allclose(found.T_world_camera, TRUTH.T_world_camera[used], atol=1e-9)


@pytest.mark.parametrize("write", [as_tum, as_transforms, as_colmap, by_pycolmap])
def test_frames_without_a_pose(tmp_path: Path, write: Writer) -> None:
    kept = np.array([2, 3, 9, 20])
    part = Trajectory(TIMES_S[kept], TRUTH.T_world_camera[kept])
    found = read_poses(write(tmp_path, part, image_names(kept)), TIMES_S, INDICES)
    assert np.flatnonzero(found.has_pose).tolist() == kept.tolist()
    trajectory = found.trajectory(TIMES_S)
    np.testing.assert_allclose(trajectory.T_world_camera, part.T_world_camera, atol=1e-9)
    np.testing.assert_allclose(trajectory.timestamps_s, part.timestamps_s)


@pytest.mark.parametrize("write", [as_transforms, as_colmap])
def test_names_of_images_win_over_numbers(tmp_path: Path, write: Writer) -> None:
    names = [f"IMG_{7000 + 3 * i}.JPG" for i in range(N)]
    order = np.random.default_rng(1).permutation(N)
    shuffled = Trajectory(TIMES_S, TRUTH.T_world_camera[order])
    file = write(tmp_path, shuffled, [names[i] for i in order])
    found = read_poses(file, TIMES_S[:10], INDICES[:10], frame_names=names[:10])
    np.testing.assert_allclose(found.T_world_camera, TRUTH.T_world_camera[:10], atol=1e-9)


@pytest.mark.parametrize("write", [as_transforms, as_colmap])
@pytest.mark.parametrize("first", [1, 100])
def test_other_numbering_is_taken_in_order_when_the_counts_agree(tmp_path: Path, write: Writer, first: int) -> None:
    names = [f"images/f{first + i}.png" for i in range(N)]  # f9 before f10
    found = read_poses(write(tmp_path, TRUTH, names), TIMES_S, INDICES)
    np.testing.assert_allclose(found.T_world_camera, TRUTH.T_world_camera, atol=1e-9)


def test_numbers_from_one_when_the_last_says_so(tmp_path: Path) -> None:
    part = Trajectory(TIMES_S[5:], TRUTH.T_world_camera[5:])
    file = as_colmap(tmp_path, part, [f"{i + 1:04d}.png" for i in range(5, N)])
    found = read_poses(file, TIMES_S, INDICES, source_frame_count=N)
    assert np.flatnonzero(found.has_pose).tolist() == list(range(5, N))


def test_tum_by_frame_index_and_by_time(tmp_path: Path) -> None:
    table = "\n".join(f"{i} {i} 0 0 0 0 0 1" for i in range(N))
    (tmp_path / "t.txt").write_text("# a comment\n" + table)
    by_index = read_poses(tmp_path / "t.txt", TIMES_S, INDICES)
    assert by_index.T_world_camera[:, 0, 3].tolist() == list(range(N))
    seconds = np.arange(0, 60 * N) / 30.0  # a minute is longer than the file, so whole numbers are seconds
    by_time = read_poses(tmp_path / "t.txt", seconds, np.arange(60 * N))
    assert np.flatnonzero(by_time.has_pose).tolist() == [30 * i for i in range(N)]


def test_tum_tolerates_half_a_frame_and_no_more(tmp_path: Path) -> None:
    shifted = Trajectory(TIMES_S + 0.45 / FPS, TRUTH.T_world_camera)
    assert read_poses(as_tum(tmp_path, shifted, []), TIMES_S, INDICES).has_pose.all()
    late = Trajectory(TIMES_S + 1000.0, TRUTH.T_world_camera)
    with pytest.raises(InputError, match=r"from 1000 to 1000\.77, the clip's 24 frames from 0 to 0\.76\d* s: subtract"):
        read_poses(as_tum(tmp_path, late, []), TIMES_S, INDICES)


def test_read_tum_keeps_everything(tmp_path: Path) -> None:
    back = read_tum(as_tum(tmp_path, TRUTH, []))
    np.testing.assert_allclose(back.timestamps_s, TRUTH.timestamps_s, atol=1e-9)
    np.testing.assert_allclose(back.T_world_camera, TRUTH.T_world_camera, atol=1e-9)
    header = (tmp_path / "t.txt").read_text()
    assert "units m; camera to world; camera x right, y down, z forward" in header
    assert "a note" in header


def test_tum_agrees_with_evo(tmp_path: Path) -> None:
    file_interface = pytest.importorskip("evo.tools.file_interface")
    theirs = file_interface.read_tum_trajectory_file(as_tum(tmp_path, TRUTH, []))
    np.testing.assert_allclose(np.array(theirs.poses_se3), TRUTH.T_world_camera, atol=1e-9)


def test_colmap_text_agrees_with_pycolmap(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    as_colmap(tmp_path, TRUTH, image_names(range(N)))
    theirs = pycolmap.Reconstruction(str(tmp_path / "sparse" / "0"))
    for i, image in enumerate(theirs.images[k] for k in sorted(theirs.images)):
        found = np.vstack([image.cam_from_world().inverse().matrix(), [0, 0, 0, 1]])
        np.testing.assert_allclose(found, TRUTH.T_world_camera[i], atol=1e-9)
    assert theirs.cameras[1].params.tolist() == [500, 510, 321, 239, 0.1, -0.02, 0.001, 0.002]


def test_every_colmap_camera_model_has_its_length(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction()
    for i, (name, count) in enumerate(MODELS):
        camera = pycolmap.Camera(model=name, width=640, height=480, params=np.arange(1, count + 1), camera_id=i + 1)
        model.add_camera_with_trivial_rig(camera)
    model.write_binary(str(tmp_path))
    found = [(row[1], len(row[4])) for row in read_cameras(tmp_path / "cameras.bin").values()]
    assert sorted(found) == sorted(MODELS)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("SIMPLE_PINHOLE 640 480 500 320 240", (500, 500, 320, 240, None)),
        ("PINHOLE 640 480 500 501 320 240", (500, 501, 320, 240, None)),
        ("SIMPLE_RADIAL 640 480 500 320 240 0.1", (500, 500, 320, 240, (0.1, 0, 0, 0))),
        ("RADIAL 640 480 500 320 240 0.1 0.2", (500, 500, 320, 240, (0.1, 0.2, 0, 0))),
        ("OPENCV 640 480 500 501 320 240 0.1 0.2 0.3 0.4", (500, 501, 320, 240, (0.1, 0.2, 0.3, 0.4))),
    ],
)
def test_colmap_camera_models(tmp_path: Path, row: str, expected: tuple[object, ...]) -> None:
    (tmp_path / "cameras.txt").write_text(f"# comment\n1 {row}\n")
    camera = read_camera(tmp_path / "cameras.txt", 640, 480)
    assert (camera.fx, camera.fy, camera.cx, camera.cy, camera.distortion) == expected


def test_several_cameras(tmp_path: Path) -> None:
    (tmp_path / "cameras.txt").write_text("1 PINHOLE 640 480 500 500 320 240\n2 PINHOLE 640 480 501 500 320 240\n")
    with pytest.raises(InputError, match="2 cameras"):
        read_camera(tmp_path / "cameras.txt", 640, 480)


# -- .npy and matrices ------------------------------------------------------------------------------------------------


def save(folder: Path, T: np.ndarray) -> Path:
    np.save(folder / "p.npy", T)
    return folder / "p.npy"


def test_npy_of_three_rows_and_of_used_frames(tmp_path: Path) -> None:
    used = np.array([1, 8, 20])
    found = read_poses(save(tmp_path, TRUTH.T_world_camera[used, :3]), TIMES_S[used], used, source_frame_count=N)
    np.testing.assert_allclose(found.T_world_camera, TRUTH.T_world_camera[used], atol=1e-12)


def test_npy_rows_of_nan_are_frames_without_a_pose(tmp_path: Path) -> None:
    T = TRUTH.T_world_camera.copy()
    T[[4, 9]] = np.nan
    found = read_poses(save(tmp_path, T), TIMES_S, INDICES)
    assert np.flatnonzero(~found.has_pose).tolist() == [4, 9]
    T[7, 0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        read_poses(save(tmp_path, T), TIMES_S, INDICES)
    with pytest.raises(InputError, match="every pose"):
        read_poses(save(tmp_path, np.full((N, 4, 4), np.nan)), TIMES_S, INDICES)


@pytest.mark.parametrize("count", [5, 18, 40])
def test_npy_of_another_length_says_both_numbers(tmp_path: Path, count: int) -> None:
    used = np.arange(0, N, 2)
    with pytest.raises(InputError, match=f"{count} poses for 12 frames of the 24"):
        read_poses(save(tmp_path, path_of(count).T_world_camera), TIMES_S[used], used, source_frame_count=N)


def transposed(T: np.ndarray) -> np.ndarray:
    return np.swapaxes(T, 1, 2)


def scaled(T: np.ndarray) -> np.ndarray:
    return T * np.array([2.5, 2.5, 2.5, 1.0])


def mirrored(T: np.ndarray) -> np.ndarray:
    return T * np.array([1, -1, 1, 1.0])


def projections(T: np.ndarray) -> np.ndarray:
    return np.concatenate([CAMERA.K @ T[:, :3], T[:, 3:]], 1)


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [(transposed, "transpose"), (scaled, r"scaled by 2\.5"), (mirrored, "mirror"), (projections, "projection matrix")],
)
def test_matrices_that_are_no_poses(tmp_path: Path, spoil: Callable[[np.ndarray], np.ndarray], hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        read_poses(save(tmp_path, spoil(TRUTH.T_world_camera)), TIMES_S, INDICES)


def test_rounded_rotations_are_made_exact(tmp_path: Path) -> None:
    found = read_poses(save(tmp_path, TRUTH.T_world_camera.round(3)), TIMES_S, INDICES)
    R = found.T_world_camera[:, :3, :3]
    np.testing.assert_allclose(R @ np.swapaxes(R, 1, 2), np.tile(np.eye(3), (N, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(found.T_world_camera, TRUTH.T_world_camera, atol=2e-3)


# -- transforms.json --------------------------------------------------------------------------------------------------


def transforms_json(folder: Path, **changes: object) -> Path:
    scene = json.loads(as_transforms(folder, TRUTH, image_names(range(N))).read_text())
    scene.update(changes)
    scene = {key: value for key, value in scene.items() if value is not None}
    (folder / "transforms.json").write_text(json.dumps(scene))
    return folder


def test_opengl_camera_looks_along_minus_z(tmp_path: Path) -> None:
    looking = [{"file_path": "0.png", "transform_matrix": np.eye(4).tolist()}]
    T = read_poses(transforms_json(tmp_path, frames=looking), TIMES_S[:1], INDICES[:1]).T_world_camera[0]
    np.testing.assert_array_equal(T[:3, 2], [0, 0, -1])  # the optical axis in the world
    np.testing.assert_array_equal(T[:3, 1], [0, -1, 0])  # image down


def test_transforms_cameras(tmp_path: Path) -> None:
    found = read_poses(transforms_json(tmp_path, fl_x=None, fl_y=None, camera_angle_x=np.pi / 2), TIMES_S, INDICES)
    assert found.intrinsics is not None
    assert found.intrinsics.fx == pytest.approx(320)
    assert read_poses(transforms_json(tmp_path, w=None), TIMES_S, INDICES).intrinsics is None
    with pytest.raises(InputError, match="undistort first"):
        read_poses(transforms_json(tmp_path, camera_model="EQUIRECTANGULAR"), TIMES_S, INDICES)
    with pytest.raises(InputError, match="incomplete"):
        read_poses(transforms_json(tmp_path, fl_x=None), TIMES_S, INDICES)


# -- files that cannot be used ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("absent.txt", None),
        ("a.docx", "x"),
        ("a.txt", ""),
        ("a.txt", "1 2 3\n"),
        ("a.txt", "0 0 0 0 0 0 0 one\n"),
        ("a.txt", "0 0 0 0 0 0 0 5\n"),
        ("a.txt", "0 0 0 0 0 0 0 nan\n"),
        ("a.txt", "0 0 0 0 0 0 0 1\n0 0 0 0 0 0 0 1\n"),
        ("a.npy", "x"),
        ("a.json", "{"),
        ("a.json", '{"frames": []}'),
        ("a.json", '{"frames": [{"file_path": "1.png", "transform_matrix": [[1, 2], [3]]}]}'),
        ("cameras.txt", "1 PINHOLE 640 480 500 500 320 240\n"),
    ],
)
def test_unusable_files_name_themselves_in_one_line(tmp_path: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"^{tmp_path.as_posix()}[^\n]+$"):
        read_poses(tmp_path / name, TIMES_S, INDICES)


def test_damaged_colmap_models(tmp_path: Path) -> None:
    by_pycolmap(tmp_path, TRUTH, image_names(range(N)))
    for name in ("images.bin", "cameras.bin"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=f"{name}: not a readable COLMAP"):
            read_poses(tmp_path, TIMES_S, INDICES)
        (tmp_path / name).write_bytes(whole)
    with pytest.raises(InputError, match="match none of the clip's 3 frames"):
        read_poses(tmp_path, TIMES_S[:3], np.array([900, 901, 902]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither a COLMAP model"):
        read_poses(tmp_path / "empty", TIMES_S, INDICES)


# -- cameras ----------------------------------------------------------------------------------------------------------


def test_camera_json_round_trip_and_scaling(tmp_path: Path) -> None:
    (tmp_path / "camera.json").write_text(json.dumps(CAMERA.as_dict()))
    assert read_camera(tmp_path / "camera.json", 640, 480).as_dict() == CAMERA.as_dict()
    assert read_camera(tmp_path / "camera.json", 320, 240).as_dict() == CAMERA.scaled_to(320, 240).as_dict()
    with pytest.raises(InputError, match="640x480, the clip is 480x640"):
        read_camera(tmp_path / "camera.json", 480, 640)


def test_camera_of_a_colmap_folder(tmp_path: Path) -> None:
    assert read_camera(as_colmap(tmp_path, TRUTH, image_names(range(N))), 640, 480).as_dict() == CAMERA.as_dict()


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("1 2 3", "9 numbers"),
        ("500 0 nan 0 500 240 0 0 1", "finite"),
        ("nan nan nan nan nan nan nan nan nan", "finite"),
        ("500 0 0 0 500 0 320 240 1", "transposed"),
        ("-500 0 320 0 500 240 0 0 1", "positive"),
        ("a b c", "not a camera matrix"),
    ],
)
def test_damaged_matrices(tmp_path: Path, content: str, hint: str) -> None:
    (tmp_path / "K.txt").write_text(content)
    with pytest.raises(InputError, match=rf"K\.txt: .*{hint}"):
        read_camera(tmp_path / "K.txt", 640, 480)


@pytest.mark.data
@pytest.mark.parametrize("name", ["kitchen", "hololens"])
def test_real_recordings(name: str) -> None:
    folder = data_path(name)
    T = np.load(folder / "poses_c2w.npy")
    used = np.arange(0, len(T), 7)
    found = read_poses(folder / "poses_c2w.npy", used / FPS, used, source_frame_count=len(T))
    np.testing.assert_allclose(found.T_world_camera, T[used], atol=1e-3)
    K = np.loadtxt(folder / "K.txt")
    np.testing.assert_allclose(read_camera(folder / "K.txt", 640, 480).K, K)
