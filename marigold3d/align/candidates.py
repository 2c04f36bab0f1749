"""Where a robust line fit starts: of many lines through two points, the one that most points agree with."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..types import Array

TRIALS = 300  # lines through two points; at 50 % outliers 75 of them pass through good ones only
JUDGES = 200  # points that a candidate is judged by
NETWORK = 0.16  # relative error expected of some networks: candidates are not judged more strictly than this
CLOSE = 1.5  # spreads within which a point agrees with a candidate, more or less


def steady_line(x: Array, y: Array, logarithmic: bool) -> tuple[float, float] | None:
    """(slope, intercept) of a rising line through points (x, y) (N,), N >= 2; None where no two points make one.

    Candidates are judged in log y. The least median of their residuals (Rousseeuw 1984) gives the tolerance; what
    counts is the truncated sum of squares (MSAC, Torr & Zisserman 2000), because the median is content with half of the
    points: a wall that fills half of the image would fit a line of any slope.
    """
    order = np.lexsort((y, x))  # so that the draws do not depend on the order of the points
    x, y = x[order], y[order]
    i, j, judges = _draws(len(x))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        slope = (y[i] - y[j]) / (x[i] - x[j])  # (trials,)
    good = np.isfinite(slope) & (slope > 0)
    if not good.any():
        return None
    slope = slope[good]
    intercept = y[i[good]] - slope * x[i[good]]
    x, y = x[judges], y[judges]
    if logarithmic:
        r = np.multiply.outer(slope, x) + intercept[:, None] - y  # (trials, judges)
    else:  # in float32: most of the time of a fit goes into this logarithm
        ratio = np.multiply.outer(slope, x / y) + np.multiply.outer(intercept, 1 / y)
        r = np.log(np.maximum(ratio, 1e-6).astype(np.float32))
    r = np.abs(r)
    middle = len(judges) // 2
    least = float(np.partition(r, middle, axis=1)[:, middle].min())
    tolerance = CLOSE * max(1.4826 * (1 + 5 / len(judges)) * least, NETWORK)
    best = int((np.minimum(r / tolerance, 1.0) ** 2).sum(axis=1).argmin())
    return float(slope[best]), float(intercept[best])


@lru_cache(maxsize=64)
def _draws(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Pairs (i, j) of points to draw lines through, all where they are few, and the points to judge by; seeded."""
    rng = np.random.default_rng(0)
    if count * (count - 1) // 2 <= TRIALS:
        i, j = np.triu_indices(count, 1)
    else:
        i = rng.integers(count, size=TRIALS)
        j = (i + rng.integers(1, count, size=TRIALS)) % count
    return i, j, np.sort(rng.permutation(count)[:JUDGES])
