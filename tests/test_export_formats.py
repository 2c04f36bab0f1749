"""`marigold3d export`: each format read back by a program other than the one that wrote it; the run stays as it is."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from marigold3d.camera import project
from marigold3d.cli import main
from marigold3d.errors import InputError, OutputError
from marigold3d.export import glb, meshes
from marigold3d.export.clouds import thinned
from marigold3d.export.colmap_binary import write_colmap_binary
from marigold3d.export.formats import FORMATS
from marigold3d.export.mesh_ply import write_mesh_ply
from marigold3d.export.meshes import write_las
from marigold3d.export.opensfm import write_opensfm
from marigold3d.export.ply import blank_cloud
from marigold3d.export.tracks import joined, seen_in
from marigold3d.export_run import _WRITERS, export_run, export_steps
from marigold3d.export_scene import pinhole_of
from marigold3d.poses.files import read_records
from marigold3d.poses.opensfm_files import read_opensfm
from marigold3d.store import Run
from marigold3d.types import DepthMap, Intrinsics, PointCloud, Trajectory, TriangleMesh
from marigold3d.video import write_video
from tests.gui import HEIGHT, WIDTH, make_clip, make_run

Y_UP = np.array([1, -1, -1])
CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (2, 3)], np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with its clip, a cloud of 3,000 points and a mesh of 12 triangles."""
    folder = tmp_path_factory.mktemp("exports")
    run = make_run(folder / "clip_3d", make_clip(folder / "clip.mp4"))
    write_mesh_ply(run.path / "mesh.ply", cube())
    return run


@pytest.fixture(scope="module")
def cloud(run: Run) -> PointCloud:
    return run.cloud()


@pytest.fixture(scope="module")
def path(run: Run) -> Trajectory:
    return run.trajectory()


def cube() -> TriangleMesh:
    """A closed cube of 12 triangles, counter-clockwise from outside, whose corners' colours tell them apart."""
    o3d = pytest.importorskip("open3d")
    hull, order = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(CUBE)).compute_convex_hull()
    hull.orient_triangles()
    corners = CUBE[order]
    centre = corners.mean(0)
    faces = np.asarray(hull.triangles, np.int32)
    a, b, c = (corners[faces[:, i]] for i in range(3))
    if np.sum(np.cross(b - a, c - a) * (a - centre)) < 0:
        faces = faces[:, ::-1].copy()
    normals = ((corners - centre) / np.linalg.norm(corners - centre, axis=1)[:, None]).astype(np.float32)
    return TriangleMesh(corners, faces, normals, np.arange(24, dtype=np.uint8).reshape(8, 3) * 10, "m")


def fingerprint(folder: Path) -> dict[str, str]:
    """The content of every file below `folder`."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def exported(run: Run, form: str, output: Path, **options: bool) -> Path:
    """`output`, written; the run must be as before."""
    before = fingerprint(run.path)
    export_run(run, form, output, **options)
    assert fingerprint(run.path) == before
    assert not list(output.parent.glob(".*")), "nothing temporary is left"
    return output


# -- what holds for all -----------------------------------------------------------------------------------------------


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`marigold3d export` as a user types it: (exit code, standard output, errors)."""

    def run_command(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["marigold3d", "export", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run_command


def test_every_format_has_a_writer_and_stands_in_the_help(export: Command) -> None:
    assert list(_WRITERS) == list(FORMATS)
    said = re.sub(r"[│\s]", "", export("--help")[1])
    assert ",".join(FORMATS) in said


def test_what_cannot_be_written_is_one_line(run: Run, tmp_path: Path, export: Command) -> None:
    there = tmp_path / "there.ply"
    there.write_text("dear")
    (tmp_path / "folder.ply").mkdir()
    bare = make_run(tmp_path / "bare")
    (bare.path / "cloud.ply").unlink()
    for args, code, words in (
        ((run.path, "--format", "glb", "-o", tmp_path / "c.ply"), 2, "ends in .glb"),
        ((run.path, "--format", "ply", "-o", run.path / "c.ply"), 2, "lies in the run"),
        ((run.path, "--format", "ply", "-o", there), 7, "--overwrite"),
        ((run.path, "--format", "exr", "-o", there, "--overwrite"), 7, "is a file"),
        ((run.path, "--format", "ply", "-o", tmp_path / "folder.ply", "--overwrite"), 7, "is a folder"),
        ((bare.path, "--format", "glb", "-o", tmp_path / "c.glb"), 3, "no cloud.ply"),
        ((bare.path, "--format", "obj-mesh", "-o", tmp_path / "c.obj"), 3, "fuse"),
    ):
        found, _, said = export(*args)
        assert (found, said.count("\n")) == (code, 1), said
        assert words in said
    assert there.read_text() == "dear"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["bare", "folder.ply", "there.ply"]


def test_the_clip_and_foreign_frames_are_never_overwritten(tmp_path: Path, export: Command) -> None:
    clip = make_clip(tmp_path / "clip.mp4")
    run, before = make_run(tmp_path / "run", clip), clip.read_bytes()
    code, _, said = export(run.path, "--format", "video", "-o", clip, "--overwrite")
    assert (code, "the run's clip" in said) == (2, True)
    assert clip.read_bytes() == before
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "000000.jpg").write_text("dear")
    code, _, said = export(run.path, "--format", "nerfstudio", "-o", tmp_path / "t.json", "--images")
    assert (code, "images exists already" in said) == (7, True)
    frames = tmp_path / "scene" / "images"
    frames.mkdir(parents=True)
    run.update(clip=str(frames))
    code, _, said = export(run.path, "--format", "3dgs", "-o", tmp_path / "scene", "--overwrite")
    assert (code, "the run's clip" in said) == (2, True)
    assert (tmp_path / "images" / "000000.jpg").read_text() == "dear"
    assert not list(frames.iterdir())
    assert not (tmp_path / "t.json").exists()


@pytest.mark.parametrize("form", ["png", "3dgs", "colmap", "video", "rerun"])
def test_an_interrupted_export_leaves_nothing(run: Run, tmp_path: Path, form: str) -> None:
    if form == "rerun":
        pytest.importorskip("rerun")
    steps = export_steps(run, form, tmp_path / f"x{''.join(FORMATS[form].suffixes[:1])}", images=FORMATS[form].images)
    while next(steps).stage == "scan":  # of a video's colours
        pass
    steps.close()
    assert not list(tmp_path.iterdir())


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.update(status="interrupted")
    with pytest.raises(InputError, match="not finished"):
        export_run(run, "ply", tmp_path / "c.ply")


# -- meshes and clouds ------------------------------------------------------------------------------------------------


def same_mesh(found: object, mesh: TriangleMesh, turn: np.ndarray, linear: bool) -> None:
    """The mesh as Open3D read it, its vertices in whatever order; linear: colours are light, not sRGB values."""
    o3d_mesh = found
    colors = np.asarray(o3d_mesh.vertex_colors)  # type: ignore[attr-defined]
    if linear:
        colors = np.where(colors <= 0.0031308, 12.92 * colors, 1.055 * colors ** (1 / 2.4) - 0.055)
    theirs = np.hstack([np.asarray(o3d_mesh.vertices), np.rint(colors * 255)])  # type: ignore[attr-defined]
    order, ours = np.lexsort(theirs.T), np.hstack([mesh.vertices * turn, mesh.colors])
    np.testing.assert_allclose(theirs[order], ours[np.lexsort(ours.T)], atol=1e-5)
    o3d_mesh.remove_duplicated_vertices()  # type: ignore[attr-defined]
    assert o3d_mesh.is_watertight()  # type: ignore[attr-defined]
    assert o3d_mesh.get_volume() == pytest.approx(1.0, rel=1e-5)  # type: ignore[attr-defined]
    o3d_mesh.compute_triangle_normals()  # type: ignore[attr-defined]
    triangles = np.asarray(o3d_mesh.vertices)[np.asarray(o3d_mesh.triangles)]  # type: ignore[attr-defined]
    outwards = triangles.mean(1) - mesh.vertices.mean(0) * turn
    assert np.all(np.sum(np.asarray(o3d_mesh.triangle_normals) * outwards, 1) > 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["ply-mesh", "glb-mesh", "obj-mesh"])
def test_meshes_open_in_open3d(run: Run, tmp_path: Path, form: str) -> None:
    o3d = pytest.importorskip("open3d")
    suffix = FORMATS[form].suffixes[0]
    file = exported(run, form, tmp_path / f"mesh{suffix}")
    found = o3d.io.read_triangle_mesh(str(file))
    same_mesh(found, run.mesh(), np.ones(3) if form == "ply-mesh" else Y_UP, form == "glb-mesh")


def test_obj_opens_in_trimesh_with_its_normals(run: Run, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    mesh = run.mesh()
    found = trimesh.load(exported(run, "obj-mesh", tmp_path / "m.obj"), process=False, maintain_order=True)
    np.testing.assert_array_equal(found.vertices, mesh.vertices * Y_UP)
    np.testing.assert_array_equal(found.faces, mesh.faces)
    np.testing.assert_allclose(found.vertex_normals, mesh.normals * Y_UP, atol=1e-5)
    np.testing.assert_array_equal(found.visual.vertex_colors[:, :3], mesh.colors)
    assert "units m" in (tmp_path / "m.obj").read_text().splitlines()[1]


@pytest.mark.parametrize("form", ["obj", "glb"])
def test_clouds_open_in_trimesh(run: Run, cloud: PointCloud, tmp_path: Path, form: str) -> None:
    trimesh = pytest.importorskip("trimesh")
    loaded = trimesh.load(exported(run, form, tmp_path / f"c.{form}"))
    found = loaded if form == "obj" else next(iter(loaded.geometry.values()))
    np.testing.assert_array_equal(np.asarray(found.vertices, np.float32), cloud.points * np.float32(Y_UP))
    np.testing.assert_array_equal(np.asarray(found.colors)[:, :3], cloud.colors)


def test_glb_is_the_same_in_pieces_and_says_its_units(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exported(run, "glb", tmp_path / "whole.glb").read_bytes()
    monkeypatch.setattr(glb, "CHUNK_POINTS", 700)
    assert exported(run, "glb", tmp_path / "pieces.glb").read_bytes() == whole
    assert int.from_bytes(whole[8:12], "little") == len(whole)
    assert json.loads(whole[20 : 20 + int.from_bytes(whole[12:16], "little")])["scenes"][0]["extras"]["units"] == "m"
    monkeypatch.setattr(glb, "LARGEST", 1000)
    with pytest.raises(OutputError, match="4 GB at the most"):
        export_run(run, "glb", tmp_path / "large.glb")


def test_ply_opens_in_open3d(run: Run, cloud: PointCloud, tmp_path: Path) -> None:
    o3d = pytest.importorskip("open3d")
    found = o3d.io.read_point_cloud(str(exported(run, "ply", tmp_path / "c.ply")))
    np.testing.assert_array_equal(np.asarray(found.points, np.float32), cloud.points)
    np.testing.assert_array_equal(np.rint(np.asarray(found.colors) * 255), cloud.colors)
    np.testing.assert_array_equal(np.asarray(found.normals, np.float32), cloud.normals)


def test_e57_opens_in_pye57(run: Run, cloud: PointCloud, tmp_path: Path) -> None:
    """No other reader of the format is at hand; the file's own checksums and header are read along."""
    pye57 = pytest.importorskip("pye57")
    file = pye57.E57(str(exported(run, "e57", tmp_path / "c.e57")))
    try:
        assert file.scan_count == 1
        header, found = file.get_header(0), file.read_scan(0, colors=True, ignore_missing_fields=True)
        assert "units m; x right, y down, z forward" in header["name"].value()
        np.testing.assert_array_equal(header.translation, 0)
        np.testing.assert_array_equal(header.rotation, [1, 0, 0, 0])
    finally:
        file.close()
    xyz = np.column_stack([found[f"cartesian{axis}"] for axis in "XYZ"])
    np.testing.assert_array_equal(xyz.astype(np.float32), cloud.points)
    rgb = np.column_stack([found[f"color{name}"] for name in ("Red", "Green", "Blue")])
    np.testing.assert_array_equal(rgb, cloud.colors)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.floats(-1e7, 1e7)] * 3), st.floats(0.1, 1e4), st.sampled_from(["las", "laz"]))
def test_las_keeps_far_coordinates(centre: tuple[float, float, float], extent: float, form: str) -> None:
    """The file's steps stay below what float32 tells apart, wherever the cloud lies: nothing more is lost."""
    laspy = pytest.importorskip("laspy")
    cloud = blank_cloud(50, "m")
    cloud.points[:] = np.random.default_rng(0).uniform(-extent, extent, (50, 3)) + centre
    with TemporaryDirectory() as folder:
        write_las(Path(folder) / f"c.{form}", cloud)
        found = laspy.read(Path(folder) / f"c.{form}")
    step = 5e-9 * max(np.ptp(cloud.points, axis=0).max(), 1e-6) + 1e-9 * np.abs(cloud.points).max()
    np.testing.assert_allclose(found.xyz, cloud.points, rtol=0, atol=step)


def test_las_is_the_same_in_pieces(cloud: PointCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laspy = pytest.importorskip("laspy")
    write_las(tmp_path / "whole.las", cloud)
    monkeypatch.setattr(meshes, "CHUNK_POINTS", 700)
    write_las(tmp_path / "pieces.las", cloud)
    whole, pieces = (laspy.read(tmp_path / f"{name}.las") for name in ("whole", "pieces"))
    assert np.array_equal(whole.points.array, pieces.points.array)
    np.testing.assert_array_equal(pieces.header.mins, whole.header.mins)
    np.testing.assert_array_equal(pieces.header.maxs, whole.header.maxs)


@pytest.mark.parametrize(
    ("form", "module", "extra"),
    [
        ("e57", "pye57", "e57"),
        ("rerun", "rerun", "rerun"),
        ("viser", "viser", "viser"),
        ("laz", "laspy", "export"),
        ("exr", "OpenEXR", "export"),
    ],
)
def test_a_missing_extra_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OutputError, match=rf"pip install 'marigold3d\[{extra}\]'"):
        export_run(run, form, tmp_path / f"x{''.join(FORMATS[form].suffixes[:1])}")
    assert not list(tmp_path.iterdir())


# -- depth maps and camera paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "exr", "npz"])
def test_depth_maps_open_elsewhere(run: Run, tmp_path: Path, form: str) -> None:
    """PNG in OpenCV, EXR in OpenEXR, NPZ in numpy: the run's depth of every frame, 0 or NaN where there is none."""
    folder = exported(run, form, tmp_path / "maps")
    assert sorted(int(f.stem) for f in folder.glob(f"0*.{form}")) == run.frame_indices
    for index in run.frame_indices:
        ours, file = run.depth(index), folder / f"{index:06d}.{form}"
        if form == "png":
            note = json.loads((folder / "encoding.json").read_text())
            theirs = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
            assert theirs.dtype == np.uint16
            assert note["units"] == "m"
            found, known = theirs * note["scale"] + note["offset"], theirs > 0
        elif form == "exr":
            found = np.squeeze(pytest.importorskip("OpenEXR").File(str(file)).channels()["Z"].pixels)
            known = np.isfinite(found) & (found > 0)
        else:
            with np.load(file) as arrays:
                found, known = arrays["depth"], arrays["valid"]
        np.testing.assert_array_equal(known, ours.valid)
        np.testing.assert_allclose(found[known], ours.depth[known], rtol=1e-6)


def test_tum_opens_in_numpy_and_scipy(run: Run, path: Trajectory, tmp_path: Path) -> None:
    file = exported(run, "tum", tmp_path / "path.txt")
    rows = np.loadtxt(file)
    np.testing.assert_allclose(rows[:, 0], path.timestamps_s)
    np.testing.assert_allclose(rows[:, 1:4], path.centres, atol=1e-11)
    np.testing.assert_allclose(Rotation.from_quat(rows[:, 4:]).as_matrix(), path.T_world_camera[:, :3, :3], atol=1e-11)
    assert "units m; camera to world" in file.read_text()


# -- cameras, points and frames together ------------------------------------------------------------------------------


def same_model(folder: Path, run: Run, cloud: PointCloud, suffix: str) -> Any:
    """The model as pycolmap reads it: one camera, the run's poses and all of the cloud's points."""
    pycolmap = pytest.importorskip("pycolmap")
    model, trajectory = pycolmap.Reconstruction(str(folder)), run.trajectory()
    camera = run.camera()
    assert [c.params.tolist() for c in model.cameras.values()] == [[camera.fx, camera.fy, camera.cx, camera.cy]]
    assert [(c.width, c.height) for c in model.cameras.values()] == [(camera.width, camera.height)]
    images = sorted(model.images.values(), key=lambda image: image.name)
    assert [image.name for image in images] == [f"{i:06d}{suffix}" for i in run.frame_indices]
    for image, T in zip(images, trajectory.T_world_camera, strict=True):
        np.testing.assert_allclose(image.cam_from_world().inverse().matrix(), T[:3], atol=1e-9)
    points = [model.points3D[i + 1] for i in range(len(cloud))]
    np.testing.assert_array_equal(np.array([p.xyz for p in points], np.float32), cloud.points)
    np.testing.assert_array_equal([p.color for p in points], cloud.colors)
    return model


@pytest.mark.parametrize("form", ["colmap", "colmap-bin"])
def test_colmap_opens_in_pycolmap(run: Run, cloud: PointCloud, tmp_path: Path, form: str) -> None:
    folder = exported(run, form, tmp_path / "model")
    model = same_model(folder, run, cloud, ".png")
    assert model.compute_num_observations() > 1000
    for image in model.images.values():  # every observation is where the model itself projects the point
        seen = [p for p in image.points2D if p.has_point3D()]
        projected = [image.project_point(model.points3D[p.point3D_id].xyz) for p in seen]
        np.testing.assert_allclose([p.xy for p in seen], projected, atol=1e-3)
    for number, point in model.points3D.items():
        for element in point.track.elements:
            assert model.images[element.image_id].points2D[element.point2D_idx].point3D_id == number
    suffix = {"colmap": "txt", "colmap-bin": "bin"}[form]
    assert sorted(f.name for f in folder.iterdir()) == [f"{n}.{suffix}" for n in ("cameras", "images", "points3D")]


def test_opensfm_projects_points_where_they_were_seen(run: Run, cloud: PointCloud, tmp_path: Path) -> None:
    """Read with json and scipy alone, by the formulas of OpenSfM's documentation of its camera models."""
    folder = exported(run, "opensfm", tmp_path / "model")
    ((model,), camera) = (json.loads((folder / "reconstruction.json").read_text()), run.camera())
    (entry,) = model["cameras"].values()
    assert (entry["projection_type"], entry["width"], entry["height"]) == ("brown", camera.width, camera.height)
    assert list(model["shots"]) == [f"{i:06d}.png" for i in run.frame_indices]
    version, *lines = (folder / "tracks.csv").read_text().splitlines()
    assert version == "OPENSFM_TRACKS_VERSION_v2"
    assert len(lines) > 1000
    seen_by: dict[str, set[str]] = {}
    for line in lines:
        name, track, _, x, y, _, r, g, b, _, _ = line.split("\t")
        shot, point = model["shots"][name], model["points"][track]
        assert point["color"] == [int(r), int(g), int(b)]
        X, Y, Z = Rotation.from_rotvec(shot["rotation"]).apply(point["coordinates"]) + shot["translation"]
        assert float(x) == pytest.approx(entry["focal_x"] * X / Z + entry["c_x"], abs=1e-5)
        assert float(y) == pytest.approx(entry["focal_y"] * Y / Z + entry["c_y"], abs=1e-5)
        side = max(camera.width, camera.height)
        assert 0 <= float(x) * side + camera.width / 2 <= camera.width
        seen_by.setdefault(track, set()).add(name)
    assert seen_by.keys() == model["points"].keys()
    assert min(map(len, seen_by.values())) >= 2
    for track, point in model["points"].items():
        np.testing.assert_array_equal(np.array(point["coordinates"], np.float32), cloud.points[int(track)])


@given(
    st.lists(st.floats(-0.3, 0.3), min_size=4, max_size=4),
    st.tuples(st.integers(10, 4000), st.integers(10, 4000)),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=30, deadline=None)
def test_opensfm_comes_back_as_it_was(distortion: list[float], size: tuple[int, int], seed: int) -> None:
    """Any lens, size and path: poses and camera are those that were written."""
    rng = np.random.default_rng(seed)
    T = np.tile(np.eye(4), (3, 1, 1))
    T[:, :3, :3] = Rotation.random(3, random_state=rng).as_matrix()
    T[:, :3, 3] = rng.normal(0, 10, (3, 3))
    f, c = rng.uniform(0.3, 3, 2) * max(size), rng.uniform(0.2, 0.8, 2) * size
    camera = Intrinsics(*f, *c, *size, tuple(distortion) if any(distortion) else None)  # type: ignore[call-arg]
    cloud = blank_cloud(2, "arbitrary")
    cloud.points[:] = rng.normal(size=(2, 3))
    tracks = joined(np.arange(2), [(np.arange(2), rng.uniform(0, size, (2, 2))) for _ in range(3)])
    with TemporaryDirectory() as folder:
        write_opensfm(folder, Trajectory(np.arange(3.0), T), camera, ["0.png", "1.png", "2.png"], cloud, tracks)
        file = Path(folder) / "reconstruction.json"
        model, poses = read_opensfm(file), read_records(file)
    np.testing.assert_allclose(model.T_world_camera, T, atol=1e-9)
    np.testing.assert_array_equal(model.points, cloud.points)
    np.testing.assert_allclose(model.uv, tracks.uv, atol=1e-7 * max(size))
    assert poses.camera is not None
    for found in (poses.camera, model.cameras[0]):
        expected = (camera.fx, camera.fy, camera.cx, camera.cy, *(camera.distortion or ()))
        assert (found.fx, found.fy, found.cx, found.cy, *(found.distortion or ())) == pytest.approx(expected, abs=1e-9)


def frames_look_right(folder: Path, run: Run) -> None:
    """Every frame that has depth is there; the bright column stands where the clip has it."""
    files = sorted(folder.iterdir())
    assert [int(f.stem) for f in files] == run.frame_indices
    for file, index in zip(files, run.frame_indices, strict=True):
        picture = cv2.imread(str(file))
        assert picture.shape == (HEIGHT, WIDTH, 3)
        assert abs(int(picture[..., 2].mean(0).argmax()) - (4 + 7 * index % (WIDTH - 8)) - 1.5) <= 2


@pytest.mark.parametrize("form", ["colmap", "colmap-bin", "3dgs", "nerfstudio", "opensfm"])
def test_frames_come_at_the_clips_own_size(form: str, tmp_path: Path) -> None:
    """Depth maps of half the clip's size: cameras, frames and tracks are the clip's."""
    cv2, pycolmap = pytest.importorskip("cv2"), pytest.importorskip("pycolmap")
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (6, HEIGHT // 4, WIDTH // 4, 1))
    frames = [np.kron(grey, np.ones((8, 8, 3))).astype(np.uint8) for grey in blocks]
    write_video(tmp_path / "large.mp4", frames, 10)
    half = make_run(tmp_path / "run", str(tmp_path / "large.mp4"))
    half.update(settings={"video": {"max_side": WIDTH}})
    output = tmp_path / ("t.json" if form == "nerfstudio" else "out")
    exported(Run.open(half.path), form, output, images=form != "3dgs")
    folder = {"nerfstudio": tmp_path, "3dgs": output}.get(form, output)
    for index in half.frame_indices:
        picture = cv2.imread(str(folder / "images" / f"{index:06d}.jpg"))
        assert picture.shape == (2 * HEIGHT, 2 * WIDTH, 3)
        assert np.abs(picture[..., ::-1].astype(int) - frames[index]).mean() < 10
    small = half.camera()
    if form == "nerfstudio":
        said = json.loads(output.read_text())
        assert [said[k] for k in ("w", "h", "fl_x", "cx")] == [2 * WIDTH, 2 * HEIGHT, 2 * small.fx, 2 * small.cx]
        return
    if form == "opensfm":
        read = read_opensfm(output / "reconstruction.json")
        assert (read.cameras[0].width, read.cameras[0].fx) == (2 * WIDTH, pytest.approx(2 * small.fx))
        assert read.uv[:, 0].max() > WIDTH
        return
    model = pycolmap.Reconstruction(str(output / "sparse" / "0" if form == "3dgs" else output))
    (camera,) = model.cameras.values()
    assert camera.params == pytest.approx([2 * small.fx, 2 * small.fy, 2 * small.cx, 2 * small.cy])
    for point in list(model.points3D.values())[:50]:
        for element in point.track.elements:
            image = model.images[element.image_id]
            seen = image.points2D[element.point2D_idx].xy
            np.testing.assert_allclose(camera.img_from_cam(image.cam_from_world() * point.xyz), seen, atol=0.01)


def test_splatting_finds_frames_cameras_and_points(run: Run, cloud: PointCloud, tmp_path: Path) -> None:
    folder = exported(run, "3dgs", tmp_path / "scene")
    same_model(folder / "sparse" / "0", run, cloud, ".jpg")
    frames_look_right(folder / "images", run)


def test_nerfstudio_finds_frames_and_points(run: Run, cloud: PointCloud, tmp_path: Path) -> None:
    o3d = pytest.importorskip("open3d")
    file = exported(run, "nerfstudio", tmp_path / "transforms.json", images=True)
    said = json.loads(file.read_text())
    assert [frame["file_path"] for frame in said["frames"]] == [f"images/{i:06d}.jpg" for i in run.frame_indices]
    frames_look_right(tmp_path / "images", run)
    points = o3d.io.read_point_cloud(str(tmp_path / said["ply_file_path"]))
    np.testing.assert_array_equal(np.asarray(points.points, np.float32), cloud.points)
    # A point before the first camera must lie on its negative z axis, where OpenGL cameras look.
    T_world_camera = np.array(said["frames"][0]["transform_matrix"])
    in_camera = (np.linalg.inv(T_world_camera) @ [*cloud.points[len(cloud) // 2], 1])[:3]
    assert in_camera[2] < 0


def test_nothing_is_left_when_the_clip_is_gone(run: Run, tmp_path: Path, export: Command) -> None:
    moved = make_run(tmp_path / "run", tmp_path / "gone.mp4")
    code, _, said = export(moved.path, "--format", "3dgs", "-o", tmp_path / "scene", "-q")
    assert (code, said.count("\n")) == (3, 1)
    assert "gone.mp4" in said
    code, _, said = export(run.path, "--format", "ply", "-o", tmp_path / "c.ply", "--images")
    assert (code, said.count("\n")) == (2, 1)
    assert "no place for images" in said
    assert [f.name for f in tmp_path.iterdir()] == ["run"]


def test_a_point_is_seen_where_the_depth_map_agrees() -> None:
    """By hand: one on the wall, one before it, one behind it, one beside the image, one behind the camera."""
    camera = Intrinsics(100.0, 100.0, 32.0, 24.0, 64, 48)
    depth = DepthMap(np.full((48, 64), 2, np.float32), np.ones((48, 64), bool))
    points = np.array([[0.1, 0.2, 2.01], [0, 0, 1.8], [0, 0, 2.2], [5, 0, 2], [0, 0, -2]])
    rows, uv = seen_in(depth, points, np.eye(4), camera)
    assert rows.tolist() == [0]
    np.testing.assert_allclose(uv, [[32 + 10 / 2.01, 24 + 20 / 2.01]])
    empty = seen_in(replace(depth, valid=~depth.valid), points, np.eye(4), camera)
    assert not len(empty[0])
    tracks = joined(np.array([3, 7]), [(np.array([0, 1]), np.ones((2, 2))), (np.array([1]), np.zeros((1, 2)))])
    assert list(tracks.by_point()) == [(7, [(0, 0), (1, 0)])]  # row 3 was seen once


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-6, 6))
def test_binary_models_keep_any_pose_and_scale(seed: int, exponent: float) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    rng = np.random.default_rng(seed)
    T = np.tile(np.eye(4), (4, 1, 1))
    T[:, :3, :3] = Rotation.random(4, rng=rng).as_matrix()
    T[:, :3, 3] = rng.normal(size=(4, 3)) * 10**exponent
    camera = Intrinsics(500.5, 501.5, 320.25, 240.75, 640, 480, (0.1, -0.05, 1e-3, -2e-3))
    names = ["a b.png", "ü.png", "c.png", "d.png"]
    with TemporaryDirectory() as folder:
        write_colmap_binary(folder, Trajectory(np.arange(4.0), T), camera, names, blank_cloud(0, "m"))
        model = pycolmap.Reconstruction(folder)
    assert model.cameras[1].model.name == "OPENCV"
    assert model.cameras[1].params.tolist() == [500.5, 501.5, 320.25, 240.75, 0.1, -0.05, 1e-3, -2e-3]
    for i, name in enumerate(names):
        assert model.images[i + 1].name == name
        found = model.images[i + 1].cam_from_world().inverse().matrix()
        np.testing.assert_allclose(found, T[i, :3], atol=1e-12 + 1e-12 * 10**exponent, rtol=1e-9)


def test_frames_are_straightened_to_the_pinhole() -> None:
    """A spot drawn where the lens shows a point must end up where the pinhole shows it."""
    camera = Intrinsics(70.0, 72.0, 63.0, 49.0, 128, 96, (0.2, -0.05, 0.004, -0.003))
    pinhole, straighten = pinhole_of(camera)
    assert pinhole.distortion is None
    for x, y in ((-0.5, -0.4), (0.0, 0.1), (0.55, 0.3)):
        (u, v), (u_straight, v_straight) = (project(np.array([[x, y, 1.0]]), c)[0] for c in (camera, pinhole))
        rows, columns = np.mgrid[:96, :128] + 0.5
        spot = (255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 8)).astype(np.uint8)
        found = straighten(np.dstack([spot] * 3))[..., 0].astype(float)
        assert (found * columns).sum() / found.sum() == pytest.approx(u_straight, abs=0.3)
        assert (found * rows).sum() / found.sum() == pytest.approx(v_straight, abs=0.3)
    plain, same = pinhole_of(replace(camera, distortion=(0.0, 0.0, 0.0, 0.0)))
    assert plain.distortion is None
    assert same(spot) is spot


def test_thinning_is_repeatable_and_keeps_the_order(cloud: PointCloud) -> None:
    few = thinned(cloud, 100)
    assert len(few) == 100
    rows = [int(np.flatnonzero((cloud.points == p).all(1))[0]) for p in few.points]
    assert rows == sorted(set(rows))
    assert np.array_equal(few.points, thinned(cloud, 100).points)
    assert thinned(cloud, len(cloud)) is cloud


# -- along the clip ---------------------------------------------------------------------------------------------------


def decoded(file: Path) -> list[np.ndarray]:
    """The frames of a video as OpenCV reads them, RGB."""
    capture, frames = cv2.VideoCapture(str(file)), []
    while (read := capture.read())[0]:
        frames.append(read[1][..., ::-1])
    capture.release()
    return frames


def test_the_depth_video_has_warm_boxes_and_cold_walls(run: Run, tmp_path: Path) -> None:
    frames = decoded(exported(run, "video", tmp_path / "depth.mp4"))
    assert len(frames) == len(run.frame_indices)
    assert cv2.VideoCapture(str(tmp_path / "depth.mp4")).get(cv2.CAP_PROP_FPS) == pytest.approx(5)  # 0.2 s apart
    for frame in frames:
        assert frame.shape == (HEIGHT, WIDTH, 3)
        box, wall = frame[18:30, 26:38].mean((0, 1)), frame[36:46, 2:20].mean((0, 1))
        assert box[0] > box[2] + 50, "near is red"
        assert wall[2] > wall[0] + 50, "far is blue"
    beside = decoded(exported(run, "video", tmp_path / "beside.mp4", images=True))
    for frame, alone, index in zip(beside, frames, run.frame_indices, strict=True):
        assert frame.shape == (HEIGHT, 2 * WIDTH, 3)
        assert np.abs(frame[2:, WIDTH + 2 :].astype(int) - alone[2:, 2:]).mean() < 8
        assert abs(int(frame[:, :WIDTH, 0].mean(0).argmax()) - (4 + 7 * index % (WIDTH - 8)) - 1.5) <= 2


def test_rerun_reads_its_recording(run: Run, cloud: PointCloud, path: Trajectory, tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    from rerun.chunk import RrdReader

    file = exported(run, "rerun", tmp_path / "scene.rrd", images=True)
    columns: dict[tuple[str, str], list] = {}
    for chunk in RrdReader(file).stream().to_chunks():
        batch = chunk.to_record_batch()
        for name in batch.schema.names:
            columns.setdefault((chunk.entity_path, name), []).extend(batch.column(name).to_pylist())
    (points,) = columns["/world/cloud", "Points3D:positions"]
    np.testing.assert_array_equal(np.array(points, np.float32), cloud.points)
    (colors,) = columns["/world/cloud", "Points3D:colors"]
    rgb = np.array(colors, np.uint32)[:, None] >> np.array([24, 16, 8], np.uint32) & 255
    np.testing.assert_array_equal(rgb, cloud.colors)
    translations = np.squeeze(columns["/world/camera", "Transform3D:translation"])
    np.testing.assert_allclose(translations, path.centres, atol=1e-6)
    assert columns["/world/camera", "frame"] == run.frame_indices
    assert len(columns["/world/camera/picture", "EncodedImage:blob"]) == len(run.frame_indices)
    buffers = columns["/world/camera/depth", "DepthImage:buffer"]
    meters = np.squeeze(columns["/world/camera/depth", "DepthImage:meter"])
    for buffer, meter, index in zip(buffers, meters, run.frame_indices, strict=True):
        values = np.frombuffer(np.array(buffer[0], np.uint8).tobytes(), np.uint16).reshape(HEIGHT, WIDTH)
        ours = run.depth(index)
        np.testing.assert_array_equal(values > 0, ours.valid)
        np.testing.assert_allclose(values[ours.valid] / meter, ours.depth[ours.valid], atol=1e-4)
    (note,) = columns["/about", "TextDocument:text"]
    assert "units m" in note[0]


def test_viser_holds_the_cloud_and_the_cameras(
    run: Run, cloud: PointCloud, path: Trajectory, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file is taken apart by hand: zstd around messages in msgpack and the arrays they point to."""
    pytest.importorskip("viser")
    import msgspec
    import zstandard

    packed = exported(run, "viser", tmp_path / "scene.viser", images=True).read_bytes()
    assert capfd.readouterr() == ("", "")
    content = zstandard.ZstdDecompressor().decompress(packed[8:], int.from_bytes(packed[:8], "little"))
    said = msgspec.msgpack.decode(content[8 : 8 + int.from_bytes(content[:8], "little")])
    made = {m["name"]: m["props"] for _, m in said["messages"] if "props" in m}
    assert "/cloud (units m)" in made
    assert cloud.points.tobytes() in content
    assert cloud.colors.tobytes() in content
    cameras = [name for name in made if name.startswith("/cameras/")]
    assert cameras == [f"/cameras/{i:06d}" for i in run.frame_indices]
    assert made[cameras[0]]["fov"] == pytest.approx(2 * np.arctan(HEIGHT / 2 / run.camera().fy))
    places = {m["name"]: m["position"] for _, m in said["messages"] if "position" in m}
    np.testing.assert_allclose([places.get(name, (0, 0, 0)) for name in cameras], path.centres, atol=1e-6)
    page = exported(run, "viser", tmp_path / "scene.html").read_text()
    assert "__VISER_EMBED_DATA__" in page
