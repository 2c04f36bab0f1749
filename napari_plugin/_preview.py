"""What a run finds while it works: depth maps and a growing cloud. Knows no widgets, runs on a bare ViewerModel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from marigold3d.progress import CloudPreview, FramePreview, Progress
from marigold3d.viewpoint import extent

from ._layers import FRAME_AXES, KIND, SCENE_AXES, placed, rgba, show_scene, to_zyx
from ._stacks import display_range

if TYPE_CHECKING:
    from napari.components import ViewerModel

MAX_BYTES = 256 * 2**20  # of the depth preview; long clips are shown at a lower resolution
MAX_POINTS = 40_000  # of the cloud preview: replacing more takes longer than a tenth of a second
POINT_SHARE = 0.004  # size of its points as a share of the scene's
DEPTH_NAME = "depth (in progress)"
CLOUD_NAME = "cloud (in progress)"


class Preview:
    """Two layers, one for depth and one for the cloud, each made once and written in place."""

    def __init__(self, viewer: ViewerModel) -> None:
        self.depth, self.cloud = DepthPreview(viewer), GrowingCloud(viewer)

    def update(self, progress: Progress) -> None:
        """Show everything a Progress carries: a payload, or a tuple of them."""
        payloads = progress.payload if isinstance(progress.payload, tuple) else (progress.payload,)
        self.depth.update(progress, [p for p in payloads if isinstance(p, FramePreview)])
        self.cloud.update([p for p in payloads if isinstance(p, CloudPreview)])

    def remove(self) -> None:
        """Take the layers out of the viewer, unless the user has."""
        self.depth.remove()
        self.cloud.remove()


class DepthPreview:
    """One image layer, allocated once, into which each depth map is written in place."""

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._layer: Any = None
        self._stage = ""
        self._size: tuple[int, int] | None = None
        self._time_step = 1

    def place(self, size: tuple[int, int] | None, time_step: int) -> None:
        """Lay coming maps over a clip of `size` (height, width), every `time_step`-th frame; None: it is not open."""
        self._size, self._time_step = size, time_step

    def update(self, progress: Progress, frames: list[FramePreview]) -> None:
        """Show the newest depth maps, and the last of them."""
        shown = None
        for frame in frames:
            if self._layer is None:
                self._allocate(max(progress.total or 0, frame.position + 1), frame.values.shape)
            data = self._layer.data
            if frame.position < len(data):
                shown = _resampled(frame.values, data.shape[1:])  # stages work at sizes of their own
                data[frame.position] = shown
        if shown is None:
            return
        if progress.stage != self._stage:  # another stage, other units; within one the colours must not flicker
            self._stage = progress.stage
            self._layer.contrast_limits_range = self._layer.contrast_limits = display_range(shown)
        if self._viewer.dims.ndisplay == 2:
            self._viewer.dims.set_point(0, frames[-1].position * self._time_step)
        self._layer.refresh()

    def remove(self) -> None:
        if self._layer is not None and self._layer in self._viewer.layers:
            self._viewer.layers.remove(self._layer)
        self._layer, self._stage = None, ""

    def _allocate(self, count: int, shape: tuple[int, int]) -> None:
        reduction = np.sqrt(max(1.0, 4 * count * shape[0] * shape[1] / MAX_BYTES))
        height, width = (max(1, int(side / reduction)) for side in shape)
        data = np.full((count, height, width), np.nan, np.float32)
        where = placed((height, width), self._size or shape, self._time_step)
        options = {**where, "colormap": "Spectral", "axis_labels": FRAME_AXES, "metadata": {KIND: "frames"}}
        self._layer = self._viewer.add_image(data, name=DEPTH_NAME, contrast_limits=(0, 1), multiscale=False, **options)


class GrowingCloud:
    """One points layer that holds an even share of all that was fused so far."""

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._layer: Any = None
        self._points: NDArray[np.float32]
        self._colors: NDArray[np.uint8]
        self._share: int  # one of so many points that came is kept
        self._empty()

    def update(self, views: list[CloudPreview]) -> None:
        """Add the points of newly fused views; the first ones turn the viewer to the scene."""
        if not views:
            return
        self._points = np.concatenate([self._points, *(v.points[:: self._share] for v in views)])
        self._colors = np.concatenate([self._colors, *(v.colors[:: self._share] for v in views)])
        while len(self._points) > MAX_POINTS:
            self._share *= 2
            self._points, self._colors = self._points[::2], self._colors[::2]
        if self._layer is None:
            self._open()
        else:
            self._layer.data = to_zyx(self._points)
            self._layer.face_color = self._layer.border_color = rgba(self._colors)

    def remove(self) -> None:
        if self._layer is not None and self._layer in self._viewer.layers:
            self._viewer.layers.remove(self._layer)
        self._layer = None
        self._empty()

    def _empty(self) -> None:
        self._points, self._colors = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)
        self._share = 1

    def _open(self) -> None:
        colors = rgba(self._colors)
        self._layer = self._viewer.add_points(
            to_zyx(self._points),
            name=CLOUD_NAME,
            face_color=colors,
            border_color=colors,
            border_width=0,
            antialiasing=0,
            size=max(POINT_SHARE * extent(self._points), 1e-6),
            axis_labels=SCENE_AXES,
            metadata={KIND: "scene"},
        )
        show_scene(self._viewer)


def _resampled(values: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """(h, w) pixels picked from a map (H, W)."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(shape, values.shape, strict=True))
    return np.asarray(values[np.ix_(rows, columns)])
