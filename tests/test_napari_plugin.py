"""The plugin: what discovery costs, the readers and layers on a bare model, the panel in a real window."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("napari", reason="napari is not installed: pip install 'marigold3d[napari]'")
if find_spec("marigold3d.napari_plugin") is None:
    pytest.skip("the plugin is part of the installed package: pip install -e .", allow_module_level=True)

from marigold3d.napari_plugin import _reader
from marigold3d.napari_plugin._layers import (
    MAX_POINTS,
    cloud_layer,
    depth_layer,
    run_layers,
    show_frames,
    show_scene,
    to_zyx,
)
from marigold3d.napari_plugin._preview import DepthPreview, throttled
from marigold3d.napari_plugin._stacks import DepthStack, display_range

from marigold3d.errors import GeometryError, UsageError
from marigold3d.progress import FramePreview, Progress, run
from marigold3d.types import PointCloud
from marigold3d.video_array import VideoArray
from tests.gui import ARTEFACTS, CLIP, FRAMES, HEIGHT, WIDTH, fake_steps, make_clip, make_run, require_window


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
    assert _reader.read_ply("a.ply")
    assert _reader.read_ply("a.obj") is None
    assert _reader.read_video(["a.mp4", "b.mp4"]) is None


def test_napari_opens_a_run_folder_through_npe2(model, run_folder, npe2pm):
    with npe2pm.tmp_plugin(package="marigold3d"):
        model.open(str(run_folder), plugin="marigold3d")
    assert [layer.name for layer in model.layers] == ["clip", "depth [m]", "cloud", "camera path"]


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
    assert [layer.visible for layer in model.layers] == [False, False, True, True]
    show_frames(model)
    assert model.dims.ndisplay == 2
    assert [layer.visible for layer in model.layers] == [True, True, False, False]


def test_a_run_outlives_its_clip(model, run_folder, clip):
    from marigold3d.store import Run

    clip.unlink()
    add(model, run_layers(Run.open(run_folder)))
    assert [layer.name for layer in model.layers] == ["depth [m]", "cloud", "camera path"]


# -- preview -----------------------------------------------------------------------------------------------------------


def test_preview_is_one_layer_written_in_place(model):
    preview = DepthPreview(model)
    for i in range(4):
        preview.update(Progress("depth", i + 1, 4, FramePreview(i, np.full((6, 8), 1 + i, np.float32))))
    preview.update(Progress("fuse", 1, 2))
    assert len(model.layers) == 1
    assert model.layers[0].data.shape == (4, 6, 8)
    assert np.array_equal(model.layers[0].data[:, 0, 0], [1, 2, 3, 4])
    assert model.dims.current_step[0] == 3
    limits = model.layers[0].contrast_limits
    preview.update(Progress("depth", 4, 4, FramePreview(3, np.full((6, 8), 50, np.float32))))
    assert model.layers[0].contrast_limits == limits, "colours flicker"
    preview.update(Progress("sweep", 1, 4, FramePreview(0, np.full((3, 4), 9, np.float32))))
    assert np.all(model.layers[0].data[0] == 9), "other stages work at other sizes"
    preview.remove()
    assert not model.layers


def test_preview_of_a_long_clip_is_reduced(model):
    DepthPreview(model).update(Progress("depth", 1, 5000, FramePreview(0, np.zeros((480, 640), np.float32))))
    assert model.layers[0].data.nbytes < 300 * 2**20


def test_display_range_survives_constant_and_empty_maps():
    assert display_range(np.full((2, 2), np.nan, np.float32)) == (0, 1)
    low, high = display_range(np.full((2, 2), 3, np.float32))
    assert low == 3 < high


def test_throttling_keeps_ends_and_returns_errors():
    closed = []

    def steps() -> Iterator[Progress]:
        try:
            for i in range(100):
                yield Progress("depth", i + 1, 100)
            raise RuntimeError("out of luck")
        finally:
            closed.append(True)

    seen = []
    failed = run(throttled(steps(), clock=lambda: 0.0), lambda progress: seen.append(progress.done))
    assert isinstance(failed.error, RuntimeError)
    assert seen == [1, 100]
    assert len(closed) == 1

    generator = throttled(steps())
    next(generator)
    generator.close()
    assert len(closed) == 2, "the pipeline must be closed with it"


# -- the panel in a window ---------------------------------------------------------------------------------------------


@pytest.fixture
def viewer(request):
    require_window()
    return request.getfixturevalue("make_napari_viewer_proxy")(show=True)


def open_panel(viewer, pipeline=fake_steps):
    from marigold3d.napari_plugin._panel import ReconstructionPanel

    panel = ReconstructionPanel(viewer, pipeline)
    viewer.window.add_dock_widget(panel, name="Reconstruct video")
    return panel


def keep_screenshot(viewer, name: str) -> np.ndarray:
    ARTEFACTS.mkdir(exist_ok=True)
    image = viewer.screenshot(canvas_only=False, flash=False)
    Image.fromarray(image).convert("RGB").save(ARTEFACTS / name)
    return image


@pytest.mark.gui
def test_panel_runs_to_a_scene(viewer, qtbot, clip):
    panel = open_panel(viewer)
    panel.load(clip)
    assert panel.clip.value == clip
    assert panel.run_folder() == clip.parent / "clip_3d"
    panel.run()
    assert not panel.run_button.enabled
    assert panel.stop_button.enabled
    qtbot.waitUntil(lambda: not panel.running, timeout=30_000)
    assert [layer.name for layer in viewer.layers] == ["clip", "depth [m]", "cloud", "camera path"]
    assert viewer.dims.ndisplay == 3
    assert panel.status.value.startswith("done")
    qtbot.wait(300)
    image = keep_screenshot(viewer, "panel_fake.png")
    assert (np.ptp(image[..., :3].astype(int), axis=2) > 100).mean() > 0.01, "the coloured cloud is not in the picture"


@pytest.mark.gui
def test_settings_reach_the_pipeline(viewer, qtbot, clip):
    calls = []

    def pipeline(*args, **options):
        calls.append((args, options))
        return fake_steps(*args, **options)

    panel = open_panel(viewer, pipeline)
    panel.load(clip)
    panel.fov.value, panel.stride.value, panel.overwrite.value = 63, 4, True
    panel.run()
    qtbot.waitUntil(lambda: not panel.running, timeout=30_000)
    (((path, folder, config), options),) = calls
    assert (path, folder, options) == (clip, clip.parent / "clip_3d", {"overwrite": True})
    assert (config.camera.fov_deg, config.video.stride, config.depth.model) == (63, 4, "compact")


@pytest.mark.gui
def test_stop_closes_the_pipeline_and_run_works_again(viewer, qtbot, clip):
    closed = []

    def endless(*args, **options):
        try:
            while True:
                yield Progress("depth", 1, 1)
        finally:
            closed.append(True)

    panel = open_panel(viewer, endless)
    panel.load(clip)
    panel.run()
    qtbot.wait(100)
    panel.stop()
    qtbot.waitUntil(lambda: not panel.running, timeout=10_000)
    assert closed
    assert panel.run_button.enabled
    assert panel.status.value.startswith("stopped")
    panel._pipeline = fake_steps
    panel.run()
    qtbot.waitUntil(lambda: not panel.running, timeout=30_000)
    assert "cloud" in viewer.layers


@pytest.mark.gui
def test_errors_are_one_line_notifications(viewer, qtbot, clip):
    from napari.utils.notifications import notification_manager

    def failing(*args, **options):
        yield Progress("poses", 0, None)
        raise GeometryError("the camera does not move: pass --static")

    panel = open_panel(viewer, failing)
    panel.run()  # no clip chosen
    assert "choose a clip" in str(notification_manager.records[-1].message)
    panel.load(clip)
    panel.run()
    qtbot.waitUntil(lambda: not panel.running, timeout=10_000)
    assert str(notification_manager.records[-1].message) == "the camera does not move: pass --static"
    assert panel.run_button.enabled
    with pytest.raises(UsageError, match="neither"):
        panel.load(clip.with_suffix(".txt"))


@pytest.mark.gui
@pytest.mark.slow
def test_panel_reconstructs_the_example_clip(viewer, qtbot, tmp_path):
    if not CLIP.is_file() or find_spec("marigold3d.pipeline") is None:
        pytest.skip("examples/clip.mp4 or the pipeline is not there yet")
    panel = open_panel(viewer, pipeline=None)
    panel.load(CLIP)
    panel.output.value, panel.stride.value = tmp_path / "run", 8
    panel.run()
    qtbot.waitUntil(lambda: "depth (in progress)" in viewer.layers or not panel.running, timeout=300_000)
    qtbot.wait(4000)
    keep_screenshot(viewer, "panel_running.png")
    qtbot.waitUntil(lambda: not panel.running, timeout=600_000)
    assert panel.status.value.startswith("done"), panel.status.value
    assert {"cloud", "camera path"} <= {layer.name for layer in viewer.layers}
    qtbot.wait(500)
    keep_screenshot(viewer, "panel_done.png")


def test_the_scene_is_not_mirrored(model, run_folder):
    """x to the right, y down, z away: any other handedness shows a mirror image."""
    from marigold3d.store import Run

    add(model, run_layers(Run.open(run_folder), scene=True))
    show_scene(model)
    assert tuple(str(getattr(o, "value", o)) for o in model.camera.orientation) == ("away", "down", "right")


def test_small_points_keep_their_colours(run_folder):
    """Points of a pixel or two are drawn in the border's colour."""
    from marigold3d.store import Run

    layers = run_layers(Run.open(run_folder), scene=True)
    options = next(options for _, options, kind in layers if kind == "points")
    np.testing.assert_array_equal(options["border_color"], options["face_color"])
