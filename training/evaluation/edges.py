"""How well the steps of a depth map lie where the truth has them.

The scale-invariant boundary score of Bochkovskii et al., "Depth Pro" (arXiv 2410.02073, section 3.2): two neighbours i
and j form an edge c(i, j) at ratio r if z_j / z_i > r, so that an edge knows which side is near. With sums over all
ordered pairs of 4-neighbours,

    precision = sum(c_z and c_t) / sum(c_z)      recall = sum(c_z and c_t) / sum(c_t)      F1 = their harmonic mean,

averaged over ten ratios from 1.05 to 1.25, weighted by the ratio, as their code does. It needs neither an edge detector
nor its thresholds, unlike the boundary errors of iBims-1 (Koch et al. 2018, arXiv 1805.01328), and does not depend on
the unit. It is strict: an edge one pixel off counts as missed and as false.

Here only pairs whose truth is valid on both sides count, the directions are pooled, and ratios at which the truth has
no edge are left out, so that a perfect map scores 1. On sparse truth (KITTI) few neighbours are both measured.

Small networks and sensors blur edges over several pixels, and sensors leave holes beside them: both then score next to
nothing. The `coarse` scores are the same of every k-th row and column, the smallest k that leaves at most COARSE_PX.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marigold3d.types import BoolImage

RATIOS = np.linspace(1.05, 1.25, 10)
COARSE_PX = 64  # longest side
SCORES = ("precision", "recall", "f1")

Depth = NDArray[np.floating[Any]]


def edge_metrics(depth_m: Depth, truth_m: Depth, valid: BoolImage) -> dict[str, float]:
    """edge_precision, edge_recall, edge_f1, and coarse_edge_ of each; NaN where the truth has no edge. depth_m, truth_m
    (H, W), positive where `valid` (H, W).
    """
    step = math.ceil(max(truth_m.shape) / COARSE_PX)
    coarse = (slice(None, None, step),) * 2
    scores = {
        "edge": _scores(depth_m, truth_m, valid),
        "coarse_edge": _scores(depth_m[coarse], truth_m[coarse], valid[coarse]),
    }
    return {
        f"{kind}_{name}": score for kind, found in scores.items() for name, score in zip(SCORES, found, strict=True)
    }


def _scores(depth_m: Depth, truth_m: Depth, valid: BoolImage) -> list[float]:
    """Precision, recall and F1, averaged over RATIOS."""
    counts = np.zeros((3, len(RATIOS)))  # edges of the map, of the truth, of both, at each ratio
    for turned in (False, True):  # neighbours in a row, then in a column
        z, t, known = (depth_m.T, truth_m.T, valid.T) if turned else (depth_m, truth_m, valid)
        pairs = known[:, :-1] & known[:, 1:]
        z_steps, t_steps = _steps(z, pairs), _steps(t, pairs)
        agreed = np.where(np.sign(z_steps) == np.sign(t_steps), np.minimum(np.abs(z_steps), np.abs(t_steps)), 0)
        counts += [_exceeding(np.abs(z_steps)), _exceeding(np.abs(t_steps)), _exceeding(agreed)]
    found, real, right = counts
    if not real.any():
        return [float("nan")] * len(SCORES)
    precision, recall = right / np.maximum(found, 1), right / np.maximum(real, 1)
    f1 = 2 * right / np.maximum(found + real, 1)  # = 2 P R / (P + R)
    weights = RATIOS * (real > 0)
    return [float(np.average(score, weights=weights)) for score in (precision, recall, f1)]


def _steps(depth: Depth, pairs: BoolImage) -> NDArray[np.int8]:
    """(P,) how many of RATIOS each neighbouring pair exceeds, negative where the second is nearer."""
    first, second = depth[:, :-1][pairs], depth[:, 1:][pairs]
    ratio = np.maximum(second / first, first / second)
    steps = np.zeros(len(ratio), np.int8)
    edge = ratio > RATIOS[0]
    steps[edge] = np.searchsorted(RATIOS, ratio[edge])  # those strictly below it
    return np.where(second > first, steps, -steps)


def _exceeding(steps: NDArray[np.int8]) -> NDArray[np.int64]:
    """(R,) how many pairs exceed each of RATIOS."""
    tally = np.bincount(steps, minlength=len(RATIOS) + 1)
    return np.cumsum(tally[::-1])[::-1][1:]
