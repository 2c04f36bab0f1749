"""The panels in a real window (Xvfb will do): reconstruct, stop, resume, measure, rescale, edit, export, reopen."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("napari", reason="napari is not installed: pip install 'marigold3d[napari]'")
if find_spec("marigold3d.napari_plugin") is None:
    pytest.skip("the plugin is part of the installed package: pip install -e .", allow_module_level=True)

from marigold3d.errors import GeometryError, UsageError
from marigold3d.export.ply import read_ply
from marigold3d.progress import Progress
from marigold3d.store import Run
from tests.gui import ARTEFACTS, CLIP, fake_steps, make_clip, make_run, require_window

pytestmark = pytest.mark.gui


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4")


@pytest.fixture
def viewer(request):
    require_window()
    return request.getfixturevalue("make_napari_viewer_proxy")(show=True)


def open_panel(viewer, pipeline=fake_steps):
    from marigold3d.napari_plugin._panel import ReconstructionPanel

    panel = ReconstructionPanel(viewer, pipeline)
    viewer.window.add_dock_widget(panel, name="Reconstruct video")
    return panel


def open_explorer(viewer):
    from marigold3d.napari_plugin._explore import ExplorePanel

    explorer = ExplorePanel(viewer)
    viewer.window.add_dock_widget(explorer, name="Explore scene")
    return explorer


def add_run(viewer, run: Run):
    from marigold3d.napari_plugin._layers import add_layers, run_layers, show_scene

    add_layers(viewer, run_layers(run, scene=True))
    show_scene(viewer)


def keep_screenshot(viewer, name: str) -> np.ndarray:
    ARTEFACTS.mkdir(exist_ok=True)
    image = viewer.screenshot(canvas_only=False, flash=False)
    Image.fromarray(image).convert("RGB").save(ARTEFACTS / name)
    return image


def colorful(image: np.ndarray) -> float:
    """Share of the pixels that are not grey."""
    return float((np.ptp(image[..., :3].astype(int), axis=2) > 100).mean())


def last_notification() -> str:
    from napari.utils.notifications import notification_manager

    return str(notification_manager.records[-1].message)


# -- reconstruct -------------------------------------------------------------------------------------------------------


def test_panel_runs_to_a_scene(viewer, qtbot, clip):
    panel = open_panel(viewer)
    panel.load(clip)
    assert panel.clip.value == clip
    assert panel.run_folder() == clip.parent / "clip_3d"
    panel.run()
    assert not panel.run_button.enabled
    assert panel.stop_button.enabled
    qtbot.waitUntil(lambda: not panel.running, timeout=30_000)
    assert {layer.name for layer in viewer.layers} == {
        *("clip", "depth [m]", "sigma [m]", "cloud", "camera path", "camera", "frame")
    }
    assert any(name.startswith("Explore scene") for name in viewer.window.dock_widgets), "what comes next is at hand"
    assert viewer.dims.ndisplay == 3
    assert panel.status.value.startswith("done")
    qtbot.wait(300)
    assert colorful(keep_screenshot(viewer, "panel_fake.png")) > 0.01, "the coloured cloud is not in the picture"


def test_settings_reach_the_pipeline(viewer, qtbot, clip, tmp_path):
    calls = []

    def pipeline(*args, **options):
        calls.append((args, options))
        return fake_steps(*args, **options)

    panel = open_panel(viewer, pipeline)
    panel.load(clip)
    panel.camera.value = "field of view"
    panel.camera_value.value, panel.stride.value, panel.overwrite.value = 63, 4, True
    panel.steps.value, panel.ensemble.value, panel.device.value, panel.voxel.value = 2, 5, "cpu", 0.05
    panel.refine.value = False
    panel.run()
    qtbot.waitUntil(lambda: not panel.running, timeout=30_000)
    (((path, folder, config), options),) = calls
    assert (path, folder, options) == (clip, clip.parent / "clip_3d", {"overwrite": True})
    assert (config.camera.fov_deg, config.video.stride, config.depth.model) == (63, 4, "compact")
    assert (config.depth.steps, config.depth.ensemble, config.depth.device) == (2, 5, "cpu")
    assert (config.fusion.voxel, config.refine.enabled) == (0.05, False)
    for kind, value, name in (("focal length", 500, "focal_px"), ("35 mm", 26, "focal_35mm")):
        panel.camera.value, panel.camera_value.value = kind, value
        assert getattr(panel.config().camera, name) == value
    panel.camera.value, panel.camera_file.value = "from a file", tmp_path / "K.txt"
    assert panel.config().camera.file == tmp_path / "K.txt"


def test_only_widgets_that_matter_are_shown(viewer, qtbot, clip):
    panel = open_panel(viewer)
    qtbot.wait(100)
    assert not panel.camera_value.visible
    assert not panel.settings.visible
    panel.camera.value, panel.more.value, panel.cues.value = "field of view", True, "from a points layer"
    assert panel.camera_value.visible
    assert panel.settings.visible
    assert panel.new_cues.visible
    assert not panel.cue_file.visible
    keep_screenshot(viewer, "panel_settings.png")


def test_points_of_known_depth_become_cues(viewer, qtbot, clip):
    calls = []

    def pipeline(path, folder, config, **options):
        calls.append(config)
        return fake_steps(path, folder, config, **options)

    panel = open_panel(viewer, pipeline)
    panel.load(clip)
    panel.cues.value = "from a points layer"
    panel.run()
    assert "layer of known depths" in last_notification()
    panel.cue_depth.value = 2.5
    panel.new_cues.changed.emit(True)
    viewer.layers["known depths"].add([[0, 20, 30]])
    panel.cue_depth.value = 4.0
    viewer.layers["known depths"].add([[2, 20, 30]])
    panel.run()
    qtbot.waitUntil(lambda: not panel.running, timeout=30_000)
    (file,) = calls[0].align.cues
    assert calls[0].align.cue_units == "m"
    assert Path(file).read_text().split() == ["frame,u,v,depth", "0,30.500,20.500,2.5", "2,30.500,20.500,4"]


def endless(closed: list[bool]):
    def pipeline(*args, **options) -> Iterator[Progress]:
        try:
            while True:
                yield Progress("depth", 1, 1)
        finally:
            closed.append(True)

    return pipeline


def test_stop_closes_the_pipeline_and_run_works_again(viewer, qtbot, clip):
    closed = []
    panel = open_panel(viewer, endless(closed))
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


def test_pause_holds_the_run(viewer, qtbot, clip):
    steps = []

    def pipeline(*args, **options) -> Iterator[Progress]:
        while True:
            steps.append(1)
            yield Progress("depth", len(steps), None)

    panel = open_panel(viewer, pipeline)
    panel.load(clip)
    panel.run()
    qtbot.waitUntil(lambda: len(steps) > 10, timeout=10_000)
    panel.pause()
    assert panel.pause_button.text == "Go on"
    qtbot.wait(200)
    held = len(steps)
    qtbot.wait(300)
    assert len(steps) == held
    panel.pause()
    qtbot.waitUntil(lambda: len(steps) > held + 10, timeout=10_000)
    panel.pause()
    panel.stop()
    qtbot.waitUntil(lambda: not panel.running, timeout=10_000)
    assert panel.pause_button.text == "Pause"


def test_a_panel_that_is_closed_ends_its_run(viewer, qtbot, clip):
    closed = []
    panel = open_panel(viewer, endless(closed))
    panel.load(clip)
    panel.run()
    qtbot.wait(100)
    viewer.window.remove_dock_widget(panel.native)
    panel.native.deleteLater()
    qtbot.waitUntil(lambda: bool(closed), timeout=10_000)
    qtbot.wait(300)  # no message may reach what is gone


def test_errors_are_one_line_notifications(viewer, qtbot, clip):
    def failing(*args, **options):
        yield Progress("poses", 0, None)
        raise GeometryError("the camera does not move: pass --static")

    panel = open_panel(viewer, failing)
    panel.run()  # no clip chosen
    assert "choose a clip" in last_notification()
    panel.load(clip)
    panel.run()
    qtbot.waitUntil(lambda: not panel.running, timeout=10_000)
    assert last_notification() == "the camera does not move: pass --static"
    assert panel.run_button.enabled
    with pytest.raises(UsageError, match="neither"):
        panel.load(clip.with_suffix(".txt"))


# -- explore -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def explorer(viewer, clip, tmp_path):
    panel = open_explorer(viewer)
    add_run(viewer, make_run(tmp_path / "clip_3d", clip))
    return panel


def test_a_run_that_is_opened_can_be_explored(viewer, qtbot, explorer):
    assert explorer.scene is not None
    assert "points in metres" in explorer.title.value
    assert explorer.view.value == "scene"
    qtbot.wait(300)
    assert colorful(keep_screenshot(viewer, "explore_fake.png")) > 0.01
    viewer.layers["cloud"].name = "mine"
    explorer.view.value = "frames"
    assert viewer.dims.ndisplay == 2
    assert not viewer.layers["mine"].visible


def test_the_sliders_move_together(viewer, qtbot, explorer):
    explorer.frame.value = 4
    qtbot.waitUntil(lambda: explorer.scene.frame == 4, timeout=5_000)
    explorer.view.value = "frames"
    assert viewer.dims.current_step[0] == 4
    viewer.dims.set_point(0, 2)
    qtbot.waitUntil(lambda: explorer.scene.frame == 2, timeout=5_000)
    assert explorer.frame.value == 2
    explorer.shortcuts()["Alt-Right"](viewer)
    qtbot.waitUntil(lambda: explorer.scene.frame == 4, timeout=5_000)
    assert round(viewer.dims.point[0]) == 4


def test_colours_and_filters_act(viewer, qtbot, explorer):
    explorer.color.value = "depth"
    assert "distance [m]" in explorer.legend.value
    n = len(explorer.scene.cloud)
    explorer.observations.value = 2
    qtbot.waitUntil(lambda: explorer.kept.value == f"0 of {n:,} points", timeout=5_000)
    explorer.observations.value = 1
    qtbot.waitUntil(lambda: explorer.kept.value == f"{n:,} of {n:,} points", timeout=5_000)


def test_measure_then_scale_then_export_then_reopen(viewer, qtbot, explorer, tmp_path):
    explorer.view.value, explorer.measuring.click.value = "frames", "measures"
    explorer.measuring.clicked((2, 40, 4))
    explorer.measuring.clicked((2, 40, 14))
    before, _ = explorer.ruler.length()
    assert "±" in explorer.measuring.marked.value
    explorer.measuring.true_length.value = round(2 * before, 3)
    factor = explorer.measuring.true_length.value / before
    old = explorer.scene.cloud
    explorer.measuring.set_scale()
    assert np.allclose(explorer.scene.cloud.points, factor * old.points, rtol=1e-3, atol=1e-3)
    assert np.isclose(explorer.ruler.length()[0], explorer.measuring.true_length.value, rtol=5e-3)
    assert explorer.status.value
    explorer.target.value = tmp_path / "kitchen.ply"
    explorer.export()
    assert np.allclose(read_ply(tmp_path / "kitchen.ply").points, explorer.scene.cloud.points)
    assert read_ply(tmp_path / "kitchen.ply").units == "m"
    keep_screenshot(viewer, "explore_measured.png")
    path = explorer.scene.run.path
    viewer.layers.clear()
    add_run(viewer, Run.open(path))
    assert np.allclose(explorer.scene.cloud.points, factor * old.points, rtol=1e-3, atol=1e-3)


def test_a_click_in_the_cloud_and_one_in_a_frame_meet(viewer, qtbot, explorer):
    explorer.measuring.click.value = "marks a point"
    explorer.measuring.clicked((-5.0, 0.0, 0.0), (1.0, 0.0, 0.0))
    (point,) = explorer.ruler.points
    assert np.isclose(point.point[2], 1, atol=0.02)
    explorer.view.value = "frames"
    frame, (u, v) = point.frame, point.uv
    explorer.measuring.clicked((frame, v - 0.5, u - 0.5))
    assert np.allclose(explorer.ruler.points[0].point, point.point, atol=0.02)


def test_clicks_in_the_canvas_arrive(viewer, qtbot, explorer):
    """Through Qt: a press and a release without movement mark, a drag turns the view."""
    from qtpy.QtCore import QPoint, Qt

    canvas = _canvas()
    explorer.view.value, explorer.measuring.click.value = "frames", "marks a point"
    qtbot.wait(200)
    middle = QPoint(canvas.width() // 2, canvas.height() // 2)
    qtbot.mouseMove(canvas, middle)
    qtbot.mouseClick(canvas, Qt.LeftButton, pos=middle)
    qtbot.waitUntil(lambda: len(explorer.ruler.points) == 1, timeout=5_000)
    u, v = explorer.ruler.points[0].uv
    assert abs(u - 32) < 3
    assert abs(v - 24) < 3


def _canvas():
    """The widget that is drawn on, by Qt's own tree: napari has no public name for it."""
    from qtpy.QtWidgets import QApplication

    return next(w for w in QApplication.allWidgets() if type(w).__name__ == "CanvasBackendDesktop" and w.isVisible())


def test_painting_removes_and_undo_brings_back(viewer, qtbot, explorer):
    n = len(explorer.scene.cloud)
    explorer.editing.exclude()
    assert "Paint what to leave out" in last_notification()
    explorer.editing.paint()
    mask = viewer.layers["leave out"]
    assert mask.data.shape[0] == 6
    mask.data[:, 16:32, 24:40] = 1
    explorer.editing.scope.value = "the same pixels in every frame"
    explorer.editing.exclude()
    qtbot.waitUntil(lambda: not explorer._worker.running, timeout=60_000)
    assert "points before" in explorer.status.value, explorer.status.value
    assert 0 < len(explorer.scene.cloud) < n
    assert not (explorer.scene.cloud.points[:, 2] < 1.5).any(), "the box is still there"
    explorer.editing.undo()
    qtbot.waitUntil(lambda: not explorer._worker.running, timeout=60_000)
    assert (explorer.scene.cloud.points[:, 2] < 1.5).any()
    assert not explorer.editing.undo_button.enabled


def test_advice_where_something_is_missing(viewer, qtbot, explorer):
    explorer.measuring.set_scale()
    assert "how long it really is" in last_notification()
    explorer.measuring.true_length.value = 2
    explorer.measuring.set_scale()
    assert "two ends" in last_notification()
    explorer.export()
    assert "where to save" in last_notification()
    explorer.view.value, explorer.measuring.click.value = "frames", "marks a point"
    explorer.measuring.clicked((3, 20, 20))
    assert "click again" in last_notification()
    explorer.measuring.clicked((2, -9, 20))
    assert "no depth at pixel" in last_notification()


# -- the real thing ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_clip_from_drop_to_export(viewer, qtbot, tmp_path):
    """Reconstructed with a stop on the way, resumed, looked at, measured, scaled, exported and opened again."""
    panel, explorer = open_panel(viewer, pipeline=None), open_explorer(viewer)
    panel.load(CLIP)
    panel.output.value, panel.stride.value = tmp_path / "run", 6
    panel.run()
    qtbot.waitUntil(lambda: "depth (in progress)" in viewer.layers or not panel.running, timeout=300_000)
    keep_screenshot(viewer, "panel_running.png")
    panel.stop()
    qtbot.waitUntil(lambda: not panel.running, timeout=20_000)
    assert panel.status.value.startswith("stopped"), panel.status.value
    assert (tmp_path / "run" / "run.json").is_file()
    grew = []
    panel.run()

    def finished() -> bool:
        if "cloud (in progress)" in viewer.layers:
            grew.append(len(viewer.layers["cloud (in progress)"].data))
        return not panel.running

    qtbot.waitUntil(finished, timeout=600_000)
    assert panel.status.value.startswith("done"), panel.status.value
    assert grew, "the cloud was not seen growing"
    assert grew == sorted(grew)
    assert {"cloud", "camera path", "depth [arbitrary]"} <= {layer.name for layer in viewer.layers}
    assert explorer.scene is not None
    explorer.frame.value = explorer.scene.frames[len(explorer.scene.frames) // 2]
    qtbot.wait(500)
    assert colorful(keep_screenshot(viewer, "panel_done.png")) > 0.01

    explorer.view.value, explorer.measuring.click.value = "frames", "measures"
    frame = explorer.scene.frame
    explorer.measuring.clicked((frame, 180, 150))
    explorer.measuring.clicked((frame, 180, 330))
    before, sigma = explorer.ruler.length()
    assert 0 < sigma < 0.3 * before
    explorer.measuring.true_length.value = 1.5
    explorer.measuring.set_scale()
    assert np.isclose(explorer.ruler.length()[0], 1.5, rtol=0.01)
    assert explorer.scene.cloud.units == "m"
    qtbot.wait(300)
    keep_screenshot(viewer, "example_measured_frame.png")
    explorer.view.value = "scene"
    qtbot.wait(500)
    keep_screenshot(viewer, "example_measured_scene.png")
    explorer.target.value = tmp_path / "scene.ply"
    explorer.export()
    assert len(read_ply(tmp_path / "scene.ply")) == len(explorer.scene.cloud)
    viewer.layers.clear()
    panel.load(tmp_path / "run")
    assert explorer.scene.cloud.units == "m"


def test_every_widget_explains_itself(viewer):
    """Labels and boxes need not."""
    from magicgui.widgets import Container, Label

    def explained(box: Container) -> Iterator[bool]:
        for widget in box:
            if isinstance(widget, Container):
                yield from explained(widget)
            elif not isinstance(widget, Label):
                assert widget.tooltip, widget
                yield True

    assert sum(explained(open_panel(viewer))) > 15
    assert sum(explained(open_explorer(viewer))) > 12
