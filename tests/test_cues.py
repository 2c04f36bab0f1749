"""What a user knows as cues: every format tells the same, conventions hold on real models, bad files say what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from marigold3d.camera import pixel_grid, project, unproject
from marigold3d.cues import ClipFrames, ControlPoints, georeference, metric_scale, read_cues
from marigold3d.cues.geodesy import to_ecef, to_enu
from marigold3d.cues.tally import Tally
from marigold3d.cues.triangulate import triangulate
from marigold3d.errors import GeometryError, InputError
from marigold3d.export.depth_maps import write_depth_exr, write_depth_npz
from marigold3d.export.ply import write_ply
from marigold3d.poses.colmap_points import read_observed_colmap
from marigold3d.poses.opensfm_files import read_opensfm
from marigold3d.rigid import Similarity, inverse, transform
from marigold3d.types import DepthMap, Intrinsics, PointCloud, SparseCues
from tests import synthetic
from tests.data_paths import data_path

CAMERA = synthetic.camera()  # 96 x 72
POSES = synthetic.walk(8, length=0.6)
INDICES = np.arange(0, 40, 5)  # every fifth frame of the source is used
SIZE = (192, 144)  # of the clip's own frames: twice the depth maps


def clip_of(camera: Intrinsics = CAMERA, size: tuple[int, int] = SIZE, names: list[str] | None = None) -> ClipFrames:
    return ClipFrames(INDICES, INDICES / 10, size, camera, names)


CLIP = clip_of()
IDENTITY = np.eye(4)


def cues_of(source: object, position: int, T: np.ndarray = IDENTITY) -> SparseCues:
    return source.cues(position, T)[0]  # type: ignore[attr-defined]


# -- depth maps -------------------------------------------------------------------------------------------------------


def a_depth_map() -> np.ndarray:
    """(36, 48) metres on whole millimetres, so that every format holds it exactly; a corner is unmeasured."""
    depth = np.round(synthetic.depth_of(CAMERA.scaled_to(48, 36), POSES[0]), 3)
    depth[:5, :7] = 0
    return depth


def as_png(file: Path, depth: np.ndarray) -> Path:
    Image.fromarray(np.round(depth * 1000).astype(np.uint16)).save(file.with_suffix(".png"))
    return file.with_suffix(".png")


def as_npy(file: Path, depth: np.ndarray) -> Path:
    np.save(file.with_suffix(".npy"), np.where(depth > 0, depth, np.nan))
    return file.with_suffix(".npy")


def as_npz(file: Path, depth: np.ndarray) -> Path:
    np.savez(file.with_suffix(".npz"), depth=np.where(depth > 0, depth, np.inf))
    return file.with_suffix(".npz")


def as_exr(file: Path, depth: np.ndarray) -> Path:
    pytest.importorskip("OpenEXR")
    write_depth_exr(file.with_suffix(".exr"), DepthMap(depth, depth > 0), "m")
    return file.with_suffix(".exr")


def as_our_npz(file: Path, depth: np.ndarray) -> Path:
    write_depth_npz(file.with_suffix(".npz"), DepthMap(depth, depth > 0), "m")
    return file.with_suffix(".npz")


WRITERS = [as_png, as_npy, as_npz, as_exr, as_our_npz]


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_of_a_depth_map_gives_the_same_cues(tmp_path: Path, write: Callable[..., Path]) -> None:
    depth = a_depth_map()
    file = write(tmp_path / "000010", depth)
    folder, single = read_cues(str(tmp_path), CLIP), read_cues(f"{file}@10", CLIP)
    for source in (folder, single):
        cues = cues_of(source, 2)
        assert source.units == "m"
        assert source.count == len(cues) == (depth > 0).sum()
        np.testing.assert_allclose(cues.depth, depth[depth > 0], atol=1e-6)
        np.testing.assert_allclose(cues.uv, pixel_grid(48, 36)[depth > 0] * 2)
        np.testing.assert_allclose(cues.sigma, 0.01 * cues.depth + 0.005)
        assert not len(cues_of(source, 1))


def test_a_coarse_map_lies_on_the_scene() -> None:
    """Pixel centres, not corners, are scaled: a map of a quarter of the width agrees with the full one at its cues."""
    fine = CAMERA.scaled_to(384, 288)
    exact = synthetic.depth_of(fine, POSES[0])
    coarse_uv = pixel_grid(24, 18) * 16
    coarse = synthetic.depth_of(CAMERA.scaled_to(24, 18), POSES[0])
    at = np.floor(coarse_uv).astype(int)
    assert np.median(np.abs(exact[at[..., 1], at[..., 0]] / coarse - 1)) < 0.01


def test_dense_maps_are_thinned_on_a_grid(tmp_path: Path) -> None:
    np.save(tmp_path / "5.npy", np.full((480, 640), 2.0))
    source = read_cues(str(tmp_path), CLIP)
    cues = cues_of(source, 1)
    assert 4000 < len(cues) <= 5000
    assert source.tally.total == 480 * 640
    assert source.tally.kept == len(cues)
    assert "thinned to a regular grid" in str(source.tally)
    assert np.ptp(cues.uv, axis=0) == pytest.approx((96, 72), rel=0.05)


def test_maps_named_after_images(tmp_path: Path) -> None:
    names = [f"IMG_{90 + i}.jpg" for i in range(len(INDICES))]
    as_npy(tmp_path / "IMG_93", a_depth_map())
    assert len(cues_of(read_cues(str(tmp_path), clip_of(names=names)), 3))


def test_points_of_frame_cues_are_numbered_once(tmp_path: Path) -> None:
    as_npy(tmp_path / "0", a_depth_map())
    as_npy(tmp_path / "5", a_depth_map())
    source = read_cues(str(tmp_path), CLIP)
    ids = np.concatenate([source.cues(p, IDENTITY)[1] for p in range(2)])
    assert sorted(ids.tolist()) == list(range(source.count))


# -- tables -----------------------------------------------------------------------------------------------------------

ROWS = [(10.0, 20.0, 1.5, 0, 0.02), (100.0, 40.0, 2.5, 5, 0.03), (30.0, 50.0, 2.0, 5, 0.01)]  # u v depth frame sigma


@pytest.mark.parametrize("delimiter", [",", ";", "\t", " ", "   ", ", "])
def test_delimiters(tmp_path: Path, delimiter: str) -> None:
    lines = [delimiter.join(map(str, row)) for row in [("u", "v", "depth", "frame", "sigma"), *ROWS]]
    (tmp_path / "t.csv").write_text("# " + "\n".join(lines) + "\n\n")
    source = read_cues(str(tmp_path / "t.csv"), CLIP)
    assert source.count == 3
    np.testing.assert_allclose(cues_of(source, 1).uv, [[50, 20], [15, 25]])  # half the size
    np.testing.assert_allclose(cues_of(source, 1).depth, [2.5, 2.0])
    np.testing.assert_allclose(cues_of(source, 1).sigma, [0.03, 0.01])
    assert str(source.tally) == "all 3 cues used"


def test_a_table_as_arrays_and_with_ids(tmp_path: Path) -> None:
    u, v, depth, frame, _ = np.array(ROWS).T
    np.savez(tmp_path / "t.npz", u=u, v=v, depth=depth, frame=frame.astype(int), id=np.array([7, 7, 9]))
    source = read_cues(str(tmp_path / "t.npz"), CLIP, sigma=0.1, units="arbitrary")
    assert (source.count, source.units) == (2, "arbitrary")
    assert source.cues(0, IDENTITY)[1].tolist() == [0]
    assert source.cues(1, IDENTITY)[1].tolist() == [0, 1]
    np.testing.assert_allclose(cues_of(source, 1).sigma, [0.25, 0.2])


def test_a_table_of_one_frame(tmp_path: Path) -> None:
    (tmp_path / "t@h.csv").write_text("u,v,depth\n10,20,1.5\n")
    assert len(cues_of(read_cues(f"{tmp_path}/t@h.csv@15", CLIP), 3)) == 1
    with pytest.raises(InputError, match="@FRAME"):
        read_cues(f"{tmp_path}/t@h.csv", CLIP)
    with pytest.raises(InputError, match="frame 3 is not in use"):
        read_cues(f"{tmp_path}/t@h.csv@3", CLIP)
    one = ClipFrames(INDICES[:1], INDICES[:1] / 10, SIZE, CAMERA)
    assert len(cues_of(read_cues(f"{tmp_path}/t@h.csv", one), 0)) == 1


def test_bad_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        "10,20,1.5,0",
        "nan,20,1.5,0",
        ",20,1.5,0",
        "10,20,-1,0",
        "10,20,0,5",
        "300,20,1,0",
        "10,20,1,3",
        "9,9,inf,0",
    ]
    (tmp_path / "t.csv").write_text("u,v,depth,frame\n" + "\n".join(rows))
    tally = read_cues(str(tmp_path / "t.csv"), CLIP).tally
    assert tally.total == 8
    assert tally.kept == 1
    assert dict(tally.dropped) == {
        "not a number": 3,
        "of frames not in use": 1,
        "without a positive depth": 2,
        "outside the image": 1,
    }
    assert str(tally).startswith("7 of 8 cues dropped: 3 not a number, 2 without a positive depth")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("u,v,depth,frame\n", "no rows"),
        ("u,v,frame\n1,2,0\n", "it needs u,v,depth"),
        ("1,2,3\n4,5,6\n", "first row must name"),
        ("u,v,depth,frame\n1,2,three,0\n", "row 1 is 'three'"),
        ("u;v;depth;frame\n1,5;2;3;0\n", "decimal points"),
        ("u,v,depth,frame\n1,2,3\n", "row 1 has 3 values"),
        ("u,v,depth,frame\n1,2,-3,0\n4,5,-1,0\n", "2 without a positive depth; depth is z"),
        ("u,v,depth,frame\n1,2,nan,0\n", "1 not a number"),
        ("u,v,depth,frame\n1000,2,3,0\n", "pixels of the clip's own 192x144 frames"),
        ("u,v,depth,frame\n1,2,3,99\n", "the clip uses frames 0 to 35"),
        ("x,y,z\nnan,0,0\n", "no points with finite"),
    ],
)
def test_bad_tables_name_the_remedy(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        read_cues(str(tmp_path / "t.csv"), CLIP)


def test_python_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "depth.npz", depth=np.array([{"a": 1}], object))
    np.savez(tmp_path / "table.npz", u=np.array([{"a": 1}], object), v=np.ones(1), depth=np.ones(1))
    np.save(tmp_path / "5.npy", np.array([[object()]]), allow_pickle=True)
    for name in ("depth.npz@0", "table.npz@0", "5.npy@0"):
        with pytest.raises(InputError, match="allow_pickle"):
            read_cues(f"{tmp_path}/{name}", CLIP)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_depth_maps(tmp_path: Path, write: Callable[..., Path], share: float) -> None:
    file = write(tmp_path / "000005", a_depth_map())
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="000005"):
        read_cues(f"{file}@5", CLIP)


def test_depth_maps_that_are_none(tmp_path: Path) -> None:
    def refused(says: str, spec: str = "5.png@5") -> None:
        with pytest.raises(InputError, match=says):
            read_cues(f"{tmp_path}/{spec}", CLIP)

    refused("no such file")
    Image.fromarray(np.zeros((36, 48), np.uint8)).save(tmp_path / "5.png")
    refused("16-bit grey PNG")
    Image.fromarray(np.zeros((36, 48), np.uint16)).save(tmp_path / "5.png")
    refused("no pixel of its depth maps is measured")
    Image.fromarray(np.ones((48, 36), np.uint16)).save(tmp_path / "5.png")
    refused("turn or crop")
    refused("@FRAME", "5.png")
    refused("not in use", "5.png@6")
    np.save(tmp_path / "5.npy", np.ones((36, 48), np.uint16))
    refused("divide by 1000", "5.npy@5")
    np.savez(tmp_path / "6.npz", depth=np.ones((36, 48), np.uint16))
    refused("divide by 1000", "6.npz@5")
    np.savez(tmp_path / "5.npz", depth=np.ones(5))
    refused("height, width", "5.npz@5")
    (tmp_path / "sub").mkdir()
    refused("neither depth maps nor", "sub")
    as_npy(tmp_path / "sub" / "000003", a_depth_map())
    refused("none of its 1 depth maps", "sub")
    as_npy(tmp_path / "sub" / "000005", a_depth_map())
    as_png(tmp_path / "sub" / "000005_left", a_depth_map())
    as_npy(tmp_path / "sub" / "confidence_5", a_depth_map())
    refused("are both of frame 5", "sub")
    (tmp_path / "a.xyz").write_text("1 2 3")
    refused("unknown kind", "a.xyz")
    with pytest.raises(InputError, match="positive share"):
        read_cues(str(tmp_path), CLIP, sigma=-1.0)


# -- points of the world ----------------------------------------------------------------------------------------------


def scene_points(poses: np.ndarray, step: int = 1) -> np.ndarray:
    """Surface points (N, 3) of the synthetic room that the given cameras see."""
    uv = pixel_grid(CAMERA.width, CAMERA.height)[::step, ::step].reshape(-1, 2)
    return np.concatenate(
        [
            transform(T, unproject(uv, synthetic.depth_of(CAMERA, T)[::step, ::step].ravel().astype(float), CAMERA))
            for T in poses
        ]
    )


def test_world_points_agree_with_the_scene(tmp_path: Path) -> None:
    far_apart = np.stack([synthetic.look((-1.6, 0, -0.5), 0.5), synthetic.look((1.6, 0, -0.5), -0.5)])
    points = scene_points(np.concatenate([POSES[:1], far_apart]))
    np.savez(tmp_path / "p.npz", x=points[:, 0], y=points[:, 1], z=points[:, 2])
    source = read_cues(str(tmp_path / "p.npz"), CLIP)
    assert source.count == len(points)
    T = POSES[0]
    cues, ids = source.cues(0, T)
    assert len(cues) > 500
    np.testing.assert_allclose(project(transform(inverse(T), points[ids]), CAMERA), cues.uv)
    at = np.floor(cues.uv).astype(int)
    wrong = np.abs(cues.depth / synthetic.depth_of(CAMERA, T)[at[:, 1], at[:, 0]] - 1) > 0.1
    everything = transform(inverse(T), points)
    uv = project(everything, CAMERA)
    inside = CLIP.inside(uv) & (everything[:, 2] > 0)
    at = np.floor(uv[inside]).astype(int)
    before = np.abs(everything[inside, 2] / synthetic.depth_of(CAMERA, T)[at[:, 1], at[:, 0]] - 1) > 0.1
    assert before.mean() > 0.03  # the wall behind the ball, seen by the others
    assert wrong.mean() < 0.1 * before.mean()
    assert source.tally.dropped["seen through a surface"] >= 0.9 * before.sum()


def test_dense_world_points_are_thinned(tmp_path: Path, rng: np.random.Generator) -> None:
    points = rng.uniform((-3, -2, 3.0), (3, 2, 3.01), (40_000, 3))
    np.savetxt(tmp_path / "p.csv", points, delimiter=",", header="x,y,z")
    source = read_cues(str(tmp_path / "p.csv"), CLIP)
    cues = cues_of(source, 0)
    assert 2500 < len(cues) <= 5000
    assert source.tally.kept == len(cues)


def test_clouds(tmp_path: Path, rng: np.random.Generator) -> None:
    laspy = pytest.importorskip("laspy")
    points = rng.uniform((-0.5, -0.4, 2.0), (0.5, 0.4, 2.1), (50, 3))
    las = laspy.create(point_format=0)
    las.header.scales = [1e-6] * 3
    las.x, las.y, las.z = points.T
    las.write(tmp_path / "p.las")
    n = len(points)
    cloud = PointCloud(
        points.astype(np.float32),
        np.zeros((n, 3), np.uint8),
        np.zeros((n, 3), np.float32),
        np.full(n, 0.03, np.float32),
        np.ones(n, np.int32),
        np.zeros(n, np.int32),
    )
    write_ply(tmp_path / "p.ply", cloud)
    from_las, from_ply = (read_cues(f"{tmp_path}/p.{end}", CLIP) for end in ("las", "ply"))
    assert (from_las.units, from_ply.units) == ("m", "arbitrary")  # our own cloud says so in its header
    for source in (from_las, from_ply):
        np.testing.assert_allclose(np.sort(cues_of(source, 0).depth), np.sort(points[:, 2]), atol=1e-5)
    np.testing.assert_allclose(cues_of(from_ply, 0).sigma, 0.03)
    (tmp_path / "p.las").write_bytes((tmp_path / "p.las").read_bytes()[:300])
    with pytest.raises(InputError, match="LAS"):
        read_cues(f"{tmp_path}/p.las", CLIP)
    las.write(tmp_path / "p.las")
    content = bytearray((tmp_path / "p.las").read_bytes())
    content[100:104] = b"\xff" * 4  # four thousand million records before the points: laspy would read them all
    (tmp_path / "p.las").write_bytes(content)
    with pytest.raises(InputError, match="header is damaged"):
        read_cues(f"{tmp_path}/p.las", CLIP)


# -- foreign models ---------------------------------------------------------------------------------------------------


def write_colmap_model(folder: Path, points: np.ndarray, names: list[str], binary: bool) -> None:
    """The scene's points as seen by POSES, at the clip's own size, written by pycolmap."""
    pycolmap = pytest.importorskip("pycolmap")
    camera = CAMERA.scaled_to(*SIZE)
    model = pycolmap.Reconstruction()
    numbers = [camera.fx, camera.fy, camera.cx, camera.cy]
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(model="PINHOLE", width=SIZE[0], height=SIZE[1], params=numbers, camera_id=1)
    )
    tracks = [pycolmap.Track() for _ in points]
    for i, T in enumerate(inverse(POSES)):
        image = pycolmap.Image(name=names[i], camera_id=1, image_id=i + 1)
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(uv) for uv in project(transform(T, points), camera)])
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(T[:3, :3]), T[:3, 3]))
        for j, track in enumerate(tracks):
            track.add_element(i + 1, j)
    for xyz, track in zip(points, tracks, strict=True):
        model.add_point3D(xyz, track)
    folder.mkdir(exist_ok=True)
    model.write_binary(str(folder)) if binary else model.write_text(str(folder))


@pytest.fixture
def seen_by_all(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform((-0.3, -0.3, 2.0), (0.3, 0.3, 3.0), (30, 3))


@pytest.mark.parametrize("binary", [True, False])
def test_a_colmap_model(tmp_path: Path, seen_by_all: np.ndarray, binary: bool) -> None:
    write_colmap_model(tmp_path / "m", seen_by_all, [f"{i:06d}.png" for i in INDICES], binary)
    source = read_cues(str(tmp_path / "m"), CLIP)
    assert (source.count, source.units, str(source.tally)) == (30, "arbitrary", "all 240 cues used")
    for position in (0, 5):
        cues, ids = source.cues(position, IDENTITY)
        in_camera = transform(inverse(POSES[position]), seen_by_all[ids])
        np.testing.assert_allclose(cues.depth, in_camera[:, 2], atol=1e-6)
        np.testing.assert_allclose(cues.uv, project(in_camera, CAMERA), atol=1e-4)
    assert read_cues(str(tmp_path / "m"), CLIP, units="m").units == "m"
    with pytest.raises(InputError, match="neither cropped nor turned"):
        read_cues(str(tmp_path / "m"), clip_of(size=(144, 192)))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", ["points3D", "images", "cameras"])
def test_a_damaged_colmap_model(tmp_path: Path, seen_by_all: np.ndarray, binary: bool, name: str) -> None:
    write_colmap_model(tmp_path / "m", seen_by_all, [f"{i:06d}.png" for i in INDICES], binary)
    file = tmp_path / "m" / f"{name}.{'bin' if binary else 'txt'}"
    content = file.read_bytes()
    for share in (0.0, 0.5) if binary else (0.0,):  # half a text file is a text file
        file.write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError, match="m/"):
            read_cues(str(tmp_path / "m"), CLIP)


def test_absurd_counts_in_a_colmap_model(tmp_path: Path, seen_by_all: np.ndarray) -> None:
    """A track of 2^60 images asks for no memory; images without points, and points without images, are named."""
    write_colmap_model(tmp_path / "m", seen_by_all, [f"{i:06d}.png" for i in INDICES], binary=True)
    file = tmp_path / "m" / "points3D.bin"
    whole = file.read_bytes()
    track_length = 8 + 8 + 24 + 3 + 8  # after the count: id, x y z, colour, error
    file.write_bytes(whole[:track_length] + (1 << 60).to_bytes(8, "little") + whole[track_length + 8 :])
    with pytest.raises(InputError, match=r"points3D\.bin.*ends early"):
        read_cues(str(tmp_path / "m"), CLIP)
    file.write_bytes((1).to_bytes(8, "little") + (999).to_bytes(8, "little") + whole[16:track_length] + bytes(8))
    with pytest.raises(InputError, match="see none of its points"):
        read_cues(str(tmp_path / "m"), CLIP)


def test_wrong_matches_of_a_model_are_dropped(tmp_path: Path, seen_by_all: np.ndarray) -> None:
    write_colmap_model(tmp_path / "m", seen_by_all, [f"{i:06d}.png" for i in INDICES], binary=False)
    model = read_observed_colmap(tmp_path / "m")
    np.testing.assert_allclose(model.reprojection_px, 0, atol=1e-4)
    file = tmp_path / "m" / "points3D.txt"
    first, *rest = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    number, x, *others = first.split()
    file.write_text("\n".join([" ".join([number, str(float(x) + 0.3), *others]), *rest]))
    assert dict(read_cues(str(tmp_path / "m"), CLIP).tally.dropped) == {"wrong matches": 8}


BERLIN = ("01.jpg", "02.jpg", "03.jpg")


@pytest.mark.data
def test_opensfm_conventions_on_a_real_model() -> None:
    model = read_opensfm(data_path("opensfm_berlin/reconstruction_example.json"))
    assert model.cameras[0].distortion is not None
    assert len(model.points) == 1430
    assert np.median(model.reprojection_px) < 1.0  # of 3264 px: measured 0.80
    assert np.percentile(model.reprojection_px, 90) < 3.0
    assert (model.depth > 0).all()


@pytest.mark.data
def test_a_real_opensfm_model_as_cues() -> None:
    path = data_path("opensfm_berlin/reconstruction_example.json")
    camera = read_opensfm(path).cameras[0].scaled_to(816, 612)
    clip = ClipFrames(np.arange(3), np.arange(3.0), (3264, 2448), camera, BERLIN)
    source = read_cues(str(path), clip)
    assert source.units == "arbitrary"
    assert 1300 < source.count <= 1430
    assert source.tally.kept > 2800
    assert all(len(cues_of(source, p)) > 400 for p in range(3))


@pytest.mark.data
def test_real_control_points() -> None:
    """Two of the three are surveyed, and one of these seen twice: it can be triangulated, and no more."""
    path = data_path("opensfm_berlin/ground_control_points.json")
    model = read_opensfm(path.with_name("reconstruction_example.json"))
    clip = ClipFrames(np.arange(3), np.arange(3.0), (3264, 2448), model.cameras[0].scaled_to(816, 612), BERLIN)
    points = read_cues(str(path), clip)
    assert isinstance(points, ControlPoints)
    assert points.names == ("0", "3")
    assert dict(points.tally.dropped) == {"of points without coordinates": 2}
    assert np.linalg.norm(np.diff(points.survey_m, axis=0)) == pytest.approx(4.63, abs=0.01)
    T = model.T_world_camera[[model.names.index(name) for name in BERLIN]]
    seen = points.point == 0
    found = triangulate(points.uv[seen], T[points.position[seen]], clip.camera)
    assert found.error_px < 1.0  # of 816 px: marked by hand, with the model's own poses and lens
    with pytest.raises(GeometryError, match="3: seen by fewer than two posed frames"):
        georeference(points, T, clip.camera)


@pytest.mark.data
def test_georeferencing_with_real_tracks() -> None:
    """Points of a real model as if they had been surveyed, seen where its feature tracks saw them."""
    model = read_opensfm(data_path("opensfm_berlin/reconstruction_example.json"))
    camera = model.cameras[0].scaled_to(816, 612)
    seen_often = np.flatnonzero(np.bincount(model.seen_point) == 3)[::16]
    truth = random_similarity(4)
    rows = np.flatnonzero(np.isin(model.seen_point, seen_often))
    points = ControlPoints(
        tuple(map(str, seen_often)),
        truth.apply(model.points[seen_often]),
        model.seen_image[rows],
        np.searchsorted(seen_often, model.seen_point[rows]),
        model.uv[rows] / 4,
        Tally(len(rows)),
    )
    found = georeference(points, model.T_world_camera, camera)
    assert found.n >= 10
    assert found.scale == pytest.approx(truth.scale, rel=0.005)
    assert found.rms_m < 0.05 * truth.scale  # of depths around 19: measured 0.01


@pytest.mark.data
def test_real_depth_maps() -> None:
    folder = data_path("kitchen/depth")
    camera = Intrinsics(525, 525, 320, 240, 640, 480).scaled_to(320, 240)
    clip = ClipFrames(np.array([0, 7, 100]), np.array([0, 7, 100]) / 30, (640, 480), camera)
    source = read_cues(str(folder), clip)
    exact = np.asarray(Image.open(folder / "000100.png")) / 1000
    cues = cues_of(source, 2)
    at = np.floor(cues.uv * 2).astype(int)
    np.testing.assert_allclose(cues.depth, exact[at[:, 1], at[:, 0]])
    assert 2000 < len(cues) <= 5000
    assert not len(cues_of(source, 1))


# -- control points ---------------------------------------------------------------------------------------------------


def test_geodesy() -> None:
    """Hand-checked places on the ellipsoid; and north, east and up are what they are called."""
    b = 6356752.314245  # WGS84's semi-minor axis
    np.testing.assert_allclose(to_ecef(np.array([0.0, 0, 0])), [6378137, 0, 0], atol=1e-6)
    np.testing.assert_allclose(to_ecef(np.array([0.0, 90, 10])), [0, 6378147, 0], atol=1e-6)
    np.testing.assert_allclose(to_ecef(np.array([90.0, 0, 5])), [0, 0, b + 5], atol=1e-5)
    origin = np.array([52.5, 13.4, 40.0])
    np.testing.assert_allclose(to_enu(origin, origin), 0, atol=1e-9)
    np.testing.assert_allclose(to_enu(origin + [0, 0, 7], origin), [0, 0, 7], atol=1e-6)
    step = 1e-5  # degrees; a degree of latitude is 111.27 km at 52.5 degrees, one of longitude 67.90 km
    np.testing.assert_allclose(to_enu(origin + [step, 0, 0], origin), [0, 1.1127, 0], atol=2e-4)
    np.testing.assert_allclose(to_enu(origin + [0, step, 0], origin), [0.6790, 0, 0], atol=2e-4)
    with pytest.raises(InputError, match="swapped"):
        to_enu(np.array([134.0, 52, 0]), origin)


def test_geographic_and_local_files_agree(tmp_path: Path) -> None:
    lla = {"a": (52.5, 13.4, 30.0), "b": (52.5001, 13.4001, 31.0), "c": (52.5, 13.4002, 35.0)}
    pixels = {"a": (10.0, 20.0), "b": (30.0, 40.0), "c": (100.0, 90.0)}
    rows = [f"{n},{','.join(map(str, lla[n]))},5,{u},{v}" for n, (u, v) in pixels.items()]
    (tmp_path / "g.csv").write_text("name,latitude,longitude,altitude,frame,u,v\n" + "\n".join(rows))
    entries = [
        {
            "id": n,
            "position": dict(zip(("latitude", "longitude", "altitude"), lla[n], strict=True)),
            "observations": [{"shot_id": "000005.jpg", "projection": [(u - 96) / 192, (v - 72) / 192]}],
        }
        for n, (u, v) in pixels.items()
    ]
    (tmp_path / "g.json").write_text(json.dumps({"points": entries}))
    table, from_json = (read_cues(f"{tmp_path}/g.{end}", CLIP) for end in ("csv", "json"))
    assert isinstance(table, ControlPoints)
    assert isinstance(from_json, ControlPoints)
    np.testing.assert_allclose(table.survey_m, from_json.survey_m, atol=1e-9)
    np.testing.assert_allclose(table.uv, from_json.uv)
    np.testing.assert_allclose(table.uv, np.array(list(pixels.values())) / 2)
    assert table.position.tolist() == [1, 1, 1]
    assert table.origin_lla == pytest.approx(from_json.origin_lla)


def survey_of(
    survey: np.ndarray, T_survey_world: Similarity, *, noise_px: float = 0.0, noise_m: float = 0.0
) -> ControlPoints:
    """Control points at `survey` (P, 3), seen by all of POSES, whose world the similarity carries to the survey."""
    rng = np.random.default_rng(3)
    world = T_survey_world.inverse().apply(survey)
    uv = np.concatenate([project(transform(T, world), CAMERA) for T in inverse(POSES)])
    n = len(survey)
    return ControlPoints(
        tuple("abcdefghijklm"[:n]),
        survey + noise_m * rng.normal(size=survey.shape),
        np.repeat(np.arange(len(POSES)), n),
        np.tile(np.arange(n), len(POSES)),
        uv + noise_px * rng.normal(size=uv.shape),
        Tally(len(uv)),
    )


def random_similarity(seed: int) -> Similarity:
    rng = np.random.default_rng(seed)
    return Similarity(float(np.exp(rng.uniform(-2, 2))), Rotation.random(rng=rng).as_matrix(), rng.normal(size=3) * 1e5)


def spread_points(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform((-0.5, -0.4, 1.5), (0.5, 0.4, 3.0), (n, 3))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 8))
def test_georeferencing_recovers_any_similarity(seed: int, n: int) -> None:
    truth = random_similarity(seed)
    points = spread_points(n, seed)
    assume(np.linalg.svd(points - points.mean(0))[1][1] > 0.1)  # nearly on a line there is no rotation to recover
    survey = truth.apply(points)
    found = georeference(survey_of(survey, truth), POSES, CAMERA)
    assert found.n == n
    assert not found.rejected
    assert found.T_survey_world is not None
    assert found.scale == pytest.approx(truth.scale, rel=1e-6)
    np.testing.assert_allclose(found.T_survey_world.rotation, truth.rotation, atol=1e-6)
    np.testing.assert_allclose(found.T_survey_world.apply(POSES[:, :3, 3]), truth.apply(POSES[:, :3, 3]), atol=1e-4)
    assert found.rms_m < 1e-5 * truth.scale


@pytest.mark.parametrize("seed", range(5))
def test_georeferencing_with_noise_is_within_its_sigma(seed: int) -> None:
    truth = random_similarity(seed)
    survey = truth.apply(spread_points(8, seed))
    found = georeference(survey_of(survey, truth, noise_px=0.1, noise_m=0.004 * truth.scale), POSES, CAMERA)
    assert found.n >= 7
    assert abs(found.scale - truth.scale) < 4 * found.scale_sigma
    assert found.scale_sigma < 0.03 * truth.scale
    assert 0.002 * truth.scale < found.rms_m < 0.05 * truth.scale


@pytest.mark.parametrize("n", [4, 5, 8])
@pytest.mark.parametrize("noise_m", [0.0, 0.002])
def test_one_wrong_control_point_is_found(n: int, noise_m: float) -> None:
    truth = random_similarity(n)
    survey = truth.apply(spread_points(n))
    points = survey_of(survey, truth, noise_m=noise_m * truth.scale)
    points.survey_m[1] += truth.scale * np.array([0.8, -0.5, 0.6])
    found = georeference(points, POSES, CAMERA)
    assert found.rejected == {"b": "disagrees with the other points"}
    assert found.scale == pytest.approx(truth.scale, rel=1e-6 if noise_m == 0 else 0.03)
    cues, ids = found.as_cues(points).cues(2, POSES[2])
    assert 1 not in ids
    if noise_m == 0:
        z = transform(inverse(POSES[2]), truth.inverse().apply(survey))[:, 2]
        np.testing.assert_allclose(cues.depth, z[ids] * truth.scale, rtol=1e-5)
        metric = POSES[2].copy()
        metric[:3, 3] *= found.scale
        np.testing.assert_allclose(
            found.of_scaled_world().as_cues(points).cues(2, metric)[0].depth, cues.depth, rtol=1e-6
        )


def test_two_points_and_points_on_a_line_give_the_scale_alone() -> None:
    truth = random_similarity(1)
    line = np.array([[-0.4, 0, 2.0], [0.0, 0.1, 2.2], [0.4, 0.2, 2.4]])
    for world in (line[:2], line):
        points = survey_of(truth.apply(world), truth)
        found = georeference(points, POSES, CAMERA)
        assert found.T_survey_world is None
        assert found.scale == pytest.approx(truth.scale, rel=1e-6)
        assert 0 < found.scale_sigma < 0.2 * truth.scale
        assert not len(cues_of(found.as_cues(points), 0))


def test_points_that_cannot_be_triangulated_are_named() -> None:
    truth = random_similarity(2)
    points = survey_of(truth.apply(spread_points(5)), truth)
    points.uv[points.point == 2] += np.array([[0, 30.0], [0, -30.0]] * (len(POSES) // 2))
    posed = np.ones(len(POSES), bool)
    posed[3] = False
    found = georeference(points, POSES, CAMERA, posed=posed)
    assert list(found.rejected) == ["c"]
    assert "rays miss each other" in found.rejected["c"]
    points.uv[:] = np.tile(points.uv[:5], (len(POSES), 1))
    still = np.tile(POSES[:1], (len(POSES), 1, 1))
    with pytest.raises(GeometryError, match="less than 1 degree"):
        georeference(points, still, CAMERA)
    with pytest.raises(GeometryError, match="fewer than two posed"):
        georeference(points, POSES, CAMERA, posed=np.zeros(len(POSES), bool))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("a,0,0,2,5,10,10\na,0,1,2,10,10,10", "point a is given at two places"),
        ("a,0,0,2,99,10,10", "of frames not in use"),
        ("a,0,0,2,5,1000,10", "outside the image"),
        ("a,nan,0,2,5,10,10", "of points without coordinates"),
        ("a,zero,0,2,5,10,10", "x of row 1 is 'zero'"),
    ],
)
def test_bad_control_points(tmp_path: Path, rows: str, says: str) -> None:
    (tmp_path / "g.csv").write_text("name,x,y,z,frame,u,v\n" + rows)
    with pytest.raises(InputError, match=says):
        read_cues(str(tmp_path / "g.csv"), CLIP)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not readable JSON"),
        ("[]", "neither a reconstruction nor control points"),
        ('{"points": []}', "no control point is observed"),
        ('{"points": [{"id": "1", "observations": [{"shot_id": "a"}]}]}', "not control points"),
        ('[{"shots": {}}]', "not a reconstruction"),
        ('[{"shots": {}, "points": {}, "cameras": {}}]', "no shots or no points"),
    ],
)
def test_bad_opensfm_files(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "reconstruction.json").write_text(content)
    with pytest.raises(InputError, match=says):
        read_cues(str(tmp_path / "reconstruction.json"), CLIP)


# -- the scale of many depths -----------------------------------------------------------------------------------------


def noisy_frames(
    factor: float, frames: int = 6, noise: float = 0.02, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    scene = [rng.uniform(1, 5, rng.integers(20, 400)) for _ in range(frames)]
    return [(factor * z * np.exp(noise * rng.normal(size=len(z))), z) for z in scene]


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_the_metric_scale_is_found_within_its_sigma(factor: float, seed: int) -> None:
    found = metric_scale(noisy_frames(factor, seed=seed))
    assert abs(found.factor - factor) < 6 * found.sigma
    assert found.sigma < 0.02 * factor
    assert found.spread < 0.02
    twice = metric_scale([(2 * c, z) for c, z in noisy_frames(factor, seed=seed)])
    assert twice.factor == pytest.approx(2 * found.factor)
    assert twice.sigma == pytest.approx(2 * found.sigma)


def test_outliers_and_disagreeing_frames() -> None:
    frames = noisy_frames(2.0)
    for cue, _ in frames:
        cue[: len(cue) // 4] *= 5
    found = metric_scale(frames)
    assert found.factor == pytest.approx(2.0, rel=0.02)
    assert found.rejected >= 0.2 * (found.used + found.rejected)
    apart = metric_scale(
        [(cue * s, z) for (cue, z), s in zip(noisy_frames(2.0), (1, 1, 1, 1.6, 1.7, 1.8), strict=True)]
    )
    assert apart.spread > 0.2
    assert apart.sigma > 5 * found.sigma
    np.testing.assert_allclose(apart.frame_factors, [2, 2, 2, 3.2, 3.4, 3.6], rtol=0.02)


def test_frames_without_pairs() -> None:
    nothing = (np.zeros(0), np.zeros(0))
    found = metric_scale([nothing, (np.array([2.0, 4.0, 6.0]), np.array([1.0, np.nan, 3.0]))])
    assert found.factor == pytest.approx(2.0)
    assert found.used == 2
    assert np.isnan(found.frame_factors[0])
    with pytest.raises(GeometryError, match="scale is open"):
        metric_scale([nothing])
