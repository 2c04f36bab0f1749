"""Painted Labels and drawn Shapes as pixels of a run's depth maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from marigold3d.errors import UsageError

from ._layers import FRAME_AXES, KIND, placed

if TYPE_CHECKING:
    from napari.components import ViewerModel

NAME = "leave out"
ELLIPSE_CORNERS = 64


def new_mask_layer(viewer: ViewerModel, frames: int, shape: tuple[int, int], size: tuple[int, int]) -> Any:
    """A Labels layer to paint on: `frames` masks of `shape` (h, w) stretched over frames of `size` (height, width).

    The array is allocated by the system as it is painted on, so that its length costs nothing.
    """
    data = np.zeros((frames, *shape), np.uint8)
    layer = viewer.add_labels(
        data, name=NAME, opacity=0.5, axis_labels=FRAME_AXES, metadata={KIND: "frames"}, **placed(shape, size)
    )
    layer.brush_size, layer.mode = max(4, max(shape) // 40), "paint"
    return layer


def painted(layer: Any, shape: tuple[int, int], size: tuple[int, int], frame: int) -> dict[int, NDArray[np.bool_]]:
    """What is painted on a Labels or Shapes layer: by source frame, (h, w) bool of `shape`.

    size: (height, width) of the clip's frames, whose pixels are the layer's world; frame: the one that flat layers
    belong to, which have no time. UsageError for layers of another kind or with nothing on them.
    """
    kind = layer.__class__.__name__.lower()
    if kind == "labels":
        masks = _from_labels(layer, shape, size, frame)
    elif kind == "shapes":
        masks = _from_shapes(layer, shape, size, frame)
    else:
        raise UsageError(f"{layer.name} is no Labels or Shapes layer: paint what to leave out on one")
    if not masks:
        raise UsageError(f"nothing is painted on {layer.name}: paint what to leave out first")
    return masks


def _from_labels(layer: Any, shape: tuple[int, int], size: tuple[int, int], frame: int) -> dict[int, NDArray[np.bool_]]:
    data = layer.data if layer.ndim == 3 else layer.data[None]
    scale, translate = np.array(layer.scale[-2:]), np.array(layer.translate[-2:])
    # The world place of each pixel of the depth maps, then the label there; outside the layer nothing is painted.
    rows, columns = (
        np.rint((((np.arange(n) + 0.5) * full / n - 0.5) - t) / s).astype(int)
        for n, full, t, s in zip(shape, size, translate, scale, strict=True)
    )
    inside = np.ix_((rows >= 0) & (rows < data.shape[1]), (columns >= 0) & (columns < data.shape[2]))
    at = np.ix_(rows.clip(0, data.shape[1] - 1), columns.clip(0, data.shape[2] - 1))
    masks = {}
    for i in range(len(data)):
        plane = np.asarray(data[i])
        if not plane.any():
            continue
        mask = np.zeros(shape, bool)
        mask[inside] = (plane[at] > 0)[inside]
        start = float(layer.translate[0]) if layer.ndim == 3 else frame
        masks[round(start + i * float(layer.scale[0])) if layer.ndim == 3 else frame] = mask
    return masks


def _from_shapes(layer: Any, shape: tuple[int, int], size: tuple[int, int], frame: int) -> dict[int, NDArray[np.bool_]]:
    masks: dict[int, NDArray[np.bool_]] = {}
    for vertices, kind in zip(layer.data, layer.shape_type, strict=True):
        if kind == "line":
            continue
        world = np.array([layer.data_to_world(v) for v in np.asarray(vertices, float)])
        at = round(float(world[0, 0])) if world.shape[1] == 3 else frame
        corners = _ellipse(world[:, -2:]) if kind == "ellipse" else world[:, -2:]
        xy = (corners[:, ::-1] + 0.5) * (shape[1] / size[1], shape[0] / size[0])
        picture = Image.new("1", shape[::-1])
        ImageDraw.Draw(picture).polygon([tuple(p) for p in (xy - 0.5).tolist()], fill=1, outline=1)
        masks[at] = masks.get(at, np.zeros(shape, bool)) | np.array(picture, bool)
    return masks


def _ellipse(corners: NDArray[Any]) -> NDArray[Any]:
    """(N, 2) points on the ellipse inside a parallelogram of corners (4, 2) in order."""
    turn = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)[:, None]
    centre = corners.mean(0)
    a, b = (corners[1] - corners[0]) / 2, (corners[2] - corners[1]) / 2
    return np.asarray(centre + np.cos(turn) * a + np.sin(turn) * b)
