"""Cues from a neighbouring frame's aligned depth, for frames that have too few of their own."""

from __future__ import annotations

import numpy as np

from ..camera import on_image, pixel_grid, unproject
from ..rigid import inverse, transform
from ..types import Array, DepthMap, Intrinsics, SparseCues

STEP = 8  # px between the samples carried over


def carried_cues(neighbour: DepthMap, T_world_neighbour: Array, T_world_frame: Array, camera: Intrinsics) -> SparseCues:
    """The neighbour's depth seen from the frame: its samples unprojected, moved and projected.

    Samples that are hidden in the frame's view are few and left to the robust fit. With equal poses (a static camera)
    this is the neighbour's depth at the same pixels.
    """
    uv = pixel_grid(camera.width, camera.height)[STEP // 2 :: STEP, STEP // 2 :: STEP].reshape(-1, 2)
    rows, columns = np.floor(uv[:, 1]).astype(int), np.floor(uv[:, 0]).astype(int)
    good = neighbour.valid[rows, columns]
    z = neighbour.depth[rows, columns][good].astype(float)
    points = transform(inverse(T_world_frame) @ T_world_neighbour, unproject(uv[good], z, camera))
    seen, inside = on_image(points, camera)
    sigma = np.full(len(z), 0.03) * z
    if neighbour.sigma is not None:
        sigma = np.maximum(neighbour.sigma[rows, columns][good], 0.01 * z)
    return SparseCues(seen[inside], points[inside, 2], sigma[inside], "neighbouring frame")
