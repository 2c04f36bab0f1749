"""Cues as arrays: their relative deviations, several sets as one, and fewer of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..types import Array, SparseCues

UNSTATED_SIGMA = 0.02  # relative standard deviation of cues that come without one


def sigma_shares(cues: SparseCues) -> Array:
    """(N,) standard deviation of each cue as a share of its depth."""
    depth = np.asarray(cues.depth, float)
    return np.full(len(depth), UNSTATED_SIGMA) if cues.sigma is None else np.asarray(cues.sigma, float) / depth


def joined(parts: Sequence[SparseCues]) -> SparseCues:
    """All cues of a frame, in the order of the parts."""
    parts = parts or [SparseCues.empty()]
    return SparseCues(
        np.concatenate([c.uv for c in parts]),
        np.concatenate([c.depth for c in parts]),
        np.concatenate([UNSTATED_SIGMA * c.depth if c.sigma is None else c.sigma for c in parts]),
        ", ".join(dict.fromkeys(c.source for c in parts if len(c))),
    )


def thinned(cues: SparseCues, most: int) -> SparseCues:
    """At most so many of the cues, evenly picked in their order."""
    return cues if len(cues) <= most else cues.select(np.linspace(0, len(cues) - 1, most).astype(np.intp))
