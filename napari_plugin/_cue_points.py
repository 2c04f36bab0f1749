"""A Points layer as known depths: where people click on frames and type how far it is."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marigold3d.atomic import atomic_path
from marigold3d.errors import UsageError

from ._layers import FRAME_AXES, KIND

if TYPE_CHECKING:
    from napari.components import ViewerModel

NAME = "known depths"
FEATURE = "depth_m"
COLUMNS = ("frame", "u", "v", "depth")


def new_cue_layer(viewer: ViewerModel, depth_m: float) -> Any:
    """A Points layer to click known depths on; the next point's depth in metres is its feature default."""
    layer = viewer.add_points(
        np.zeros((0, 3)),
        ndim=3,
        name=NAME,
        features={FEATURE: np.zeros(0)},
        feature_defaults={FEATURE: depth_m},
        text={"string": "{depth_m:.2f} m", "size": 10, "color": "white", "translation": (0, -14, 0)},
        face_color="#ff4fa3",
        border_width=0,
        size=8,
        axis_labels=FRAME_AXES,
        metadata={KIND: "frames"},
    )
    layer.mode = "add"
    return layer


def is_cue_layer(layer: Any) -> bool:
    """Whether a layer holds points with depths."""
    return FEATURE in getattr(layer, "features", ()) and hasattr(layer, "face_color")


def write_cues(layer: Any, path: Path) -> int:
    """Write the points as a table of frame, u, v, depth that `--cues` reads; how many there are.

    UsageError when there are none, or one has no positive depth.
    """
    depth_m = np.asarray(layer.features[FEATURE], float) if is_cue_layer(layer) else np.zeros(0)
    if not len(depth_m):
        raise UsageError(f"{layer.name} has no points with a feature {FEATURE!r}: click points on frames first")
    if not (depth_m > 0).all():
        raise UsageError(f"{layer.name}: every point needs a depth above zero, in metres; see its features table")
    world = np.array([layer.data_to_world(p) for p in layer.data])  # (N, 3) frame, y, x
    if world.shape[1] != 3:
        raise UsageError(f"{layer.name} must have the clip's three dimensions: time, y, x")
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for (frame, y, x), depth in zip(world, depth_m, strict=True):
            table.writerow([round(frame), f"{x + 0.5:.3f}", f"{y + 0.5:.3f}", f"{depth:.6g}"])
    return len(depth_m)
