"""Marked points and the distance between two of them, drawn in the frames and in the scene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from marigold3d.cues.measure import Measurement
from marigold3d.errors import GeometryError, UsageError
from marigold3d.picking import SurfacePoint
from marigold3d.types import Array

from ._layers import KIND, ROLE, SCENE_AXES, as_vectors, to_zyx
from ._scene import SceneView

if TYPE_CHECKING:
    from napari.components import ViewerModel

MARK_COLOR = "#00e5ff"
NAMES = ("marks", "ruler", "marks in the frame", "ruler in the frame")
ON_TOP = "translucent_no_depth"  # blending: seen whatever stands before it
MARK_SIZE = 0.012  # of the scene's extent, and of the picture's width


class Ruler:
    """Up to two surface points of a scene. Knows no widgets."""

    def __init__(self, viewer: ViewerModel, scene: SceneView) -> None:
        self._viewer, self._scene = viewer, scene
        self.points: list[SurfacePoint] = []

    # -- marking ------------------------------------------------------------------------------------------------------

    def mark_pixel(self, frame: int, uv: tuple[float, float], *, ends: int = 2) -> SurfacePoint:
        """Mark what pixel uv (px of the clip's frames, centres at +0.5) of a source frame shows.

        ends: marks kept; one more starts anew. UsageError when the frame has no depth, GeometryError when the pixel has
        none.
        """
        return self._add(self._surfaces.at_pixel(frame, uv), ends)

    def mark_point(self, point: Array, *, ends: int = 2) -> SurfacePoint:
        """Mark a point (3,) of the cloud, as the frame looked at sees it, or another one that sees it better."""
        return self._add(self._surfaces.at_point(point, self._scene.frame), ends)

    def clear(self) -> None:
        self.points = []
        self._draw()

    @property
    def _surfaces(self) -> Any:
        if self._scene.surfaces is None:
            raise GeometryError(
                "this run has no camera path, so points of its frames have no place: use --poses or SfM"
            )
        return self._scene.surfaces

    def _add(self, point: SurfacePoint, ends: int) -> SurfacePoint:
        self.points = [*(self.points if len(self.points) < ends else []), point]
        self._draw()
        return point

    # -- what it says -------------------------------------------------------------------------------------------------

    def length(self) -> tuple[float, float] | None:
        """Distance between the two marks and its standard deviation, scene units; None with fewer."""
        if len(self.points) < 2:
            return None
        length, sigma = self._surfaces.length(*self.points)
        return float(length), float(sigma)

    def measurement(self, length_m: float) -> Measurement:
        """That distance as a known length. UsageError with fewer than two marks."""
        if len(self.points) < 2:
            raise UsageError("mark the two ends of the length first: click them in a frame or in the cloud")
        measurement: Measurement = self._surfaces.measurement(*self.points, length_m)
        return measurement

    def text(self) -> str:
        """What is marked, for people."""
        unit = "m" if self._scene.cloud.units == "m" else "units"
        if not self.points:
            return "nothing is marked"
        found = self.length()
        if found is not None:
            return f"{found[0]:.4g} ± {found[1]:.2g} {unit}"
        point = self.points[0]
        x, y, z = point.point
        sigma = float(np.sqrt(np.trace(point.covariance)))
        return f"({x:.3f}, {y:.3f}, {z:.3f}) ± {sigma:.2g} {unit}, frame {point.frame}"

    # -- drawing ------------------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Draw the marks where the frame looked at shows them."""
        self._draw_in_frame()

    def _draw(self) -> None:
        self._draw_in_scene()
        self._draw_in_frame()

    def _draw_in_scene(self) -> None:
        points = np.array([p.point for p in self.points]).reshape(-1, 3)
        size = MARK_SIZE * self._scene.extent
        self._show_points("marks", to_zyx(points), size, "scene")
        line = as_vectors(points[None]) if len(points) == 2 else np.zeros((0, 2, 3), np.float32)
        self._show_line("ruler", line, size / 4, "scene")

    def _draw_in_frame(self) -> None:
        """In the current frame, as points (y, x) that stay while the time slider moves."""
        points = np.array([p.point for p in self.points]).reshape(-1, 3)
        uv = self._surfaces.project(points, self._scene.frame) if len(points) else np.zeros((0, 2))
        yx = (uv - 0.5)[:, ::-1]  # napari's pixel centres are whole numbers
        seen: NDArray[np.bool_] = np.asarray(np.isfinite(yx).all(axis=1), np.bool_)
        width = self._scene.frame_size[1]
        self._show_points("marks in the frame", yx[seen], 1.5 * MARK_SIZE * width, "frames")
        line = np.array([[yx[0], yx[1] - yx[0]]]) if seen.sum() == 2 else np.zeros((0, 2, 2))
        self._show_line("ruler in the frame", line, max(MARK_SIZE * width / 5, 1), "frames")

    def _show_points(self, name: str, ends: Array, size: float, kind: str) -> None:
        """The ends (N, 2 or 3), and of two what is between them, written in the middle on a point too small to see."""
        labels, sizes = [""] * len(ends), np.full(len(ends), size)
        data = ends
        if len(ends) == 2:
            data, labels, sizes = np.vstack([ends, ends.mean(0)]), [*labels, self.text()], np.append(sizes, size / 100)
        layer = self._layer(name)
        if layer is None:
            if not len(data):
                return
            text = {"string": "{label}", "size": 14, "color": MARK_COLOR, "translation": self._above(kind, size)}
            text["blending"] = ON_TOP
            look = {"face_color": "transparent", "border_color": MARK_COLOR, "border_width": 0.2, "size": sizes}
            options = {**look, "features": {"label": labels}, "text": text, "axis_labels": self._axes(kind)}
            self._open(name, "points", data, options, kind)
        else:
            layer.data = data
            layer.features = {"label": labels}
            layer.size = sizes

    def _show_line(self, name: str, vectors: Array, width: float, kind: str) -> None:
        layer = self._layer(name)
        if layer is not None:
            layer.data = vectors
        elif len(vectors):
            look = {"edge_color": MARK_COLOR, "edge_width": width, "vector_style": "line"}
            self._open(name, "vectors", vectors, {**look, "axis_labels": self._axes(kind)}, kind)

    @staticmethod
    def _axes(kind: str) -> tuple[str, ...]:
        return SCENE_AXES if kind == "scene" else ("y", "x")

    @staticmethod
    def _above(kind: str, size: float) -> Array:
        """Where the text stands beside its mark."""
        return np.array([0, -3 * size, 0]) if kind == "scene" else np.array([-2 * size, 0])

    def _layer(self, name: str) -> Any:
        """The layer that is drawn on under this name, whoever opened it; None when there is none."""
        return next((v for v in self._viewer.layers if v.metadata.get(ROLE) == name), None)

    def _open(self, name: str, kind_of_layer: str, data: Array, options: dict[str, Any], kind: str) -> None:
        visible = (self._viewer.dims.ndisplay == 3) == (kind == "scene")
        options = {
            **options,
            "blending": ON_TOP,
            "name": name,
            "visible": visible,
            "metadata": {KIND: kind, ROLE: name},
        }
        active = self._viewer.layers.selection.active
        getattr(self._viewer, f"add_{kind_of_layer}")(data, **options)
        if active is not None:
            self._viewer.layers.selection.active = active

    def close(self) -> None:
        """Take the marks out of the viewer."""
        for name in NAMES:
            layer = self._layer(name)
            if layer is not None:
                self._viewer.layers.remove(layer)
        self.points = []
