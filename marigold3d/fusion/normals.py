"""Surface normals from a depth map's own grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEP = 2  # px on either side: wide enough to see past the noise of one pixel


def grid_normals(points: NDArray[np.float32], centre: NDArray[np.floating]) -> NDArray[np.float32]:
    """Unit normals (H, W, 3) of world points (H, W, 3), turned towards the camera centre (3,); zero where undefined."""
    dx, dy = np.zeros_like(points), np.zeros_like(points)
    dx[:, STEP:-STEP] = points[:, 2 * STEP :] - points[:, : -2 * STEP]
    dy[STEP:-STEP] = points[2 * STEP :] - points[: -2 * STEP]
    dx[:, :STEP], dx[:, -STEP:] = dx[:, STEP : STEP + 1], dx[:, -STEP - 1 : -STEP]
    dy[:STEP], dy[-STEP:] = dy[STEP : STEP + 1], dy[-STEP - 1 : -STEP]
    normal = np.cross(dx, dy)
    length = np.linalg.norm(normal, axis=2, keepdims=True)
    normal = np.divide(normal, length, out=np.zeros_like(normal), where=length > 1e-20)
    away = np.einsum("hwc,hwc->hw", normal, centre.astype(np.float32) - points) < 0
    return np.where(away[..., None], -normal, normal).astype(np.float32)
