"""The panel "Explore scene": what of a finished run is shown, what a click means, its scale, its edits, its export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

import numpy as np
from magicgui.widgets import (
    CheckBox,
    ComboBox,
    Container,
    FileEdit,
    Label,
    PushButton,
    Slider,
)
from psygnal import Signal

from marigold3d.cloud_colors import COLORINGS
from marigold3d.errors import Marigold3DError, OutputError, UsageError
from marigold3d.export.clouds import write_cloud
from marigold3d.progress import Progress, Steps
from marigold3d.store import Run

from ._activity import Activity, tell_error
from ._edit_box import EditBox
from ._layers import ROLE, RUN, camera_of, reload_maps, show_frames, show_scene
from ._measure_box import MeasureBox
from ._panel import path_of
from ._preferences import preferences
from ._ruler import Ruler
from ._scene import Filter, SceneView
from ._worker import Failed, Stopped, Worker

if TYPE_CHECKING:
    import napari.viewer

MIN_WIDTH, TEXT_WIDTH = 400, 270  # px, of the panel and of what it says
SETTLED_MS = 300  # without movement: the view has come to rest
SLIDER_MS = 100  # between two updates while a slider is dragged
CLOUD_SUFFIXES = (".ply", ".laz", ".las", ".glb")


class ExplorePanel(Container):  # type: ignore[misc]
    """Look at a run from all sides, measure in it, give it its true size, leave out what does not belong, export it."""

    opened = Signal()  # another run is explored now
    _panels: ClassVar[WeakSet[ExplorePanel]] = WeakSet()

    @classmethod
    def of(cls, viewer: napari.viewer.Viewer) -> ExplorePanel | None:
        """The viewer's panel, None when it has none."""
        return next((panel for panel in cls._panels if panel._viewer == viewer and not panel.closed), None)

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        from superqt.utils import qdebounced, qthrottled

        self._viewer = viewer
        self.scene: SceneView | None = None
        self.ruler: Ruler | None = None
        self._activity, self._worker = Activity(), Worker(self._on_progress, self._on_end)
        self._opening, self._highlighted, self.closed = False, -1, False
        super().__init__(widgets=self._make_widgets())
        self.min_width = MIN_WIDTH
        self._apply_filter = qthrottled(self._filter, timeout=SLIDER_MS)
        self._look = qthrottled(self._look_now, timeout=SLIDER_MS)
        self._settled = qdebounced(self._refine, timeout=SETTLED_MS)
        self._connect()
        self._panels.add(self)
        self.enable()
        self._open_latest()

    # -- widgets ------------------------------------------------------------------------------------------------------

    def _make_widgets(self) -> list[Any]:
        self.title = Label(label="scene", value="open a run folder, or reconstruct a clip")
        self.view = ComboBox(label="show", choices=("frames", "scene"), value="frames")
        self.view.tooltip = "The clip with its depth, or the cloud with the cameras (F6)"
        self.frame = Slider(label="frame", min=0, max=1, value=0)
        self.frame.tooltip = "Moves the drawn camera and marks what it sees (Alt-Left, Alt-Right)"
        self.color = ComboBox(label="colour by", choices=COLORINGS, value="rgb")
        self.color.tooltip = "The clip's colours, or what is known of each point"
        self.legend = Label(label=" ", value="")
        self.sigma = Slider(label="surest [%]", min=1, max=100, value=100)
        self.sigma.tooltip = "Show this share of the points, those with the smallest standard deviation"
        self.observations = Slider(label="seen at least by", min=1, max=2, value=1)
        self.observations.tooltip = "Hide points that fewer frames have seen"
        self.highlight = CheckBox(text="darken what the frame does not see", value=False)
        self.highlight.tooltip = "Points that the frame of the slider does not see, once the slider rests"
        self.kept = Label(label=" ", value="")
        self.measuring, self.editing = MeasureBox(self._viewer, self), EditBox(self._viewer, self)
        return [
            *(self.title, self.view, self.frame, self.color, self.legend, self.sigma, self.observations),
            *(self.kept, self.highlight, self.measuring, self.editing, *self._make_export()),
        ]

    def _make_export(self) -> list[Any]:
        patterns = " ".join(f"*{suffix}" for suffix in CLOUD_SUFFIXES)
        self.target = FileEdit(label="save as", mode="w", filter=f"Cloud ({patterns})", nullable=True, value=None)
        self.target.tooltip = "The whole cloud, not the share that is shown, without the points the sliders hide"
        self.export_button = PushButton(text="Export the cloud", tooltip="In metres once the scale is set")
        self.stop_button = PushButton(text="Stop", visible=False, tooltip="The scene stays as it was")
        self.status = Label(label=" ", value="")
        for label in (self.title, self.legend, self.kept, self.measuring.marked, self.status):
            label.min_width = TEXT_WIDTH  # a label keeps the width of its first text
        return [self.target, self.export_button, self.stop_button, self.status]

    def _connect(self) -> None:
        viewer = self._viewer
        self.view.changed.connect(self._show)
        self.frame.changed.connect(self._look)
        self.color.changed.connect(self._color)
        self.sigma.changed.connect(self._apply_filter)
        self.observations.changed.connect(self._apply_filter)
        self.highlight.changed.connect(self._highlight)
        self.export_button.changed.connect(self.export)
        self.stop_button.changed.connect(self._worker.stop)
        viewer.layers.events.inserted.connect(self._on_inserted)
        viewer.layers.events.removed.connect(self._on_removed)
        viewer.layers.selection.events.active.connect(self._on_active)
        viewer.dims.events.current_step.connect(self._on_step)
        viewer.dims.events.ndisplay.connect(self._on_ndisplay)
        events = camera_of(viewer).events
        for event in (events.zoom, events.center, events.angles):
            event.connect(self._settled)
        for key, action in self.shortcuts().items():
            viewer.bind_key(key, action, overwrite=True)
        self.native.destroyed.connect(self._on_destroyed)

    def _on_destroyed(self, *_: Any) -> None:
        self.closed = True
        self._worker.abandon()

    def shortcuts(self) -> dict[str, Callable[[Any], None]]:
        """Keys of the viewer and what they do."""
        return {
            "F6": lambda _: self._toggle_view(),
            "F7": lambda _: self.measuring.toggle(),
            "F8": lambda _: self.measuring.clear_marks(),
            "Alt-Left": lambda _: self._step(-1),
            "Alt-Right": lambda _: self._step(1),
        }

    def enable(self) -> None:
        """Only what makes sense now can be pressed."""
        ready = self.scene is not None and not self._worker.running
        for widget in (self.view, self.frame, self.color, self.sigma, self.observations, self.highlight):
            widget.enabled = ready
        self.target.enabled = self.export_button.enabled = ready
        posed = ready and self.scene is not None and self.scene.surfaces is not None
        self.measuring.enable(posed)
        self.editing.enable(posed)
        self.stop_button.visible = self._worker.running

    # -- which run ----------------------------------------------------------------------------------------------------

    def open(self, run: Run) -> None:
        """Explore a run. InputError when it has no cloud."""
        self.close_run()
        with self._own_layers():
            self.scene = SceneView(self._viewer, run, preferences().points)
        self.ruler = Ruler(self._viewer, self.scene)
        frames = self.scene.frames
        self._tell_title()
        with self.frame.changed.blocked():
            self.frame.min, self.frame.max = (frames[0], max(frames[-1], frames[0] + 1)) if frames else (0, 1)
            self.frame.value = self.scene.frame
        self._reset_sliders()
        self._color(self.color.value)
        with self.view.changed.blocked():
            self.view.value = "scene" if self._viewer.dims.ndisplay == 3 else "frames"
        self.measuring.tell_marks()
        self.enable()
        self.opened.emit()

    def _tell_title(self) -> None:
        if self.scene is not None:
            scale = "in metres" if self.scene.cloud.units == "m" else "without a true scale"
            self.title.value = f"{len(self.scene.cloud):,} points {scale}"
            self.title.tooltip = str(self.scene.run.path)

    @contextmanager
    def _own_layers(self) -> Iterator[None]:
        """While a scene adds layers of its own: those are not news."""
        self._opening = True
        try:
            yield
        finally:
            self._opening = False

    def close_run(self) -> None:
        """Take marks and the drawn camera away; the run's own layers stay."""
        for part in (self.ruler, self.scene):
            if part is not None:
                part.close()
        self.scene = self.ruler = None
        self.enable()

    def _reset_sliders(self) -> None:
        cloud = self.scene.cloud  # type: ignore[union-attr]
        most = int(np.percentile(cloud.observations, 99)) if len(cloud) else 1
        with self.sigma.changed.blocked(), self.observations.changed.blocked():
            self.sigma.value = 100
            self.observations.min, self.observations.max, self.observations.value = 1, max(most, 2), 1
        self.kept.value = f"all {len(cloud):,} points"

    def _open_latest(self) -> None:
        for layer in reversed(self._viewer.layers):
            if layer.metadata.get(ROLE) == "cloud" and RUN in layer.metadata:
                self._open_path(layer.metadata[RUN])
                return

    def _on_inserted(self, event: Any) -> None:
        metadata = event.value.metadata
        if metadata.get(ROLE) == "cloud" and RUN in metadata and not self._opening:  # else it is this scene's own
            self._open_path(metadata[RUN])

    def _on_removed(self, event: Any) -> None:
        """Without its cloud there is nothing to explore; the viewer may be closing, so nothing else is touched."""
        metadata = event.value.metadata
        path = None if self.scene is None else str(self.scene.run.path)
        if not self._opening and metadata.get(ROLE) == "cloud" and metadata.get(RUN) == path:
            self.scene = self.ruler = None

    def _on_active(self, event: Any) -> None:
        path = event.value.metadata.get(RUN) if event.value is not None else None
        if path and self.scene is not None and str(self.scene.run.path) != path and not self._worker.running:
            self._open_path(path)

    def _open_path(self, path: str) -> None:
        try:
            run = Run.open(path)
            if run.has_cloud:
                self.open(run)
        except Marigold3DError as error:
            self.status.value = tell_error(error)

    # -- looking ------------------------------------------------------------------------------------------------------

    def _show(self, kind: str) -> None:
        if (kind == "scene") == (self._viewer.dims.ndisplay == 3):
            return  # napari makes widgets tell their values anew whenever a layer comes or goes
        (show_scene if kind == "scene" else show_frames)(self._viewer)
        if kind == "frames":
            self._viewer.dims.set_point(0, self.frame.value)

    def _toggle_view(self) -> None:
        if self.scene is not None:
            self.view.value = "frames" if self.view.value == "scene" else "scene"

    def _step(self, by: int) -> None:
        """To the next or previous used frame."""
        if self.scene is not None and self.scene.frames:
            at = self.scene.frames.index(self.scene.frame) + by
            self.frame.value = self.scene.frames[int(np.clip(at, 0, len(self.scene.frames) - 1))]

    def _look_now(self, frame: int) -> None:
        """The frame was chosen here: move camera, marks and, in 2D, the viewer's own slider."""
        if self.scene is None:
            return
        self.scene.look_at(frame)
        self._settled()
        if self.ruler is not None and self.ruler.points:
            self.ruler.follow()
        if self._viewer.dims.ndisplay == 2 and self._viewer.dims.point[0] != frame:
            self._viewer.dims.set_point(0, frame)

    def _on_step(self, _: Any = None) -> None:
        """The frame was chosen with the viewer's slider."""
        if self.scene is not None and self._viewer.dims.ndisplay == 2:
            frame = round(float(self._viewer.dims.point[0]))
            self.frame.value = int(np.clip(frame, self.frame.min, self.frame.max))

    def _on_ndisplay(self, event: Any) -> None:
        with self.view.changed.blocked():
            self.view.value = "scene" if event.value == 3 else "frames"
        if event.value == 2 and self.scene is not None:
            self._viewer.dims.set_point(0, self.frame.value)

    def _color(self, by: str) -> None:
        if self.scene is None:
            return
        try:
            same = by == self.scene.by  # widgets tell their values anew whenever a layer comes or goes
            found = self.scene.coloring if same else self.scene.color_by(by)  # type: ignore[arg-type]
        except Marigold3DError as error:
            self.status.value = tell_error(error)
            return
        known = np.isfinite(found.low)
        self.legend.value = f"{found.label}: red {found.low:.3g} to blue {found.high:.3g}" if known else found.label

    def _filter(self, _: Any = None) -> None:
        if self.scene is not None:
            cloud = self.scene.cloud
            known = cloud.sigma[np.isfinite(cloud.sigma)] if self.sigma.value < 100 else ()
            largest = float(np.percentile(known, self.sigma.value)) if len(known) else float("inf")
            kept = self.scene.keep(Filter(largest, self.observations.value))
            self._settled()
            unit = "m" if cloud.units == "m" else "units"
            sure = f", sigma up to {largest:.2g} {unit}" if np.isfinite(largest) else ""
            self.kept.value = f"{kept:,} of {len(cloud):,} points{sure}"

    def _highlight(self, wanted: bool) -> None:
        if self.scene is not None:
            self.scene.highlight(wanted)

    def _refine(self, _: Any = None) -> None:
        if self.scene is None or self._worker.running or self._viewer.dims.ndisplay != 3:
            return
        if not self.scene.refine() and self.scene.highlighted and self.scene.frame != self._highlighted:
            self.scene.highlight()
        self._highlighted = self.scene.frame

    # -- work ---------------------------------------------------------------------------------------------------------

    def opened_run(self) -> tuple[SceneView, Ruler]:
        """What is explored. UsageError when nothing is."""
        if self.scene is None or self.ruler is None:
            raise UsageError("open a run folder first")
        return self.scene, self.ruler

    def work(self, steps: Steps[Run]) -> None:
        """Run steps that change the open run, then show what has become of it."""
        if not self._worker.running:
            self._worker.start(steps)
            self.enable()

    def _on_progress(self, progress: Progress) -> None:
        self.status.value = self._activity.line(progress)
        self._activity.advance(progress)

    def _on_end(self, result: Run | Failed | Stopped) -> None:
        self._activity.close()
        if isinstance(result, Failed):
            self.enable()
            self.status.value = tell_error(result.error)
        elif isinstance(result, Stopped):
            self.status.value = "stopped: the scene is as it was"
        else:
            before = len(self.scene.cloud) if self.scene is not None else 0
            self.reload()
            after = len(self.scene.cloud) if self.scene is not None else 0
            self.status.value = f"{before:,} points before, {after:,} now"
        self.enable()

    def reload(self) -> None:
        """Show the open run as it is on disk now."""
        if self.scene is None or self.ruler is None:
            return
        self.ruler.clear()
        self.scene.run = Run.open(self.scene.run.path)
        self.scene.filter = Filter()
        with self._own_layers():
            self.scene.reload()
        reload_maps(self._viewer, self.scene.run)
        self._tell_title()
        self._reset_sliders()
        self._color(self.color.value)

    # -- export -------------------------------------------------------------------------------------------------------

    def export(self) -> None:
        """Write the whole cloud as the sliders leave it."""
        try:
            scene, _ = self.opened_run()
            path = path_of(self.target)
            if path is None:
                raise UsageError("choose where to save the cloud first: a name ending in .ply, .laz, .las or .glb")
            if path.suffix.lower() not in CLOUD_SUFFIXES:
                raise UsageError(f"{path.name}: end the name in {', '.join(CLOUD_SUFFIXES)}")
            cloud = scene.filtered_cloud()
            if not len(cloud):
                raise OutputError("the sliders hide every point: there is nothing to export")
            write_cloud(Path(path), cloud)
        except Marigold3DError as error:
            self.status.value = tell_error(error)
            return
        self.status.value = f"{len(cloud):,} points in {path.name}"
