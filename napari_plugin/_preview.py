"""Depth maps in the viewer while they are being made. Knows no widgets, so it runs on a bare ViewerModel."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from marigold3d.progress import Progress, Steps

from ._layers import FRAME_AXES, KIND, placed
from ._stacks import display_range

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from marigold3d.store import Run

UPDATE_INTERVAL_S = 0.2  # more updates a second make the viewer sluggish while the network computes
MAX_BYTES = 256 * 2**20  # of the preview; long clips are shown at a lower resolution
LAYER_NAME = "depth (in progress)"


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

    def update(self, progress: Progress) -> None:
        """Show the depth map of a Progress that carries one."""
        payload = progress.payload
        if getattr(payload, "values", None) is None or not hasattr(payload, "position"):
            return
        if self._layer is None:
            self._allocate(max(progress.total or 0, payload.position + 1), payload.values.shape)
        data = self._layer.data
        if payload.position >= len(data):
            return
        shown = _resampled(payload.values, data.shape[1:])  # stages work at sizes of their own
        data[payload.position] = shown
        if progress.stage != self._stage:  # another stage, other units; within one the colours must not flicker
            self._stage = progress.stage
            self._layer.contrast_limits_range = self._layer.contrast_limits = display_range(shown)
        self._viewer.dims.set_point(0, payload.position * self._time_step)
        self._layer.refresh()

    def remove(self) -> None:
        """Take the layer out of the viewer, unless the user has."""
        if self._layer is not None and self._layer in self._viewer.layers:
            self._viewer.layers.remove(self._layer)
        self._layer = None

    def _allocate(self, count: int, shape: tuple[int, int]) -> None:
        reduction = np.sqrt(max(1.0, 4 * count * shape[0] * shape[1] / MAX_BYTES))
        height, width = (max(1, int(side / reduction)) for side in shape)
        data = np.full((count, height, width), np.nan, np.float32)
        where = placed((height, width), self._size or shape, self._time_step)
        options = {**where, "colormap": "Spectral", "axis_labels": FRAME_AXES, "metadata": {KIND: "frames"}}
        self._layer = self._viewer.add_image(data, name=LAYER_NAME, contrast_limits=(0, 1), multiscale=False, **options)


def _resampled(values: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """(h, w) pixels picked from a map (H, W)."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(shape, values.shape, strict=True))
    return np.asarray(values[np.ix_(rows, columns)])


@dataclass(frozen=True, eq=False)
class Failed:
    """What ended the work. Not itself an exception: Qt workers drop a returned or raised RuntimeError, torch's kind."""

    error: Exception


def throttled(
    steps: Steps[Run], clock: Callable[[], float] = time.monotonic, interval_s: float = UPDATE_INTERVAL_S
) -> Steps[Run | Failed]:
    """`steps` with at most one Progress an interval; the first and last of a stage always come through.

    An error is returned as Failed, not raised. Closing this closes `steps`.
    """
    last_s, stage, ended = -interval_s, "", False
    try:
        while True:
            progress = next(steps)
            begins = progress.stage != stage
            ends = progress.done == progress.total and (begins or not ended)
            if begins or ends or clock() - last_s >= interval_s:
                last_s, stage, ended = clock(), progress.stage, ends or (ended and not begins)
                yield progress
    except StopIteration as stop:
        run: Run = stop.value
        return run
    except Exception as error:
        return Failed(error)
    finally:
        steps.close()
