"""What napari opens and saves through the plugin: files come back as they were, and refusals are one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari", reason="napari is not installed: pip install 'marigold3d[napari]'")

from marigold3d.napari_plugin import _reader
from marigold3d.napari_plugin._preferences import MOST_PREVIEWS_PER_S, Preferences, preferences
from marigold3d.napari_plugin._stacks import DepthStack, SigmaStack
from marigold3d.napari_plugin._writer import CLOUD, write_depth_image, write_points

from marigold3d.depth.registry import MODELS
from marigold3d.errors import InputError, OutputError
from marigold3d.export.clouds import CLOUD_WRITERS, read_cloud, transformed, write_cloud
from marigold3d.export.depth_maps import read_depth_npz, read_depth_png, read_encoding
from marigold3d.store import Run
from marigold3d.types import DepthMap
from tests.gui import FRAMES, HEIGHT, WIDTH, depth_map, make_clip, make_run
from tests.test_export import COLUMNS, cloud_of

FORMATS = [*CLOUD_WRITERS]


@pytest.fixture
def model(npe2pm):
    from napari.components import ViewerModel

    with npe2pm.tmp_plugin(package="marigold3d"):
        yield ViewerModel()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "clip_3d", make_clip(tmp_path / "clip.mp4"))


# -- clouds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_points_saved_in_napari_come_back(model, tmp_path, suffix):
    points_zyx = np.array([[3, 2, 1], [6, 5, 4], [9, 8, 7]], np.float32)
    colors = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0.2, 0.4, 0.6, 1]])
    model.add_points(points_zyx, face_color=colors, metadata={"units": "m"})
    path = str(tmp_path / f"c{suffix}")
    assert model.layers.save(path, plugin="marigold3d") == [path]
    cloud = read_cloud(path)
    np.testing.assert_allclose(cloud.points, [[1, 2, 3], [4, 5, 6], [7, 8, 9]], atol=1e-6)
    assert cloud.colors.tolist() == [[255, 0, 0], [0, 255, 0], [51, 102, 153]]
    assert cloud.units == "m"
    assert np.isnan(cloud.sigma).all()
    assert not cloud.normals.any()
    layer = model.open(path, plugin="marigold3d")[0]
    np.testing.assert_allclose(layer.data, points_zyx, atol=1e-6)
    np.testing.assert_allclose(layer.face_color, colors, atol=1e-6)


def test_the_whole_cloud_is_saved_not_what_is_shown(model, tmp_path):
    whole = cloud_of(500)
    model.add_points(np.zeros((3, 3)), metadata={CLOUD: lambda: whole})
    path = str(tmp_path / "c.ply")
    model.layers.save(path, plugin="marigold3d")
    back = read_cloud(path)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(back, name), getattr(whole, name), err_msg=name)


def test_saved_points_stand_where_napari_shows_them(model, tmp_path, rng):
    points = rng.normal(size=(40, 3))
    affine = np.eye(4)
    affine[:3] += 0.3 * rng.normal(size=(3, 4))
    layer = model.add_points(points, scale=(2, 3, 4), translate=(1, -2, 5), rotate=(10, 20, 30), affine=affine)
    path = str(tmp_path / "c.ply")
    model.layers.save(path, plugin="marigold3d")
    shown = np.array([layer.data_to_world(point) for point in points])
    np.testing.assert_allclose(read_cloud(path).points[:, ::-1], shown, atol=1e-5)


def test_points_that_are_hidden_are_not_saved(model, tmp_path):
    model.add_points(np.eye(3), shown=[True, False, True])
    model.layers.save(str(tmp_path / "c.ply"), plugin="marigold3d")
    assert read_cloud(tmp_path / "c.ply").points.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_a_moved_cloud_keeps_its_surfaces():
    """Points of the plane z = 2 under a map that shears and scales: the normal stays at right angles to it."""
    cloud = cloud_of(50)
    cloud.points[:, 2] = 2
    cloud.normals[:] = (0, 0, -1)
    matrix = np.array([[2, 0, 0.5, 1], [0, 4, 0, 2], [0.3, 0.2, 1, 3], [0, 0, 0, 1]])
    moved = transformed(cloud, matrix)
    along = moved.points - moved.points[0]
    np.testing.assert_allclose((along * moved.normals).sum(1), 0, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(moved.normals, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(transformed(cloud, np.diag([3, 3, 3, 1.0])).sigma, 3 * cloud.sigma, rtol=1e-6)
    assert transformed(cloud, np.eye(4)) is cloud
    with pytest.raises(InputError, match="flattens"):
        transformed(cloud, np.diag([1, 0, 1, 1.0]))


@pytest.mark.parametrize("suffix", FORMATS)
def test_clouds_read_back_in_every_format(tmp_path, suffix):
    cloud = cloud_of(300)
    write_cloud(tmp_path / f"c{suffix}", cloud)
    back = read_cloud(tmp_path / f"c{suffix}")
    np.testing.assert_allclose(back.points, cloud.points, atol=1e-6)
    assert back.units == cloud.units
    for name in COLUMNS[1:] if suffix != ".glb" else ("colors",):
        np.testing.assert_array_equal(getattr(back, name), getattr(cloud, name), err_msg=name)


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_clouds_are_one_line(tmp_path, suffix):
    path = tmp_path / f"c{suffix}"
    write_cloud(path, cloud_of(300))
    whole = path.read_bytes()
    for content in (b"", b"no cloud", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"^{path.as_posix()}: [^\n]+$"):
            _reader.read_cloud(str(path))(str(path))
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        read_cloud(path)


def test_surveyed_coordinates_are_refused_not_rounded(tmp_path):
    laspy = pytest.importorskip("laspy")
    las = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
    las.header.offsets, las.header.scales = (500_000, 5_000_000, 0), np.full(3, 0.001)
    las.x, las.y, las.z = 500_000 + np.arange(5.0), 5_000_000 + np.arange(5.0), np.arange(5.0)
    las.write(str(tmp_path / "utm.las"))
    with pytest.raises(InputError, match="too large; subtract an offset"):
        read_cloud(tmp_path / "utm.las")


def test_points_that_cannot_be_saved_are_one_line(tmp_path):
    with pytest.raises(InputError, match="2 dimensions"):
        write_points(str(tmp_path / "c.ply"), np.zeros((4, 2)), {"name": "p"})
    with pytest.raises(InputError, match="nothing to save"):
        write_points(str(tmp_path / "c.ply"), np.zeros((0, 3)), {"name": "p"})
    assert not list(tmp_path.iterdir())


# -- depth -------------------------------------------------------------------------------------------------------------


def read_map(path: Path) -> DepthMap:
    if path.suffix == ".npz":
        return read_depth_npz(path)
    if path.suffix == ".png":
        beside = path.with_name(f"{path.stem}_encoding.json")
        return read_depth_png(path, read_encoding(beside if beside.is_file() else path.with_name("encoding.json")))
    channels = pytest.importorskip("OpenEXR").File(str(path)).channels()
    depth = np.asarray(channels["Z"].pixels, np.float32)
    return DepthMap(depth, depth > 0, channels["sigma"].pixels if "sigma" in channels else None)


@pytest.mark.parametrize("suffix", [".exr", ".png", ".npz"])
def test_one_depth_image_becomes_one_file(model, tmp_path, rng, suffix):
    depth = rng.uniform(1, 9, (12, 17)).astype(np.float32)
    depth[0, :4] = (0, np.nan, np.inf, 2)
    model.add_image(depth)
    written = model.layers.save(str(tmp_path / f"d{suffix}"), plugin="marigold3d")
    assert written[0] == str(tmp_path / f"d{suffix}")
    assert sorted(written) == sorted(str(path) for path in tmp_path.iterdir())
    back = read_map(Path(written[0]))
    assert back.valid[0, :4].tolist() == [False, False, False, True]
    assert back.valid.sum() == depth.size - 3
    np.testing.assert_allclose(back.depth[back.valid], depth[back.valid], atol=8 / 65534 if suffix == ".png" else 0)


@pytest.mark.parametrize("suffix", [".exr", ".png", ".npz"])
def test_a_stack_becomes_a_folder(model, tmp_path, rng, suffix):
    stack = rng.uniform(1, 9, (3, 6, 8)).astype(np.float32)
    model.add_image(stack, metadata={"units": "m"})
    written = [Path(path) for path in model.layers.save(str(tmp_path / f"d{suffix}"), plugin="marigold3d")]
    assert sorted(written) == sorted((tmp_path / "d").iterdir())
    for i in range(3):
        back = read_map(tmp_path / "d" / f"{i:06d}{suffix}")
        np.testing.assert_allclose(back.depth, stack[i], atol=8 / 65534 if suffix == ".png" else 0)
    if suffix == ".png":
        assert read_encoding(tmp_path / "d" / "encoding.json").units == "m"
    with pytest.raises(OutputError, match="exists already"):
        write_depth_image(str(tmp_path / f"d{suffix}"), stack, {})


def test_depth_of_a_run_is_saved_with_all_it_knows(model, tmp_path, run, monkeypatch):
    """The frames that were used, once each, under the run's own encoding, with sigma."""
    known = depth_map()
    sigma = np.where(known.valid, 0.1 * known.depth, 0).astype(np.float32)
    monkeypatch.setattr(Run, "depth", lambda self, index, **_: DepthMap(known.depth + index, known.valid, sigma))
    model.add_image(DepthStack(run, FRAMES), contrast_limits=(0, 9), multiscale=False)
    for suffix in (".npz", ".exr", ".png"):
        folder = tmp_path / suffix[1:]
        model.layers.save(f"{folder}{suffix}", plugin="marigold3d")
        names = [f"{i:06d}{suffix}" for i in run.frame_indices]
        assert sorted(file.name for file in folder.glob(f"*{suffix}")) == names
        back = read_map(folder / names[1])
        np.testing.assert_allclose(back.depth[back.valid], known.depth[known.valid] + 2, atol=1e-4)
        if suffix != ".png":
            np.testing.assert_array_equal(back.sigma, sigma)
    assert read_encoding(tmp_path / "png" / "encoding.json") == run.encoding()


def test_frames_are_written_one_by_one(tmp_path):
    """A stack that may not be read whole; what was begun goes when a frame is refused."""

    class Frames:
        shape, ndim, dtype = (4, 6, 8), 3, np.dtype(np.float32)

        def __getitem__(self, index):
            assert isinstance(index, int)
            return np.full((6, 8), 2 - index, np.float32)

    with pytest.raises(InputError, match="negative"):
        write_depth_image(str(tmp_path / "d.npz"), Frames(), {"name": "d"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "meta", "hint"),
    [
        (np.zeros((4, 5, 3), np.uint8), {"rgb": True}, "colour image"),
        (-np.ones((4, 5)), {}, "negative"),
        (np.ones((2, 2, 4, 5)), {}, r"\(H, W\) or \(T, H, W\)"),
        (np.ones((4, 5), complex), {}, "real numbers"),
        (np.zeros((4, 5)), {}, "nothing to save"),
    ],
)
def test_images_that_are_no_depth_are_refused(tmp_path, data, meta, hint):
    with pytest.raises(InputError, match=hint):
        write_depth_image(str(tmp_path / "d.png"), data, {"name": "d", **meta})
    assert not list(tmp_path.iterdir())


def test_pictures_are_still_napari_s_to_save(npe2pm, tmp_path):
    from napari.components import ViewerModel
    from npe2 import PluginManifest

    builtins = PluginManifest.from_distribution("napari")
    with npe2pm.tmp_plugin(manifest=builtins), npe2pm.tmp_plugin(package="marigold3d"):
        model = ViewerModel()
        model.add_image(np.zeros((8, 9, 3), np.uint8), rgb=True)
        assert model.layers.save(str(tmp_path / "p.png")) == [str(tmp_path / "p.png")]


def test_sigma_is_a_stack_over_the_same_frames(run, monkeypatch):
    shutil.rmtree(run.path / "sigma", ignore_errors=True)
    assert np.isnan(SigmaStack(run, FRAMES)[0]).all()
    known = depth_map()
    monkeypatch.setattr(Run, "depth", lambda self, i, **_: DepthMap(known.depth, known.valid, 0 * known.depth + i))
    stack = SigmaStack(run, FRAMES)
    assert stack.shape == (FRAMES, HEIGHT, WIDTH)
    assert np.array_equal(np.isfinite(stack[3]), known.valid)
    assert [float(stack[i][5, 5]) for i in range(FRAMES)] == [0, 0, 2, 2, 4, 4]
    with pytest.raises(InputError, match="written with its depth"):
        write_depth_image("d.exr", stack, {"name": "sigma"})


# -- reading -----------------------------------------------------------------------------------------------------------


def test_several_paths_are_no_stack_of_ours(run, monkeypatch):
    monkeypatch.chdir(run.path)  # where the empty path would be a run folder
    assert _reader.read_run(".")
    for reader, name in ((_reader.read_video, "a.mp4"), (_reader.read_cloud, "a.ply"), (_reader.read_run, "run.json")):
        assert reader([name, name]) is None
        assert reader([]) is None
        assert reader([name])


def test_a_clip_that_was_cut_off_is_one_line(model, tmp_path):
    path = make_clip(tmp_path / "clip.mp4")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"clip\.mp4: [^\n]*copy it again[^\n]*$"):
        model.open(str(path), plugin="marigold3d")


# -- samples -----------------------------------------------------------------------------------------------------------


def test_the_samples_open(model):
    clip = model.open_sample("marigold3d", "clip")
    assert [layer.rgb for layer in clip] == [True]
    layers = model.open_sample("marigold3d", "run")
    kinds = [layer._type_string for layer in layers]
    assert kinds[0] == "image", "the run finds its clip"
    assert {"points", "vectors"} <= set(kinds)
    assert layers[0].data.shape == clip[0].data.shape
    assert layers[1].data.shape[0] == len(clip[0].data)


# -- preferences -------------------------------------------------------------------------------------------------------


def test_preferences_are_what_the_user_set(plugin_settings, npe2pm):
    settings = pytest.importorskip("napari.settings")
    with npe2pm.tmp_plugin(package="marigold3d"):
        assert preferences() == Preferences()
        stored = settings.get_plugin_settings("marigold3d")
        stored.reconstruction.device, stored.display.points = "cpu", 5000
        stored.display.previews_per_s, stored.display.path_color = 2.0, "not a colour"
        assert preferences() == Preferences(device="cpu", points=5000, previews_per_s=2.0)
        assert preferences().interval_s == 0.5


def test_preferences_without_a_registered_plugin_are_the_defaults(plugin_settings):
    assert preferences() == Preferences()


def test_the_manifest_offers_what_there_is():
    from npe2 import PluginManifest

    offered = PluginManifest.from_distribution("marigold3d").contributions.configurations
    properties = {**offered["reconstruction"].properties, **offered["display"].properties}
    assert properties["model"].enum == list(MODELS)
    assert Preferences(**{name: entry.default for name, entry in properties.items()}) == Preferences()
    assert properties["previews_per_s"].maximum == MOST_PREVIEWS_PER_S


@pytest.mark.parametrize(
    "nonsense",
    [
        {"model": "none such"},
        {"device": "abacus"},
        {"output": None},
        {"points": -5},
        {"points": 2e5},
        {"previews_per_s": float("nan")},
        {"previews_per_s": 60},
        {"path_color": 7},
        {"path_color": "#zzz"},
    ],
)
def test_nonsense_is_the_default(nonsense):
    assert Preferences(**nonsense) == Preferences()
