"""The panel "Reconstruct video": widgets gather a RunConfig, a worker runs the pipeline, slots show what it yields."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit, FloatSpinBox, Label, PushButton, SpinBox

from marigold3d.config import AlignConfig, CameraConfig, DepthConfig, FusionConfig, RefineConfig, RunConfig, VideoConfig
from marigold3d.errors import Marigold3DError, UsageError
from marigold3d.progress import Progress, Steps

from ._activity import Activity, tell_error
from ._cue_points import is_cue_layer, new_cue_layer, write_cues
from ._launch import show_explorer
from ._layers import add_layers, run_layers, show_scene
from ._preferences import preferences
from ._preview import Preview
from ._reader import VIDEO_SUFFIXES, Reader, read_run, read_video
from ._worker import Failed, Stopped, Worker

if TYPE_CHECKING:
    import napari.viewer

    from marigold3d.store import Run

Pipeline = Callable[..., "Steps[Run]"]

AUTO, FOV, FOCAL_PX, FOCAL_35MM, FILE = "found from the clip", "field of view", "focal length", "35 mm", "from a file"
CAMERA_UNITS = {FOV: "degrees, horizontal", FOCAL_PX: "pixels of the clip", FOCAL_35MM: "mm, 35 mm equivalent"}
CAMERA_START = {FOV: 62.0, FOCAL_PX: 500.0, FOCAL_35MM: 26.0}
NONE, CUE_FILE, CUE_LAYER = "none", "from a file", "from a points layer"


class ReconstructionPanel(Container):  # type: ignore[misc]
    """Choose a clip, press Run, watch depth appear and the cloud grow.

    `pipeline` takes the place of `marigold3d.pipeline.reconstruct_steps`.
    """

    def __init__(self, viewer: napari.viewer.Viewer, pipeline: Pipeline | None = None) -> None:
        self._viewer, self._pipeline = viewer, pipeline
        self._preferences = preferences()
        self._preview, self._activity = Preview(viewer), Activity()
        self._worker = Worker(self._on_progress, self._on_end)
        super().__init__(widgets=self._make_widgets())
        self._follow_choices()
        viewer.layers.selection.events.active.connect(self._follow_active_layer)
        self.native.destroyed.connect(self._worker.abandon)  # a window that closes ends its run, which resumes

    # -- widgets ------------------------------------------------------------------------------------------------------

    def _make_widgets(self) -> list[Any]:
        patterns = " ".join(f"*{suffix}" for suffix in VIDEO_SUFFIXES)
        self.clip = FileEdit(label="clip", mode="r", filter=f"Video ({patterns})", nullable=True, value=None)
        self.clip.tooltip = "A video file. Selecting a layer that shows one fills this in."
        self._make_camera()
        self._make_cues()
        self._make_more()
        self.run_button = PushButton(text="Run", tooltip="Reconstruct the clip, or go on where a run was stopped")
        self.pause_button = PushButton(text="Pause", enabled=False, tooltip="Hold after the present step, or go on")
        self.stop_button = PushButton(text="Stop", enabled=False, tooltip="End; what is finished is kept for Run")
        buttons = Container(
            widgets=[self.run_button, self.pause_button, self.stop_button], layout="horizontal", labels=False
        )
        self.status = Label(label=" ", value="choose a clip")
        self.status.min_width = 270  # a label keeps the width of its first text
        self.run_button.changed.connect(self.run)
        self.pause_button.changed.connect(self.pause)
        self.stop_button.changed.connect(self.stop)
        return [
            self.clip,
            *(self.camera, self.camera_value, self.camera_file),
            *(self.cues, self.cue_file, self.cue_layer, self.cue_depth, self.new_cues),
            *(self.more, self.settings, buttons, self.status),
        ]

    def _make_camera(self) -> None:
        self.camera = ComboBox(label="camera", choices=(AUTO, FOV, FOCAL_PX, FOCAL_35MM, FILE), value=AUTO)
        self.camera.tooltip = "What is known of the lens. Found from the clip if nothing is."
        self.camera_value = FloatSpinBox(label=" ", min=0.1, max=100_000, step=1, value=CAMERA_START[FOV])
        self.camera_file = FileEdit(label=" ", mode="r", nullable=True, value=None)
        self.camera_file.tooltip = "A 3x3 matrix, camera.json or COLMAP's cameras.txt"
        self.camera.changed.connect(self._follow_camera)

    def _make_cues(self) -> None:
        self.cues = ComboBox(label="known depths", choices=(NONE, CUE_FILE, CUE_LAYER), value=NONE)
        self.cues.tooltip = "Depths in metres make the scene metric. A known length can be given later, too."
        self.cue_file = FileEdit(label=" ", mode="r", nullable=True, value=None)
        self.cue_file.tooltip = (
            "Depth map, table of frame,u,v,depth, cloud, control points or SfM model; see the README"
        )
        self.cue_layer = ComboBox(label=" ", choices=self._cue_layers, nullable=True)
        self.cue_layer.tooltip = "Points on frames with their depths, a feature depth_m"
        self.cue_depth = FloatSpinBox(label="depth of the next [m]", min=0.01, max=10_000, step=0.1, value=2.0)
        self.cue_depth.tooltip = "Distance along the camera's axis of the point that is clicked next"
        self.new_cues = PushButton(text="New layer: click points of known depth")
        self.new_cues.tooltip = "A layer to click on; its points' depths can be changed in napari's features table"
        self.new_cues.changed.connect(self._new_cue_layer)
        self.cue_depth.changed.connect(self._set_cue_depth)
        self.cues.changed.connect(self._follow_choices)
        for event in ("inserted", "removed"):
            getattr(self._viewer.layers.events, event).connect(self._reset_layer_choices)

    def _make_more(self) -> None:
        wanted = self._preferences
        self.more = CheckBox(text="more settings", value=False, tooltip="Model, device, run folder and others")
        self.model = ComboBox(label="model", choices=_model_names(), value=wanted.model)
        self.model.tooltip = "`marigold3d models` says what each is; compact needs no download"
        self.checkpoint = FileEdit(label="or checkpoint", mode="d", nullable=True, value=None)
        self.checkpoint.tooltip = "A folder in diffusers' Marigold format or of a transformers depth model"
        self.device = ComboBox(label="device", choices=("auto", "cpu", "cuda", "mps"), value=wanted.device)
        self.steps = SpinBox(label="denoising steps", min=0, max=1000, value=0, tooltip="0: the checkpoint's default")
        self.ensemble = SpinBox(label="ensemble", min=1, max=100, value=1, tooltip="Predictions merged a frame")
        self.device.tooltip = "What the network runs on"
        self.stride = SpinBox(label="every n-th frame", min=1, max=1000, value=1)
        self.stride.tooltip = "Long or fast clips need not be used whole"
        self.refine = CheckBox(text="sharpen by matching views", value=True)
        self.refine.tooltip = "Takes about half of the time, and is worth it where the camera moves"
        self.voxel = FloatSpinBox(label="voxel", min=0, max=1000, step=0.01, value=0)
        self.voxel.tooltip = "Side of the cloud's voxels in scene units; 0: from the depth and its sigma"
        self.output = FileEdit(label="run folder", mode="d", nullable=True, value=None)
        self.output.tooltip = "Where results go; empty: a folder beside the clip"
        self.overwrite = CheckBox(text="replace a finished run", value=False)
        self.overwrite.tooltip = "Else a folder with a finished run is refused"
        self.settings = Container(
            widgets=[
                *(self.model, self.checkpoint, self.device, self.steps, self.ensemble, self.stride),
                *(self.refine, self.voxel, self.output, self.overwrite),
            ]
        )
        self.more.changed.connect(self._follow_choices)

    def _follow_choices(self, _: Any = None) -> None:
        """Show the widgets that the choices made call for."""
        self.camera_value.visible = self.camera.value in CAMERA_UNITS
        self.camera_value.label = self.camera_value.tooltip = CAMERA_UNITS.get(self.camera.value, " ")
        self.camera_file.visible = self.camera.value == FILE
        self.cue_file.visible = self.cues.value == CUE_FILE
        for widget in (self.cue_layer, self.cue_depth, self.new_cues):
            widget.visible = self.cues.value == CUE_LAYER
        self.settings.visible = self.more.value

    def _follow_camera(self, kind: str) -> None:
        self.camera_value.value = CAMERA_START.get(kind, self.camera_value.value)
        self._follow_choices()

    # -- known depths -------------------------------------------------------------------------------------------------

    def _cue_layers(self, _: Any) -> list[Any]:
        return [layer for layer in self._viewer.layers if is_cue_layer(layer)]

    def _reset_layer_choices(self, _: Any = None) -> None:
        self.cue_layer.reset_choices()

    def _new_cue_layer(self) -> None:
        self.cue_layer.reset_choices()
        layer = new_cue_layer(self._viewer, self.cue_depth.value)
        self.cue_layer.reset_choices()
        self.cue_layer.value = layer

    def _set_cue_depth(self, depth_m: float) -> None:
        if self.cue_layer.value is not None:
            self.cue_layer.value.feature_defaults = {"depth_m": depth_m}

    # -- what the widgets say -----------------------------------------------------------------------------------------

    def config(self) -> RunConfig:
        """The settings chosen; everything else is the command line's default. UsageError for what is missing."""
        checkpoint = path_of(self.checkpoint)
        return RunConfig(
            video=VideoConfig(stride=self.stride.value),
            depth=DepthConfig(
                model=str(checkpoint) if checkpoint else self.model.value,
                device=self.device.value,
                steps=self.steps.value or None,
                ensemble=self.ensemble.value,
            ),
            camera=self._camera(),
            align=self._align(),
            refine=RefineConfig(enabled=self.refine.value),
            fusion=FusionConfig(voxel=self.voxel.value or None),
        )

    def _camera(self) -> CameraConfig:
        kind, value = self.camera.value, self.camera_value.value
        if kind == FILE:
            file = path_of(self.camera_file)
            if file is None:
                raise UsageError("choose the file that describes the camera, or let it be found from the clip")
            return CameraConfig(file=file)
        names = {FOV: "fov_deg", FOCAL_PX: "focal_px", FOCAL_35MM: "focal_35mm"}
        return CameraConfig(**{names[kind]: value}) if kind in names else CameraConfig()

    def _align(self) -> AlignConfig:
        if self.cues.value == CUE_FILE:
            file = path_of(self.cue_file)
            if file is None:
                raise UsageError("choose the file of known depths, or set them to none")
            return AlignConfig(cues=(str(file),))
        if self.cues.value == CUE_LAYER:
            if self.cue_layer.value is None:
                raise UsageError("make a layer of known depths first: press New layer and click on frames")
            folder = self.run_folder()
            file = folder.with_name(f"{folder.name}_cues.csv")  # beside the run, so that the same run can resume
            write_cues(self.cue_layer.value, file)
            return AlignConfig(cues=(str(file),), cue_units="m")
        return AlignConfig()

    def run_folder(self) -> Path:
        """The folder chosen, else one in the preferred place, else beside the clip."""
        clip = self._clip_path()
        chosen = path_of(self.output)
        if chosen is not None:
            return chosen
        name = f"{clip.stem}_3d"
        return Path(self._preferences.output) / name if self._preferences.output else clip.with_name(name)

    def load(self, path: Path) -> None:
        """Show a run folder, or a clip ready to be reconstructed. UsageError when `path` is neither."""
        reader = reader_of(path)
        add_layers(self._viewer, reader(str(path)))
        if read_run(str(path)):
            show_scene(self._viewer)
        else:
            self.clip.value = path

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start the reconstruction in a thread; errors in the settings become a notification at once."""
        if self.running:
            return
        try:
            clip, folder, config = self._clip_path(), self.run_folder(), self.config()
        except Marigold3DError as error:
            self.status.value = tell_error(error)
            return
        pipeline = self._pipeline or _default_pipeline()
        self._preview.remove()
        self._preview.depth.place(self._open_size(clip), config.video.stride)
        self._set_running(True, "starting")
        self._worker.start(pipeline(clip, folder, config, overwrite=self.overwrite.value), self._preferences.interval_s)

    def pause(self) -> None:
        """Hold after the step that is under way, or go on."""
        if self.running:
            self._worker.pause(not self._worker.paused)
            self.pause_button.text = "Go on" if self._worker.paused else "Pause"
            if self._worker.paused:
                self.status.value = "paused"

    def stop(self) -> None:
        """Ask the pipeline to end after the step it is in; what is finished is kept and resumed by the next run."""
        if self.running:
            self.stop_button.enabled = self.pause_button.enabled = False
            self.status.value = "stopping ..."
            self._worker.stop()

    @property
    def running(self) -> bool:
        return self._worker.running

    def _on_progress(self, progress: Progress) -> None:
        line = self._activity.line(progress)
        if not self._worker.paused and self.stop_button.enabled:
            self.status.value = line
        self._preview.update(progress)
        self._activity.advance(progress)

    def _on_end(self, result: Run | Failed | Stopped) -> None:
        self._activity.close()
        if isinstance(result, Failed):
            self._set_running(False, "failed")
            self.status.value = tell_error(result.error)
        elif isinstance(result, Stopped):
            self._set_running(False, "stopped; Run continues where it was")
        else:
            self._set_running(False, f"done: {result.path.name}")
            self._preview.remove()
            show_explorer(self._viewer)
            add_layers(self._viewer, run_layers(result, scene=True, limit=self._preferences.points))
            show_scene(self._viewer)
            self.status.tooltip = str(result.path)

    def _set_running(self, running: bool, message: str) -> None:
        self.run_button.enabled = not running
        self.pause_button.enabled = self.stop_button.enabled = running
        self.pause_button.text = "Pause"
        self.status.value = message

    # -- the clip -----------------------------------------------------------------------------------------------------

    def _open_size(self, clip: Path) -> tuple[int, int] | None:
        """(height, width) of the clip's layer, None when it is not open."""
        sizes = [layer.data.shape[1:3] for layer in self._viewer.layers if layer.metadata.get("clip") == str(clip)]
        return sizes[0] if sizes else None

    def _follow_active_layer(self, event: Any) -> None:
        clip = event.value.metadata.get("clip") if event.value is not None else None
        if clip and not self.running:
            self.clip.value = Path(clip)

    def _clip_path(self) -> Path:
        clip = path_of(self.clip)
        if clip is None:
            raise UsageError("choose a clip first")
        return clip


def reader_of(path: Path) -> Reader:
    """What opens a run folder or a clip. UsageError when `path` is neither."""
    reader = read_run(str(path)) or read_video(str(path))
    if reader is None:
        raise UsageError(f"{path}: neither a run folder nor a video ({', '.join(VIDEO_SUFFIXES)})")
    return reader


def path_of(edit: FileEdit) -> Path | None:
    """What a FileEdit holds; an empty one says None or the current folder."""
    value = edit.value
    return None if value is None or str(value) in ("", ".") else Path(value)


def _default_pipeline() -> Pipeline:
    from marigold3d.pipeline import reconstruct_steps

    pipeline: Pipeline = reconstruct_steps
    return pipeline


def _model_names() -> tuple[str, ...]:
    from marigold3d.depth.registry import MODELS

    return tuple(MODELS)
