"""Where pixels go between two frames of a clip whose camera path is not known: the type that alignment takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..types import Array, BoolImage, FloatImage
from .grid import Float32, SampleGrid


@dataclass(frozen=True, eq=False)
class Flow:
    """displacement (h, w, 2): (column, row) steps from a frame to another, as shares of width and height.

    valid (h, w): where it holds; what is hidden in the other frame, or leaves it, has none. Any resolution. spread: by
    how much depths may really have changed between the two frames, log depth.
    """

    displacement: FloatImage
    valid: BoolImage
    spread: float = 0.0

    def cells(self, grid: SampleGrid) -> tuple[Float32, NDArray[np.bool_]]:
        """Where the grid's samples go, in cells (2, N), and which of them are known to (N,)."""
        height, width = self.valid.shape
        row = (grid.uv[:, 1] * height / grid.height).astype(np.intp)
        column = (grid.uv[:, 0] * width / grid.width).astype(np.intp)
        step: Array = self.displacement[row, column] * (grid.columns, grid.rows)
        return (grid.cells + step.T).astype(np.float32), self.valid[row, column]


FlowBetween = Callable[[int, int], Flow | None]
"""flow(i, j): from frame i to frame j; None where the two have nothing in common."""
