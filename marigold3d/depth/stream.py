"""Depth of a stream of frames, with any estimator: reading, estimating and writing overlap; memory stays bounded.

    for frame in stream(estimator, enumerate(frames)):
        write(frame.position, frame.depth)

While one batch is estimated, the caller's thread reads the next and writes the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..types import RelativeDepth
from .overlap import overlapped
from .protocol import ClipEstimator, ClipPass, DepthEstimator, ParallelEstimator

BATCH = 4  # frames together, for estimators that do not say what fits


class Done(Protocol):
    """The positions that are on disk already: a set, or a store of frames."""

    def __contains__(self, position: int, /) -> bool: ...


Numbered = tuple[int, NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class EstimatedFrame:
    """A frame's position, its `rgb` (H, W, 3) uint8 and its depth (H, W)."""

    position: int
    rgb: NDArray[np.uint8]
    depth: RelativeDepth


def stream(
    estimator: DepthEstimator, frames: Iterable[Numbered], batch: int | None = None
) -> Generator[EstimatedFrame, None, None]:
    """Depth of frames (position, rgb (H, W, 3) uint8), in their order; sizes may differ.

    Positions count the used frames of a clip; they matter where frames lean on each other (`frames_to_read`). batch:
    frames estimated together, at most; None: what the estimator finds to fit. Errors of the reader and of the
    estimator are raised here, after the results before them.
    """
    with closing(stream_or_waiting(estimator, frames, batch)) as results:
        for result in results:
            if result is not None:
                yield result


def stream_or_waiting(
    estimator: DepthEstimator, frames: Iterable[Numbered], batch: int | None = None
) -> Generator[EstimatedFrame | None, None, None]:
    """`stream`, and None whenever a moment went by without a result, for callers that must stay responsive.

    Closing it does not wait for the batch under way.
    """
    at_once = estimator.frames_at_once if isinstance(estimator, ParallelEstimator) else 1
    fitting = 1 if at_once > 1 else batch
    batches = _batches(frames, lambda h, w: fitting or _batch_size(estimator, h, w))
    estimated: ClipPass = (
        estimator.clip_pass() if isinstance(estimator, ClipEstimator) else lambda _, rgb: estimator.estimate(rgb)
    )

    def work(some: list[Numbered]) -> list[EstimatedFrame]:
        positions, images = [position for position, _ in some], [rgb for _, rgb in some]
        depths = estimated(positions, np.stack(images))
        return [EstimatedFrame(*parts) for parts in zip(positions, images, depths, strict=True)]

    results = _on_cores(work, batches, at_once) if at_once > 1 else overlapped(work, batches, 1)
    with closing(results):
        for result in results:
            if result is None:
                yield None
                continue
            yield from result
            del result  # while the next is awaited, these frames need not be kept


def frames_to_read(estimator: DepthEstimator, positions: Sequence[int], done: Done) -> list[int]:
    """Those of the clip's positions that `stream` must see so that those not `done` come out as in one go.

    Where frames lean on their predecessors, these are all frames of a segment up to its last one that is not done, so
    that some come out once more, equal to what is there.
    """
    segment = estimator.segment if isinstance(estimator, ClipEstimator) else 1
    wanted: list[int] = []
    for chain in _chains(positions, segment):
        missing = [i for i, position in enumerate(chain) if position not in done]
        wanted += chain[: missing[-1] + 1] if missing else []
    return wanted


def begins_chain(position: int, before: int | None, segment: int) -> bool:
    """Whether the frame at `position` leans on nothing, after the frame at `before`."""
    return position % segment == 0 or before is None or position != before + 1


def _chains(positions: Sequence[int], segment: int) -> Iterator[list[int]]:
    chain: list[int] = []
    for position in positions:
        if chain and begins_chain(position, chain[-1], segment):
            yield chain
            chain = []
        chain.append(position)
    if chain:
        yield chain


def _batches(frames: Iterable[Numbered], size_of: Callable[[int, int], int]) -> Iterator[list[Numbered]]:
    """Frames of one size together, as many as `size_of`(height, width)."""
    batch: list[Numbered] = []
    size = 0
    for position, rgb in frames:
        if batch and rgb.shape != batch[0][1].shape:
            yield batch
            batch = []
        if not batch:
            size = size_of(rgb.shape[0], rgb.shape[1])
        batch.append((position, rgb))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _batch_size(estimator: DepthEstimator, height: int, width: int) -> int:
    return estimator.batch_size(height, width) if isinstance(estimator, ClipEstimator) else BATCH


def _on_cores(
    work: Callable[[list[Numbered]], list[EstimatedFrame]], batches: Iterator[list[Numbered]], count: int
) -> Generator[list[EstimatedFrame] | None, None, None]:
    from .device import on_cores  # loads torch, as the estimator has

    return on_cores(work, batches, count)
