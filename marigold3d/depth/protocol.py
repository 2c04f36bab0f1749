"""What every depth estimator offers to the rest of marigold3d, and what some offer besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..types import Domain, RelativeDepth

ClipPass = Callable[[Sequence[int], NDArray[np.uint8]], list[RelativeDepth]]
"""Depth of the frames at positions (N,), in order, from rgb (N, H, W, 3): called for one batch after the other."""


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


@runtime_checkable
class ParallelEstimator(Protocol):
    """An estimator that is fastest with one frame a core: so many at once, each on its own thread."""

    frames_at_once: int


@runtime_checkable
class ClipEstimator(Protocol):
    """An estimator that knows how many frames it can take together, and whose frames may lean on those before them.

    segment: where a frame leans on its predecessors, the chain starts anew at every position that this divides, and
    behind every gap; 1: no frame leans on another.
    """

    segment: int

    def batch_size(self, height: int, width: int) -> int:
        """Frames of this size to estimate together."""
        ...

    def clip_pass(self) -> ClipPass:
        """A new pass over a clip, which keeps what later frames lean on."""
        ...
