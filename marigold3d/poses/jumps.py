"""Keyframes at which a hand-held camera would have to leap aside and back: their poses are wrong.

A blurred or bare picture may have just enough matches for a pose. Nothing in the matches says that it is wrong, but
the frames before and after do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..types import Array

AROUND = 12  # keyframes to each side that say what is usual
LEAST = 8  # of them there must be
ASIDE = 2.0  # a camera is not so many times its usual step from where its neighbours lie ...
USUAL = 6.0  # ... and so many times farther than is usual
STILL = 1e-3  # of the path's extent: smaller steps are noise
LONGEST_S = 0.5  # between neighbours: beyond it a camera may have been anywhere


def without_jumps(centres: Array, times_s: Array) -> NDArray[np.bool_]:
    """(M,) which of the camera centres (M, 3), in any units, at increasing times (M,) are believable.

    The worst goes first, and what is left is looked at anew: beside a wrong one, right ones look wrong. A right one
    between two wrong ones may look worse than either and go before them, so in the end all that fits comes back. The
    first and the last stay, as do all where keyframes are few or far apart.
    """
    kept = np.ones(len(centres), dtype=bool)
    least = STILL * float(np.linalg.norm(np.ptp(centres, axis=0))) if len(centres) else 0.0
    gone: list[int] = []
    while kept.sum() > LEAST:
        rows = np.flatnonzero(kept)
        excess = _excess(centres[rows], times_s[rows], least)
        worst = int(excess.argmax())
        if excess[worst] <= 1:
            break
        gone.append(int(rows[worst]))
        kept[gone[-1]] = False
    for row in reversed(gone):
        kept[row] = True
        kept[row] = _excess(centres[kept], times_s[kept], least).max() <= 1
    return kept


def _excess(centres: Array, times_s: Array, least: float) -> Array:
    """(M,) how far each centre lies from between its neighbours, over what can be; above 1 is too far."""
    before, after = times_s[1:-1] - times_s[:-2], times_s[2:] - times_s[1:-1]
    share = (before / (before + after))[:, None]
    aside = np.linalg.norm(centres[1:-1] - ((1 - share) * centres[:-2] + share * centres[2:]), axis=1)  # (M - 2,)
    step = np.linalg.norm(centres[2:] - centres[:-2], axis=1) / 2
    out = np.zeros(len(centres))
    for i in range(len(aside)):
        near = np.r_[max(0, i - AROUND) : i, i + 1 : min(len(aside), i + 1 + AROUND)]
        if len(near) >= LEAST and max(before[i], after[i]) <= LONGEST_S:
            usual = max(ASIDE * float(np.median(step[near])), USUAL * float(np.median(aside[near])), least)
            out[i + 1] = aside[i] / usual
    return out
