"""The part of "Explore scene" that takes out of the cloud what was painted on frames, and puts it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from magicgui.widgets import ComboBox, Container, PushButton

from marigold3d.edits import Exclusion, edits, exclude, undo
from marigold3d.errors import Marigold3DError, UsageError

from ._activity import tell_error
from ._layers import ROLE
from ._masks import NAME as MASK_NAME
from ._masks import new_mask_layer, painted

if TYPE_CHECKING:
    import napari.viewer

    from ._explore import ExplorePanel

SCOPES = {
    "these frames": "frame",
    "the same pixels in every frame": "pixels",
    "what they show, in every frame": "surface",
}


class EditBox(Container):  # type: ignore[misc]
    """Paint, fuse without it, undo. `panel` has the scene, and works."""

    def __init__(self, viewer: napari.viewer.Viewer, panel: ExplorePanel) -> None:
        self._viewer, self._panel = viewer, panel
        super().__init__(widgets=self._make_widgets())
        self.margins = (0, 0, 0, 0)
        self.paint_button.changed.connect(self.paint)
        self.exclude_button.changed.connect(self.exclude)
        self.undo_button.changed.connect(self.undo)

    def _make_widgets(self) -> list[Any]:
        self.paint_button = PushButton(text="Paint what to leave out")
        self.paint_button.tooltip = "A layer to paint on frames: people, sky. Any Labels or Shapes layer will do, too."
        self.scope = ComboBox(label="leave out", choices=tuple(SCOPES), value="these frames")
        self.scope.tooltip = "What the paint means: a passer-by, a logo or bonnet, or sky and things painted once"
        self.exclude_button = PushButton(text="Fuse without it")
        self.exclude_button.tooltip = f"Takes the selected Labels or Shapes layer, else {MASK_NAME!r}"
        self.undo_button = PushButton(text="Undo", tooltip="Take the last edit back")
        buttons = Container(widgets=[self.exclude_button, self.undo_button], layout="horizontal", labels=False)
        return [self.paint_button, self.scope, buttons]

    def enable(self, ready: bool) -> None:
        """Only what makes sense now can be pressed."""
        scene = self._panel.scene
        self.paint_button.enabled = self.exclude_button.enabled = self.scope.enabled = ready
        self.undo_button.enabled = ready and scene is not None and bool(edits(scene.run))

    def paint(self) -> None:
        """A new layer to paint on, over the frames."""
        scene, _ = self._panel.opened_run()
        self._panel.view.value = "frames"
        camera = scene.run.camera()
        frames = scene.clip_length or scene.frames[-1] + 1
        new_mask_layer(self._viewer, frames, (camera.height, camera.width), scene.frame_size)

    def exclude(self) -> None:
        """Fuse the cloud again without what is painted."""
        try:
            scene, _ = self._panel.opened_run()
            camera = scene.run.camera()
            shape = (camera.height, camera.width)
            masks = painted(self._mask_layer(), shape, scene.frame_size, scene.frame)
            used = {f: m for f, m in masks.items() if f in scene.frames}
            if not used:
                near = scene.nearest_frame(next(iter(masks)))
                raise UsageError(f"the painted frames were not used; paint on one that was, such as {near}")
        except Marigold3DError as error:
            self._panel.status.value = tell_error(error)
            return
        self._panel.work(exclude(scene.run, Exclusion(used, SCOPES[self.scope.value])))  # type: ignore[arg-type]

    def undo(self) -> None:
        """Take the last edit back."""
        if self._panel.scene is not None:
            self._panel.work(undo(self._panel.scene.run))

    def _mask_layer(self) -> Any:
        """The selected Labels or Shapes layer, else the latest that the panel has made."""
        active = self._viewer.layers.selection.active
        if active is not None and active.__class__.__name__ in ("Labels", "Shapes") and ROLE not in active.metadata:
            return active
        ours = [layer for layer in self._viewer.layers if layer.name.startswith(MASK_NAME)]
        if not ours:
            raise UsageError("paint what to leave out first: press Paint what to leave out, and draw on a frame")
        return ours[-1]
