"""Relative depth of every posed frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..depth import DepthEstimator
from ..progress import FramePreview, Progress, Steps
from ..scan import Scan
from ..store import FrameArray
from ..types import RelativeDepth
from .job import Job


@dataclass(frozen=True, eq=False)
class RelativeStore:
    """The network's output on disk, by position."""

    values: FrameArray
    uncertainty: FrameArray
    estimator: DepthEstimator

    def __call__(self, position: int) -> RelativeDepth:
        uncertainty = self.uncertainty.get(position)
        return RelativeDepth(self.values[position], self.estimator.domain, uncertainty)


def estimate_depth(
    job: Job, scan: Scan, posed: NDArray[np.bool_], estimator: DepthEstimator, resume: bool
) -> Steps[RelativeStore]:
    """Relative depth of every posed frame; frames that are on disk already are not estimated again."""
    w, h = scan.image_size
    shape = (len(scan), h, w)
    store = RelativeStore(
        job.run.frames_array("relative", shape, fresh=not resume),
        job.run.frames_array("relative_sigma", shape, fresh=not resume),
        estimator,
    )
    wanted = [p for p in np.flatnonzero(posed).tolist() if p not in store.values]
    total, done = int(posed.sum()), int(posed.sum()) - len(wanted)
    for positions, rgb in _batches(
        job.video.frames_at(wanted, max_side=job.config.video.max_side), job.config.depth.batch or 4
    ):
        for position, estimate in zip(positions, estimator.estimate(rgb), strict=True):
            if estimate.uncertainty is not None:
                store.uncertainty[position] = estimate.uncertainty
            store.values[position] = estimate.values  # last: its presence means that the frame is complete
            done += 1
            yield Progress("depth", done, total, FramePreview(position, estimate.values))
    return store


def _batches(
    frames: Iterator[tuple[int, NDArray[np.uint8]]], size: int
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    positions: list[int] = []
    images: list[NDArray[np.uint8]] = []
    for position, rgb in frames:
        positions.append(position)
        images.append(rgb)
        if len(positions) == size:
            yield positions, np.stack(images)
            positions, images = [], []
    if positions:
        yield positions, np.stack(images)
