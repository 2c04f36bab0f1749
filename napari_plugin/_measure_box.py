"""The part of "Explore scene" that gives clicks a meaning: marks, lengths, and the scene's true scale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import ComboBox, Container, FloatSpinBox, Label, PushButton

from marigold3d.errors import GeometryError, Marigold3DError, UsageError
from marigold3d.rescale import rescale

from ._activity import tell, tell_error

if TYPE_CHECKING:
    import napari.viewer

    from ._explore import ExplorePanel

LOOK, PICK, MEASURE = "moves the view", "marks a point", "measures"
CLICK_PX = 4.0  # a mouse that moves farther while it is pressed turns the view instead


class MeasureBox(Container):  # type: ignore[misc]
    """What a click does, what is marked, and how long it really is. `panel` has the scene and the ruler."""

    def __init__(self, viewer: napari.viewer.Viewer, panel: ExplorePanel) -> None:
        self._viewer, self._panel = viewer, panel
        super().__init__(widgets=self._make_widgets())
        self.margins = (0, 0, 0, 0)
        self.scale_button.changed.connect(self.set_scale)
        self.clear_button.changed.connect(self.clear_marks)
        viewer.mouse_drag_callbacks.append(self._on_mouse)

    def _make_widgets(self) -> list[Any]:
        self.click = ComboBox(label="a click", choices=(LOOK, PICK, MEASURE), value=LOOK)
        self.click.tooltip = "In the frames or in the cloud; two clicks measure (F7)"
        self.marked = Label(label="marked", value="")
        self.true_length = FloatSpinBox(label="true length [m]", min=0, max=100_000, step=0.01, value=0)
        self.true_length.tooltip = "How long what you measured really is: brings the whole scene to metres"
        self.scale_button = PushButton(text="Set the scale", tooltip="With all lengths given so far")
        self.clear_button = PushButton(text="Clear marks", tooltip="F8")
        buttons = Container(widgets=[self.scale_button, self.clear_button], layout="horizontal", labels=False)
        return [self.click, self.marked, self.true_length, buttons]

    def enable(self, ready: bool) -> None:
        """Only what makes sense now can be pressed."""
        ruler = self._panel.ruler
        self.click.enabled = ready
        self.scale_button.enabled = ready and ruler is not None and len(ruler.points) == 2

    def _on_mouse(self, _: Any, event: Any) -> Iterator[None]:
        """A click, as long as the mouse stays where it is."""
        if self.click.value == LOOK or self._panel.ruler is None or event.button != 1:
            return
        start, moved = np.array(event.pos), 0.0
        yield
        while event.type == "mouse_move":
            moved = max(moved, float(np.linalg.norm(np.array(event.pos) - start)))
            yield
        if moved <= CLICK_PX:
            direction = None if event.view_direction is None else np.array(event.view_direction)
            self.clicked(np.array(event.position), direction)

    def clicked(self, position: Any, direction: Any = None) -> None:
        """Mark what a click shows: at (time, y, x) in the frames, at (z, y, x) along `direction` in the scene."""
        if self._panel.ruler is None:
            return
        ends = 2 if self.click.value == MEASURE else 1
        try:
            if self._viewer.dims.ndisplay == 2:
                self._mark_in_frame(position, ends)
            else:
                self._mark_in_scene(position, direction, ends)
        except Marigold3DError as error:
            self._panel.status.value = tell_error(error)
            return
        self.tell_marks()

    def _mark_in_frame(self, position: Any, ends: int) -> None:
        scene, ruler = self._panel.opened_run()
        frame, (y, x) = round(float(position[0])), position[-2:]
        near = scene.nearest_frame(frame)
        if near != frame:
            self._panel.frame.value = near
            raise UsageError(
                f"frame {frame} was not used; {near}, the nearest that has depth, is shown now: click again"
            )
        ruler.mark_pixel(frame, (float(x) + 0.5, float(y) + 0.5), ends=ends)

    def _mark_in_scene(self, position: Any, direction: Any, ends: int) -> None:
        scene, ruler = self._panel.opened_run()
        point = scene.point_under(position, direction)
        if point is None:
            raise GeometryError("there is no point of the cloud under the click: zoom in, or click on a surface")
        ruler.mark_point(point, ends=ends)

    def toggle(self) -> None:
        """Between clicks that measure and clicks that move the view."""
        self.click.value = LOOK if self.click.value == MEASURE else MEASURE

    def clear_marks(self) -> None:
        """Take the marks away."""
        if self._panel.ruler is not None:
            self._panel.ruler.clear()
            self.tell_marks()

    def tell_marks(self) -> None:
        """Say what is marked."""
        self.marked.value = self._panel.ruler.text() if self._panel.ruler is not None else ""
        self._panel.enable()

    def set_scale(self) -> None:
        """Bring the scene to metres by the true length of what is measured."""
        try:
            scene, ruler = self._panel.opened_run()
            if self.true_length.value <= 0:
                raise UsageError("type how long it really is, in metres, then press Set the scale")
            done = rescale(scene.run, [ruler.measurement(self.true_length.value)])
        except Marigold3DError as error:
            self._panel.status.value = tell_error(error)
            return
        points = list(ruler.points)
        self._panel.reload()
        for point in points:  # the same pixels, at their new places
            ruler.mark_pixel(point.frame, point.uv)
        self.tell_marks()
        self._panel.status.value = done.lines[0]
        self._panel.status.tooltip = "\n".join(done.lines)
        tell("\n".join(done.lines))
