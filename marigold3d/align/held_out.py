"""Cues that no fit sees, so that the error of an alignment can be measured instead of believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..types import Array, SparseCues
from .cue_store import CueStore
from .sources import CueSource, FrameCues

LEAST_POINTS = 50  # a source of fewer keeps them all: they are worth more as cues


@dataclass
class HeldOut:
    """Error on points no fit has seen, for one way of aligning. Sums only, so that it does not grow with the clip."""

    count: int = 0
    absolute: float = 0.0
    relative: float = 0.0
    within_1_25: int = 0

    def add(self, estimate: Array, truth: Array) -> None:
        """Depths (N,), NaN where there is no estimate."""
        good = np.isfinite(estimate)
        e, z = estimate[good], truth[good]
        self.count += len(z)
        self.absolute += float(np.abs(e - z).sum())
        self.relative += float((np.abs(e - z) / z).sum())
        self.within_1_25 += int((np.maximum(e / z, z / e) < 1.25).sum())

    def report(self) -> dict[str, float | int]:
        """n, mean absolute error in scene units, its mean as a share of depth, share within a factor of 1.25."""
        n = max(self.count, 1)
        return {
            "n": self.count,
            "mae": round(self.absolute / n, 6),
            "abs_rel": round(self.relative / n, 5),
            "delta1": round(self.within_1_25 / n, 5),
        }


def held_out_points(count: int, share: float) -> NDArray[np.bool_]:
    """(count,) bool: the points kept back. Whole points, not observations: what one frame may not see, none may."""
    if count < LEAST_POINTS:
        return np.zeros(count, bool)
    return np.random.default_rng(0).random(count) < share


@dataclass(frozen=True, eq=False)
class GatheredCues:
    """One source's cues of every frame: those the solve may see, and those held out."""

    name: str
    kept: Sequence[SparseCues]
    held: Sequence[SparseCues]

    @classmethod
    def of(cls, source: CueSource, positions: NDArray[np.int64], poses: Array | None, share: float) -> GatheredCues:
        """Of the frames at positions (P,) with poses (P, 4, 4), where there are any."""
        made = isinstance(source, FrameCues) and not source.measured
        held = held_out_points(source.count, 0.0 if made else share)
        kept_cues, held_cues = CueStore(), CueStore()
        for i, position in enumerate(positions.tolist()):
            cues, ids = source.cues(position, np.eye(4) if poses is None else poses[i])
            kept_cues.append(cues.select(~held[ids]))
            held_cues.append(cues.select(held[ids]))
        return cls(source.name, kept_cues, held_cues)
