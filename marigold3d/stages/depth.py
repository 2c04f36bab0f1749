"""Relative depth of every posed frame."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..depth import DepthEstimator, frames_to_read, stream_or_waiting
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

    def put(self, position: int, depth: RelativeDepth) -> None:
        if depth.uncertainty is not None:
            self.uncertainty[position] = depth.uncertainty
        self.values[position] = depth.values  # last: its presence means that the frame is complete


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
    positions = np.flatnonzero(posed).tolist()
    wanted = frames_to_read(estimator, positions, store.values)
    total, done = len(positions), sum(p in store.values for p in positions)
    frames = job.video.frames_at(wanted, max_side=job.config.video.max_side)
    with closing(stream_or_waiting(estimator, frames, job.config.depth.batch)) as results:
        for result in results:
            if result is None:
                yield Progress("depth", done, total)
                continue
            done += result.position not in store.values
            store.put(result.position, result.depth)
            yield Progress("depth", done, total, FramePreview(result.position, result.depth.values))
    return store
