"""How long work reports itself: stages are generators that yield `Progress` and return their result.

A front-end iterates (CLI bar, napari worker), a library call drains with `run`; closing the generator cancels the work.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Progress:
    """`done` of `total` steps of `stage` are finished (None: unknown). `payload` is the newest result, for previews."""

    stage: str
    done: int
    total: int | None
    payload: Any = None


Steps = Generator[Progress, None, T]


def run(steps: Steps[T], on_progress: Callable[[Progress], None] = lambda _: None) -> T:
    """Drive `steps` to the end, reporting every Progress, and return its result."""
    while True:
        try:
            on_progress(next(steps))
        except StopIteration as stop:
            result: T = stop.value
            return result


@dataclass(frozen=True, eq=False)
class FramePreview:
    """Newest depth of a frame: `position` among the used frames, `values` (H, W) float32 as the stage has them."""

    position: int
    values: Any


@dataclass(frozen=True, eq=False)
class CloudPreview:
    """Some of the points that were fused last: `points` (N, 3) float32 in the world, `colors` (N, 3) uint8."""

    points: Any
    colors: Any
