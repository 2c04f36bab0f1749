"""How many cues a file held, and why some of them are not used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..types import BoolImage


@dataclass(frozen=True)
class Tally:
    """`total` cues were read; `dropped` says how many of them for each reason."""

    total: int
    dropped: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def sift(cls, total: int, reasons: Iterable[tuple[str, NDArray[np.bool_] | np.bool_]]) -> tuple[BoolImage, Tally]:
        """Which of `total` cues (N,) to keep; each dropped one counts for the first reason (N,) that it meets."""
        keep = np.ones(total, bool)
        dropped = {}
        for reason, bad in reasons:
            if count := int((keep & bad).sum()):
                dropped[reason] = count
            keep &= ~bad
        return keep, cls(total, dropped)

    @property
    def kept(self) -> int:
        return self.total - sum(self.dropped.values())

    def __add__(self, other: Tally) -> Tally:
        reasons = {**self.dropped, **other.dropped}
        counts = {r: self.dropped.get(r, 0) + other.dropped.get(r, 0) for r in reasons}
        return Tally(self.total + other.total, counts)

    def __str__(self) -> str:
        """As in "3,112 of 40,000 cues dropped: 2,900 outside the image, 212 not a number"."""
        if not self.dropped:
            return f"all {self.total:,} cues used"
        most_first = sorted(self.dropped.items(), key=lambda item: -item[1])
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in most_first)
        return f"{sum(self.dropped.values()):,} of {self.total:,} cues dropped: {reasons}"
