"""What every depth estimator offers to the rest of marigold3d."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..types import Domain, RelativeDepth


class DepthEstimator(Protocol):
    """Turns RGB frames into relative depth. `domain` tags what its numbers mean: alignment fits in that domain."""

    name: str
    domain: Domain

    def estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        """Depth of a batch: rgb (N, H, W, 3) uint8 sRGB -> N maps (H, W), independent of the batch they came in."""
        ...

    def provenance(self) -> dict[str, str]:
        """Model name, weights hash, licence and settings, for the run's manifest."""
        ...
