"""Products on disk: what is written reads back, and other programs' readers agree."""

from __future__ import annotations

import errno
import json
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marigold3d.atomic import atomic_path
from marigold3d.errors import InputError, OutputError
from marigold3d.export import ply
from marigold3d.export.depth_maps import (
    DepthEncoding,
    colorize,
    read_depth_npz,
    read_depth_png,
    read_encoding,
    write_depth_exr,
    write_depth_npz,
    write_depth_png,
    write_encoding,
    write_sigma_png,
)
from marigold3d.export.glb import write_glb, write_mesh_glb
from marigold3d.export.meshes import read_glb, write_las
from marigold3d.export.ply import read_ply, write_ply
from marigold3d.export.trajectories import write_colmap, write_transforms
from marigold3d.types import DepthMap, Intrinsics, PointCloud, Trajectory, TriangleMesh, Units

COLUMNS = ("points", "colors", "normals", "sigma", "observations", "frame_index")


def cloud_of(n: int, units: Units = "m") -> PointCloud:
    rng = np.random.default_rng(n)
    return PointCloud(
        points=rng.normal(size=(n, 3)).astype(np.float32) * 3,
        colors=rng.integers(0, 256, (n, 3), np.uint8),
        normals=rng.normal(size=(n, 3)).astype(np.float32),
        sigma=rng.random(n).astype(np.float32),
        observations=rng.integers(1, 90, n).astype(np.int32),
        frame_index=rng.integers(0, 9000, n).astype(np.int32),
        units=units,
    )


def depth_of(height: int = 12, width: int = 17) -> DepthMap:
    rng = np.random.default_rng(height)
    depth = rng.uniform(0.5, 9.0, (height, width)).astype(np.float32)
    return DepthMap(depth, rng.random((height, width)) > 0.3, depth * np.float32(0.02))


# -- PLY --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 1000])
@pytest.mark.parametrize("units", ["m", "arbitrary"])
def test_ply_round_trip_is_exact(tmp_path: Path, n: int, units: Units, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ply, "CHUNK_POINTS", 300)
    cloud = cloud_of(n, units)
    write_ply(tmp_path / "c.ply", cloud)
    back = read_ply(tmp_path / "c.ply")
    assert back.units == units
    for name in COLUMNS:
        written, found = getattr(cloud, name), getattr(back, name)
        assert found.dtype == written.dtype
        assert np.array_equal(found, written), name


def test_ply_states_its_units_and_axes(tmp_path: Path) -> None:
    write_ply(tmp_path / "c.ply", cloud_of(3))
    header = (tmp_path / "c.ply").read_bytes().split(b"end_header")[0].decode()
    assert "comment units m\n" in header
    assert "x right, y down, z forward" in header
    assert "comment marigold3d " in header


def test_ply_agrees_with_other_readers(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    cloud = cloud_of(50)
    write_ply(tmp_path / "c.ply", cloud)
    theirs = trimesh.load(tmp_path / "c.ply")
    np.testing.assert_array_equal(np.asarray(theirs.vertices, np.float32), cloud.points)
    np.testing.assert_array_equal(theirs.colors[:, :3], cloud.colors)


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_foreign_ply(tmp_path: Path, encoding: str) -> None:
    header = (
        f"ply\nformat {encoding} 1.0\ncomment made elsewhere\nelement vertex 2\nproperty double x\nproperty double y\n"
        "property float64 z\nproperty uchar r\nproperty uchar g\nproperty uint8 b\nproperty float quality\n"
        "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    )
    rows = [(1.0, 2.0, 3.0, 10, 20, 30, 0.5), (4.0, 5.0, 6.0, 40, 50, 60, 0.25)]
    if encoding == "ascii":
        body = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode() + b"3 0 1 1\n"
    else:
        order = "<" if "little" in encoding else ">"
        layout = [(n, order + "f8") for n in "xyz"] + [(n, "u1") for n in "rgb"] + [("q", order + "f4")]
        body = np.array(rows, layout).tobytes() + b"\x03" + bytes(12)
    (tmp_path / "c.ply").write_bytes(header.encode() + body)
    cloud = read_ply(tmp_path / "c.ply")
    assert cloud.points.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert cloud.colors.tolist() == [[10, 20, 30], [40, 50, 60]]
    assert cloud.units == "arbitrary"
    assert np.isnan(cloud.sigma).all()
    assert cloud.frame_index.tolist() == [-1, -1]
    assert not cloud.normals.any()


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "not a PLY"),
        (b"solid stl", "not a PLY"),
        (b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\n", "header"),
        (b"ply\nelement vertex 1\nproperty float x\nend_header\n", "header"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n", "x, y, z"),
        (b"ply\nformat ascii 1.0\nelement vertex many\nend_header\n", "damaged"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\n" + b"".join(b"property float %c\n" % c for c in b"xyz"), "header"),
        (
            b"ply\nformat ascii 1.0\nelement vertex 1\n"
            + b"".join(b"property float %c\n" % c for c in b"xyz")
            + b"end_header\n1 2 z\n",
            "damaged",
        ),
        (
            b"ply\nformat ascii 1.0\nelement vertex 2\n"
            + b"".join(b"property float %c\n" % c for c in b"xyz")
            + b"end_header\n1 2 3\n",
            "ends after 1 of 2",
        ),
    ],
)
def test_damaged_ply(tmp_path: Path, content: bytes, hint: str) -> None:
    (tmp_path / "c.ply").write_bytes(content)
    with pytest.raises(InputError, match=rf"c\.ply: .*{hint}"):
        read_ply(tmp_path / "c.ply")


def test_truncated_and_missing_ply(tmp_path: Path) -> None:
    write_ply(tmp_path / "c.ply", cloud_of(100))
    whole = (tmp_path / "c.ply").read_bytes()
    (tmp_path / "c.ply").write_bytes(whole[: len(whole) - 1000])
    with pytest.raises(InputError, match=r"ends after \d+ of 100"):
        read_ply(tmp_path / "c.ply")
    with pytest.raises(InputError, match="no such file"):
        read_ply(tmp_path / "absent.ply")


def test_writing_ply_needs_no_second_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ply, "CHUNK_POINTS", 1 << 14)
    cloud = cloud_of(400_000)
    tracemalloc.start()
    write_ply(tmp_path / "c.ply", cloud)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.2 * len(cloud) * ply.VERTEX.itemsize


# -- depth maps -------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(near=st.floats(1e-3, 1e3), ratio=st.floats(1.01, 1e3))
def test_encoding_error_is_half_a_step(near: float, ratio: float) -> None:
    encoding = DepthEncoding.for_range(near, near * ratio, "m")
    depth = np.linspace(near, near * ratio, 999).astype(np.float32).clip(near, near * ratio).reshape(27, 37)
    inside = (depth >= near) & (depth <= near * ratio)
    back = encoding.decode(encoding.encode(DepthMap(depth, inside)))
    assert np.array_equal(back.valid, inside)
    error = np.abs(back.depth.astype(float) - depth)[inside]
    assert np.all(error <= 0.5 * encoding.scale + 2e-7 * near * ratio)


def test_out_of_range_depth_becomes_invalid() -> None:
    depth = np.array([[0.5, 1.0, 5.0, 9.0, 9.5, 70.0]], np.float32)
    valid = np.array([[True, True, False, True, True, True]])
    encoding = DepthEncoding.for_range(1.0, 9.0, "m")
    assert encoding.decode(encoding.encode(DepthMap(depth, valid))).valid.tolist() == [[0, 1, 0, 1, 0, 0]]
    assert encoding.encode(DepthMap(np.full((1, 1), np.nan, np.float32), np.zeros((1, 1), bool))) == 0
    millimetres = DepthEncoding.millimetres().encode(DepthMap(depth, valid))
    assert millimetres.tolist() == [[500, 1000, 0, 9000, 9500, 0]]


def test_encoding_refuses_nonsense(tmp_path: Path) -> None:
    for near, far in ((0, 1), (2, 1), (1, np.inf), (1, np.nan)):
        with pytest.raises(InputError):
            DepthEncoding.for_range(near, far, "m")
    with pytest.raises(InputError):
        DepthEncoding(0.0)
    with pytest.raises(InputError):
        DepthEncoding(1.0, 0.0, "feet")  # type: ignore[arg-type]


@given(st.floats(1e-3, 1e3), st.floats(1e-4, 1e3))
def test_a_sigma_is_exact_to_half_a_step_and_never_lost(typical: float, share: float) -> None:
    """One per cent of the typical depth to better than 1 %; what is too large or too small is the nearest there is."""
    encoding = DepthEncoding.for_sigma(typical, "m")
    assert encoding.scale / 2 <= 0.01 * (0.01 * typical)
    sigma = np.float32(share * typical)
    valid = np.array([[True, True], [True, False]])
    depth = DepthMap(np.full((2, 2), typical, np.float32), valid, np.full((2, 2), sigma))
    with TemporaryDirectory() as folder:
        write_sigma_png(Path(folder) / "s.png", depth, encoding)
        back = read_depth_png(Path(folder) / "s.png", encoding)
    np.testing.assert_array_equal(back.valid, depth.valid)
    held = np.clip(sigma, encoding.scale, 65535 * encoding.scale)
    np.testing.assert_allclose(back.depth[back.valid], held, rtol=1e-6, atol=0.5001 * encoding.scale)


def test_an_unknown_sigma_is_the_largest(tmp_path: Path) -> None:
    encoding = DepthEncoding.for_sigma(1.0, "m")
    sigma = np.array([[np.nan, np.inf, 0.02]], np.float32)
    write_sigma_png(tmp_path / "s.png", DepthMap(np.ones((1, 3), np.float32), np.ones((1, 3), bool), sigma), encoding)
    back = read_depth_png(tmp_path / "s.png", encoding)
    np.testing.assert_allclose(back.depth, [[65535e-4, 65535e-4, 0.02]], rtol=1e-5)


def test_encoding_file_round_trip(tmp_path: Path) -> None:
    encoding = DepthEncoding.for_range(0.1, 33.3, "arbitrary")
    write_encoding(tmp_path / "encoding.json", encoding)
    assert read_encoding(tmp_path / "encoding.json") == encoding
    for content in ("{", "{}", "[]", '{"scale": 0, "offset": 0, "units": "m"}'):
        (tmp_path / "encoding.json").write_text(content)
        with pytest.raises(InputError):
            read_encoding(tmp_path / "encoding.json")
    with pytest.raises(InputError, match="no such file"):
        read_encoding(tmp_path / "absent.json")


def test_png_round_trip(tmp_path: Path) -> None:
    depth, encoding = depth_of(), DepthEncoding.for_range(0.5, 9.0, "m")
    write_depth_png(tmp_path / "000001.png", depth, encoding)
    back = read_depth_png(tmp_path / "000001.png", encoding)
    assert np.array_equal(back.valid, depth.valid)
    np.testing.assert_allclose(back.depth[back.valid], depth.depth[depth.valid], atol=encoding.scale)


def test_png_of_another_kind(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    (tmp_path / "text.png").write_text("x")
    for name, hint in (("rgb.png", "16-bit"), ("text.png", "not a readable"), ("absent.png", "no such")):
        with pytest.raises(InputError, match=hint):
            read_depth_png(tmp_path / name, DepthEncoding.millimetres())


def test_npz_round_trip_is_exact(tmp_path: Path) -> None:
    for depth in (depth_of(), DepthMap(depth_of().depth, depth_of().valid)):
        write_depth_npz(tmp_path / "d.npz", depth, "m")
        back = read_depth_npz(tmp_path / "d.npz")
        assert np.array_equal(back.depth, depth.depth)
        assert np.array_equal(back.valid, depth.valid)
        assert (back.sigma is None) == (depth.sigma is None)
    (tmp_path / "d.npz").write_text("x")
    with pytest.raises(InputError):
        read_depth_npz(tmp_path / "d.npz")


def test_exr_is_exact(tmp_path: Path) -> None:
    openexr = pytest.importorskip("OpenEXR")
    depth = depth_of()
    write_depth_exr(tmp_path / "d.exr", depth, "m")
    with openexr.File(str(tmp_path / "d.exr"), separate_channels=True) as file:
        z, sigma = file.channels()["Z"].pixels, file.channels()["sigma"].pixels
    assert z.dtype == np.float32
    assert np.array_equal(z, np.where(depth.valid, depth.depth, 0))
    assert np.array_equal(sigma, depth.sigma)


def test_colours_run_from_warm_to_cold() -> None:
    depth = np.geomspace(1, 10, 50, dtype=np.float32)[None]
    valid = np.ones_like(depth, bool)
    valid[0, 20] = False
    rgb = colorize(depth, valid).astype(int)[0]
    assert rgb.shape == (50, 3)
    assert rgb[0, 0] > rgb[0, 2]
    assert rgb[-1, 2] > rgb[-1, 0]
    assert rgb[20].tolist() == [0, 0, 0]
    assert np.abs(np.diff(rgb[21:], axis=0)).max() < 30
    fixed = colorize(depth[:, :10], valid[:, :10], (1.0, 10.0))
    assert np.array_equal(fixed, colorize(depth, valid, (1.0, 10.0))[:, :10])


def test_colours_of_nothing_and_of_one_depth() -> None:
    depth = np.full((3, 4), 2, np.float32)
    assert not colorize(depth, np.zeros((3, 4), bool)).any()
    assert colorize(depth, np.ones((3, 4), bool)).shape == (3, 4, 3)
    assert colorize(np.full((3, 4), np.nan, np.float32), np.zeros((3, 4), bool)).sum() == 0


# -- other programs ---------------------------------------------------------------------------------------------------


def test_glb_is_y_up(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    cloud = cloud_of(40)
    write_glb(tmp_path / "c.glb", cloud)
    (theirs,) = trimesh.load(tmp_path / "c.glb").geometry.values()
    np.testing.assert_allclose(theirs.vertices, cloud.points * [1, -1, -1], rtol=1e-6)
    np.testing.assert_array_equal(theirs.colors[:, :3], cloud.colors)


def test_mesh_glb_keeps_vertices_and_faces(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    vertices = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]], np.float32)
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    normals = np.tile(np.float32([0, 0, -1]), (4, 1))
    faces = np.array([[0, 2, 1], [1, 2, 3]], np.int32)
    write_mesh_glb(tmp_path / "m.glb", TriangleMesh(vertices, faces, normals, colors, "m"))
    (theirs,) = trimesh.load(tmp_path / "m.glb", process=False).geometry.values()
    np.testing.assert_allclose(theirs.vertices, vertices * [1, -1, -1])
    expected = np.select([colors == 255, colors == 9], [1.0, 9 / 255 / 12.92])  # light: IEC 61966-2-1
    np.testing.assert_allclose(theirs.visual.vertex_attributes["color"], expected, rtol=1e-6)
    np.testing.assert_array_equal(theirs.faces, faces)
    np.testing.assert_allclose(theirs.face_normals, [[0, 0, 1]] * 2, atol=1e-6)  # towards the cameras, as before


@pytest.mark.parametrize("suffix", ["las", "laz"])
def test_las_keeps_everything(tmp_path: Path, suffix: str) -> None:
    laspy = pytest.importorskip("laspy")
    cloud = cloud_of(60, "arbitrary")
    write_las(tmp_path / f"c.{suffix}", cloud)
    theirs = laspy.read(tmp_path / f"c.{suffix}")
    np.testing.assert_allclose(theirs.xyz, cloud.points, atol=1e-7)
    np.testing.assert_array_equal(np.stack([theirs.red, theirs.green, theirs.blue], 1) // 257, cloud.colors)
    np.testing.assert_array_equal(theirs["sigma"], cloud.sigma)
    np.testing.assert_array_equal(theirs["observations"], cloud.observations)
    np.testing.assert_array_equal(theirs["frame"], cloud.frame_index)
    assert theirs.header.system_identifier == "units arbitrary"


def test_las_of_one_point(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    write_las(tmp_path / "c.las", cloud_of(1))
    np.testing.assert_allclose(laspy.read(tmp_path / "c.las").xyz, cloud_of(1).points, atol=1e-6)


@pytest.mark.parametrize("write", [write_glb, write_las])
def test_an_empty_cloud_is_refused(tmp_path: Path, write: object) -> None:
    with pytest.raises(InputError, match="empty"):
        write(tmp_path / "c.glb", cloud_of(0))  # type: ignore[operator]


def test_a_missing_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("trimesh", "laspy", "OpenEXR"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    depth = depth_of()
    for write in (
        lambda: read_glb(__file__),
        lambda: write_las(tmp_path / "c.las", cloud_of(2)),
        lambda: write_depth_exr(tmp_path / "d.exr", depth, "m"),
    ):
        with pytest.raises(OutputError, match=r"pip install 'marigold3d\[export\]'"):
            write()


def test_colmap_points_are_those_of_the_cloud(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    cloud = cloud_of(30)
    trajectory = Trajectory(np.array([0.0]), np.eye(4)[None])
    write_colmap(tmp_path, trajectory, Intrinsics.from_fov(60, 64, 48), ["a.png"], "m", cloud)
    theirs = pycolmap.Reconstruction(str(tmp_path))
    points = np.array([theirs.points3D[i + 1].xyz for i in range(30)])
    np.testing.assert_allclose(points, cloud.points, rtol=1e-5, atol=1e-6)
    assert theirs.images[1].name == "a.png"
    assert theirs.cameras[1].model.name == "PINHOLE"
    with pytest.raises(InputError, match="spaces"):
        write_colmap(tmp_path, trajectory, Intrinsics.from_fov(60, 64, 48), ["a b.png"], "m")


def test_names_and_poses_must_agree_in_number(tmp_path: Path) -> None:
    trajectory = Trajectory(np.array([0.0]), np.eye(4)[None])
    with pytest.raises(InputError, match="1 poses need as many image names, got 2"):
        write_transforms(tmp_path / "t.json", trajectory, Intrinsics.from_fov(60, 64, 48), ["a", "b"], "m")


def test_transforms_are_plain_json(tmp_path: Path) -> None:
    trajectory = Trajectory(np.array([0.0]), np.eye(4)[None])
    write_transforms(tmp_path / "t.json", trajectory, Intrinsics.from_fov(60, 64, 48), ["a.png"], "m")
    scene = json.loads((tmp_path / "t.json").read_text())
    assert scene["frames"][0]["transform_matrix"] == np.diag([1.0, -1, -1, 1]).tolist()
    assert (scene["w"], scene["h"], scene["k1"], scene["units"]) == (64, 48, 0, "m")


# -- atomic writes ----------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_write_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".txt"
        assert not target.exists()
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_system_errors_become_one_line(tmp_path: Path, number: int) -> None:
    def fail() -> None:
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.touch()
            raise OSError(number, "system text")

    with pytest.raises(OutputError, match=r"a\.txt") as caught:
        fail()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
