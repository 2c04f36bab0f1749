"""The plugin: what discovery costs, the readers and layers on a bare model, previews, the worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

pytest.importorskip("napari", reason="napari is not installed: pip install 'marigold3d[napari]'")
if find_spec("marigold3d.napari_plugin") is None:
    pytest.skip("the plugin is part of the installed package: pip install -e .", allow_module_level=True)

from marigold3d.napari_plugin import _reader
from marigold3d.napari_plugin._layers import (
    MAX_POINTS,
    camera_of,
    cloud_layer,
    depth_layer,
    run_layers,
    show_frames,
    show_scene,
    to_zyx,
)
from marigold3d.napari_plugin._preview import MAX_POINTS as CLOUD_POINTS
from marigold3d.napari_plugin._preview import Preview
from marigold3d.napari_plugin._stacks import DepthStack, display_range
from marigold3d.napari_plugin._worker import Control, Failed, Stopped, throttled

from marigold3d.errors import UsageError
from marigold3d.progress import CloudPreview, FramePreview, Progress, run
from marigold3d.types import PointCloud
from marigold3d.video_array import VideoArray
from tests.gui import FRAMES, HEIGHT, WIDTH, make_clip, make_run


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4")


@pytest.fixture
def run_folder(tmp_path: Path, clip: Path) -> Path:
    return make_run(tmp_path / "clip_3d", clip).path


@pytest.fixture
def model():
    from napari.components import ViewerModel

    return ViewerModel()


def add(viewer, layers) -> None:
    for data, options, kind in layers:
        getattr(viewer, f"add_{kind}")(data, **options)


# -- discovery ---------------------------------------------------------------------------------------------------------


def test_discovery_loads_nothing_heavy():
    code = """
import sys, npe2
manifest = npe2.PluginManifest.from_distribution("marigold3d")
import marigold3d.napari_plugin
print(manifest.name, sorted({"torch", "open3d", "av", "napari", "qtpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "marigold3d []", done.stderr


def test_every_command_of_the_manifest_exists():
    from npe2 import PluginManifest

    manifest = PluginManifest.from_distribution("marigold3d")
    for command in manifest.contributions.commands:
        module, name = command.python_name.split(":")
        assert callable(getattr(__import__(module, fromlist=[name]), name))


def test_no_qt_binding_is_imported():
    folder = Path(find_spec("marigold3d.napari_plugin").origin).parent
    for file in folder.glob("*.py"):
        assert not any(
            word in file.read_text() for word in ("import PySide", "import PyQt", "from PySide", "from PyQt")
        )


def test_launch_without_a_display_is_one_line(monkeypatch):
    from marigold3d.napari_plugin import launch

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UsageError, match="cannot open a window"):
        launch(None)


# -- readers -----------------------------------------------------------------------------------------------------------


def test_readers_take_only_what_is_theirs(tmp_path, run_folder):
    assert _reader.read_run(str(run_folder))
    assert _reader.read_run(str(run_folder / "run.json"))
    assert _reader.read_run(str(tmp_path)) is None
    assert _reader.read_video("a.MP4")
    assert _reader.read_video("a.tif") is None
    assert _reader.read_cloud("a.ply")
    assert _reader.read_cloud("a.obj") is None
    assert _reader.read_video(["a.mp4", "b.mp4"]) is None


def test_napari_opens_a_run_folder_through_npe2(model, run_folder, npe2pm):
    with npe2pm.tmp_plugin(package="marigold3d"):
        model.open(str(run_folder), plugin="marigold3d")
    assert [layer.name for layer in model.layers] == ["clip", "depth [m]", "sigma [m]", "cloud", "camera path"]


def test_clip_layer_is_lazy_and_exact(model, clip):
    ((data, _, _),) = layers = _reader.read_video(str(clip))(str(clip))
    assert isinstance(data, VideoArray)
    add(model, layers)
    assert model.layers[0].rgb
    model.dims.set_current_step(0, 3)
    assert np.array_equal(np.asarray(model.layers[0]._slice.image.raw), data[3])


# -- layers ------------------------------------------------------------------------------------------------------------


def test_world_axes_are_reversed_once():
    assert to_zyx(np.array([[1.0, 2.0, 3.0]])).tolist() == [[3, 2, 1]]


def test_depth_follows_the_clip_and_covers_it(model, run_folder):
    from marigold3d.store import Run

    run = Run.open(run_folder)
    stack = DepthStack(run, FRAMES)
    assert stack.shape == (FRAMES, HEIGHT, WIDTH)
    assert [stack.nearest_used(i) for i in range(FRAMES)] == [0, 0, 2, 2, 4, 4]
    assert np.isnan(stack[1][0]).all()
    assert np.isclose(stack[1][20, 30], 1, atol=1e-3)
    data, options, kind = depth_layer(stack, "m", (2 * HEIGHT, 2 * WIDTH))
    add(model, [(data, options, kind)])
    low, high = model.layers[0].extent.world
    # The outer pixel edges lie at -0.5 and 2 n - 0.5 of the larger picture's pixels; napari gives pixel centres.
    assert np.allclose(low[1:] - options["scale"][1] / 2, -0.5) or np.allclose(low[1:], -0.5)
    assert np.isclose(high[2] - low[2], 2 * WIDTH, atol=2.01)


def test_large_clouds_are_thinned_for_display(rng):
    n = MAX_POINTS + 5000
    points, ones = rng.random((n, 3)).astype(np.float32), np.ones(n, np.int32)
    cloud = PointCloud(points, np.zeros((n, 3), np.uint8), 0 * points, np.ones(n, np.float32), ones, ones)
    data, options, _ = cloud_layer(cloud)
    assert len(data) == len(options["face_color"]) == MAX_POINTS
    assert options["metadata"]["points_in_file"] == n
    assert np.array_equal(data, cloud_layer(cloud)[0])


def test_frames_and_scene_take_turns(model, run_folder):
    from marigold3d.store import Run

    add(model, run_layers(Run.open(run_folder)))
    show_scene(model)
    assert model.dims.ndisplay == 3
    assert [layer.visible for layer in model.layers] == [False, False, False, True, True]
    show_frames(model)
    assert model.dims.ndisplay == 2
    assert [layer.visible for layer in model.layers] == [True, True, False, False, False]


def test_a_run_outlives_its_clip(model, run_folder, clip):
    from marigold3d.store import Run

    clip.unlink()
    add(model, run_layers(Run.open(run_folder)))
    assert [layer.name for layer in model.layers] == ["depth [m]", "sigma [m]", "cloud", "camera path"]


# -- preview -----------------------------------------------------------------------------------------------------------


def at(i: int, total: int, values: np.ndarray, stage: str = "depth") -> Progress:
    return Progress(stage, i + 1, total, (FramePreview(i, values),))


def test_preview_is_one_layer_written_in_place(model):
    preview = Preview(model)
    for i in range(4):
        preview.update(at(i, 4, np.full((6, 8), 1 + i, np.float32)))
    preview.update(Progress("fuse", 1, 2))
    assert len(model.layers) == 1
    assert model.layers[0].data.shape == (4, 6, 8)
    assert np.array_equal(model.layers[0].data[:, 0, 0], [1, 2, 3, 4])
    assert model.dims.current_step[0] == 3
    limits = model.layers[0].contrast_limits
    preview.update(at(3, 4, np.full((6, 8), 50, np.float32)))
    assert model.layers[0].contrast_limits == limits, "colours flicker"
    preview.update(at(0, 4, np.full((3, 4), 9, np.float32), "sweep"))
    assert np.all(model.layers[0].data[0] == 9), "other stages work at other sizes"
    preview.remove()
    assert not model.layers


def test_preview_shows_every_frame_of_a_progress(model):
    frames = tuple(FramePreview(i, np.full((6, 8), 1 + i, np.float32)) for i in range(5))
    Preview(model).update(Progress("depth", 5, 5, frames))
    assert np.array_equal(model.layers[0].data[:, 0, 0], [1, 2, 3, 4, 5])


def test_preview_of_a_long_clip_is_reduced(model):
    Preview(model).update(at(0, 5000, np.zeros((480, 640), np.float32)))
    assert model.layers[0].data.nbytes < 300 * 2**20


def test_the_cloud_grows_in_one_layer(model, rng):
    preview, total = Preview(model), 0
    for i in range(30):
        points = rng.random((2000, 3), np.float32) + np.float32([i, 0, 0])
        preview.update(Progress("fuse", i + 1, 30, (CloudPreview(points, np.full((2000, 3), i, np.uint8)),)))
        total += 2000
    (layer,) = model.layers
    assert model.dims.ndisplay == 3
    assert total / 4 <= len(layer.data) <= CLOUD_POINTS
    per_view = np.bincount(layer.data[:, 2].astype(int), minlength=30)
    assert per_view.max() < 2 * per_view.min() + 50, "views that came early must not stand out"
    expected = np.floor(layer.data[:, 2]) / 255  # the x of a point says which view it came from, and so its colour
    assert np.allclose(layer.face_color[:, 0], expected, atol=1e-3)
    preview.remove()
    assert not model.layers


def test_display_range_survives_constant_and_empty_maps():
    assert display_range(np.full((2, 2), np.nan, np.float32)) == (0, 1)
    low, high = display_range(np.full((2, 2), 3, np.float32))
    assert low == 3 < high


# -- the worker's messages ---------------------------------------------------------------------------------------------


def counted(closed: list[bool], error: Exception | None = None) -> Iterator[Progress]:
    try:
        for i in range(100):
            yield Progress("depth", i + 1, 100, i)
        if error is not None:
            raise error
        return "the run"
    finally:
        closed.append(True)


def test_throttling_keeps_ends_and_loses_nothing():
    closed, seen = [], []
    assert run(throttled(counted(closed), clock=lambda: 0.0), seen.append) == "the run"
    assert [p.done for p in seen] == [1, 100]
    assert sum((p.payload for p in seen), ()) == tuple(range(100))
    assert closed == [True]


def test_errors_are_returned():
    failed = run(throttled(counted([], RuntimeError("out of luck"))))
    assert isinstance(failed, Failed)
    assert str(failed.error) == "out of luck"


def test_stopping_closes_the_steps_after_the_one_under_way():
    closed, control, seen = [], Control(), []

    def see(progress: Progress) -> None:
        seen.append(progress.done)
        if len(seen) == 3:
            control.stop.set()

    assert run(throttled(counted(closed), control, interval_s=0), see) == Stopped()
    assert seen == [1, 2, 3]
    assert closed == [True]


def test_a_pause_holds_and_ends():
    closed, control, seen = [], Control(), []
    thread = Thread(target=lambda: run(throttled(counted(closed), control, interval_s=0), seen.append))
    control.go.clear()
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    assert not seen
    control.go.set()
    thread.join(10)
    assert len(seen) == 100
    stopped = Control()
    stopped.go.clear()
    stopped.stop.set()
    assert run(throttled(counted([]), stopped)) == Stopped(), "a paused run can be stopped"


# -- how the scene looks -----------------------------------------------------------------------------------------------


def test_the_scene_is_not_mirrored(model, run_folder):
    """x to the right, y down, z away: any other handedness shows a mirror image."""
    from marigold3d.store import Run

    add(model, run_layers(Run.open(run_folder), scene=True))
    show_scene(model)
    assert tuple(str(getattr(o, "value", o)) for o in camera_of(model).orientation) == ("away", "down", "right")


def test_small_points_keep_their_colours(run_folder):
    """Points of a pixel or two are drawn in the border's colour."""
    from marigold3d.store import Run

    layers = run_layers(Run.open(run_folder), scene=True)
    options = next(options for _, options, kind in layers if kind == "points")
    np.testing.assert_array_equal(options["border_color"], options["face_color"])
