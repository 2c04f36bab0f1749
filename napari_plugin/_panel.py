"""The panel "Reconstruct video": widgets gather a RunConfig, a worker runs the pipeline, slots show what it yields."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit, FloatSpinBox, Label, PushButton, SpinBox

from marigold3d.config import CameraConfig, DepthConfig, RunConfig, VideoConfig
from marigold3d.errors import Marigold3DError, UsageError
from marigold3d.progress import Progress, Steps

from ._layers import run_layers, show_frames, show_scene
from ._preview import DepthPreview, Failed
from ._reader import VIDEO_SUFFIXES, read_run, read_video
from ._worker import PipelineWorker

if TYPE_CHECKING:
    import napari.viewer

    from marigold3d.store import Run

Pipeline = Callable[..., "Steps[Run]"]

STAGES = {
    "scan": "reading the clip",
    "poses": "finding the camera path",
    "depth": "estimating depth",
    "align": "aligning depth",
    "match": "comparing poses with the pictures",
    "sweep": "matching views",
    "agree": "comparing what views found",
    "refine": "refining keyframes",
    "between": "filling between views",
    "fuse": "fusing the cloud",
    "write": "writing files",
}


class ReconstructionPanel(Container):  # type: ignore[misc]
    """Choose a clip, press Run, watch the depth appear, turn the cloud.

    `pipeline` takes the place of `marigold3d.pipeline.reconstruct_steps`.
    """

    def __init__(self, viewer: napari.viewer.Viewer, pipeline: Pipeline | None = None) -> None:
        self._viewer, self._pipeline = viewer, pipeline
        self._preview = DepthPreview(viewer)
        self._worker = PipelineWorker(self._on_progress, self._on_result, self._on_stopped)
        self._bar: Any = None
        self._make_widgets()
        settings = [self.clip, self.model, self.fov, self.stride, self.output, self.overwrite]
        super().__init__(widgets=[*settings, self.run_button, self.stop_button, self.view, self.status])
        viewer.layers.selection.events.active.connect(self._follow_active_layer)

    def _make_widgets(self) -> None:
        patterns = " ".join(f"*{suffix}" for suffix in VIDEO_SUFFIXES)
        self.clip = FileEdit(label="clip", mode="r", filter=f"Video ({patterns})", nullable=True, value=None)
        self.clip.tooltip = "A video file. Selecting a layer that shows one fills this in."
        self.model = ComboBox(label="model", choices=_model_names(), value="compact")
        self.fov = FloatSpinBox(label="field of view [°]", min=0, max=169, step=1, value=0)
        self.fov.tooltip = "Horizontal; 0: found from the clip"
        self.stride = SpinBox(label="use every n-th frame", min=1, max=1000, value=1)
        self.output = FileEdit(label="run folder", mode="d", nullable=True, value=None)
        self.output.tooltip = "Where results go; empty: a folder beside the clip"
        self.overwrite = CheckBox(text="replace a finished run", value=False)
        self.run_button, self.stop_button = PushButton(text="Run"), PushButton(text="Stop", enabled=False)
        self.view = ComboBox(label="show", choices=("frames", "scene"), value="frames")
        self.status = Label(value="choose a clip")
        self.run_button.changed.connect(self.run)
        self.stop_button.changed.connect(self.stop)
        self.view.changed.connect(self._show)

    # -- what the widgets say -----------------------------------------------------------------------------------------

    def config(self) -> RunConfig:
        """The settings chosen; everything else is the command line's default."""
        return RunConfig(
            video=VideoConfig(stride=self.stride.value),
            depth=DepthConfig(model=self.model.value),
            camera=CameraConfig(fov_deg=self.fov.value or None),
        )

    def run_folder(self) -> Path:
        """The folder chosen, else one beside the clip."""
        clip = self._clip_path()
        chosen = _path_of(self.output)
        return chosen if chosen is not None else clip.with_name(f"{clip.stem}_3d")

    def load(self, path: Path) -> None:
        """Show a run folder, or a clip ready to be reconstructed. UsageError when `path` is neither."""
        reader = read_run(str(path)) or read_video(str(path))
        if reader is None:
            raise UsageError(f"{path}: neither a run folder nor a video ({', '.join(VIDEO_SUFFIXES)})")
        is_run = read_run(str(path)) is not None
        self._add(reader(str(path)))
        if is_run:
            self.view.value = "scene"
            self._show("scene")
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
            self._fail(error)
            return
        pipeline = self._pipeline or _default_pipeline()
        self._preview.place(self._open_size(clip), config.video.stride)
        self._set_running(True, "starting")
        self._worker.start(pipeline(clip, folder, config, overwrite=self.overwrite.value))

    def stop(self) -> None:
        """Ask the pipeline to end after the step it is in; what is finished is kept and resumed by the next run."""
        if self.running:
            self.stop_button.enabled = False
            self.status.value = "stopping ..."
            self._worker.stop()

    @property
    def running(self) -> bool:
        return self._worker.running

    def _on_progress(self, progress: Progress) -> None:
        total = f"/{progress.total}" if progress.total else ""
        self.status.value = f"{STAGES.get(progress.stage, progress.stage)}: {progress.done}{total}"
        self._advance_bar(progress)
        self._preview.update(progress)

    def _on_result(self, result: Run | Failed) -> None:
        if isinstance(result, Failed):
            self._end("failed")
            self._fail(result.error)
            return
        self._end("done")
        self._preview.remove()
        self._add(run_layers(result, scene=True))
        self.view.value = "scene"
        self._show("scene")
        self.status.tooltip = str(result.path)
        self.status.value = f"done: {result.path.name}"

    def _on_stopped(self) -> None:
        self._end("stopped; Run continues where it was")

    def _end(self, message: str) -> None:
        self._close_bar()
        self._set_running(False, message)

    def _set_running(self, running: bool, message: str) -> None:
        self.run_button.enabled, self.stop_button.enabled = not running, running
        self.status.value = message

    def _fail(self, error: Exception) -> None:
        """One line as a notification for what the user can mend; a defect keeps its traceback."""
        from napari.utils.notifications import show_error

        self.status.value = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, Marigold3DError):
            raise error
        show_error(str(error))

    # -- the viewer ---------------------------------------------------------------------------------------------------

    def _advance_bar(self, progress: Progress) -> None:
        """A bar a stage in napari's activity dock."""
        from napari.utils import progress as activity_bar

        if self._bar is None or self._bar.desc.rstrip(": ") != progress.stage:
            self._close_bar()
            self._bar = activity_bar(total=progress.total or 0, desc=progress.stage)
        self._bar.update(progress.done - self._bar.n)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _add(self, layers: list[Any]) -> None:
        """Add layers, except a clip that is open already."""
        open_clips = {layer.metadata.get("clip") for layer in self._viewer.layers}
        for data, options, kind in layers:
            clip = options["metadata"].get("clip")
            if clip is None or clip not in open_clips:
                getattr(self._viewer, f"add_{kind}")(data, **options)

    def _open_size(self, clip: Path) -> tuple[int, int] | None:
        """(height, width) of the clip's layer, None when it is not open."""
        sizes = [layer.data.shape[1:3] for layer in self._viewer.layers if layer.metadata.get("clip") == str(clip)]
        return sizes[0] if sizes else None

    def _show(self, kind: str) -> None:
        (show_scene if kind == "scene" else show_frames)(self._viewer)

    def _follow_active_layer(self, event: Any) -> None:
        clip = event.value.metadata.get("clip") if event.value is not None else None
        if clip and not self.running:
            self.clip.value = Path(clip)

    def _clip_path(self) -> Path:
        clip = _path_of(self.clip)
        if clip is None:
            raise UsageError("choose a clip first")
        return clip


def _path_of(edit: FileEdit) -> Path | None:
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
