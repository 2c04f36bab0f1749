"""Whether cues determine scale and shift: how much of a map's range they span, and what a fitted line looks like."""

from __future__ import annotations

import numpy as np

from ..types import Array, Domain, RelativeDepth
from .line import Line

MIN_SPAN = 0.05  # cues that span less of the map's 2-98 % range leave the shift open
MOST_DOUBT = 0.5  # a scale less certain than this share of itself is noise
RANGE_PIXELS = 3000  # of the map, to see its range of values


def value_range(relative: RelativeDepth, v: Array) -> tuple[float, float]:
    """2nd and 98th percentile of the map's values, from a few thousand of its pixels; the cues' if all are NaN."""
    step = max(1, int(np.sqrt(relative.values.size / RANGE_PIXELS)))
    some = relative.values[step // 2 :: step, step // 2 :: step].ravel()
    some = np.sort(some[np.isfinite(some)])
    if len(some) == 0:
        return float(v.min()), float(v.max())
    return float(some[int(0.02 * (len(some) - 1))]), float(some[int(np.ceil(0.98 * (len(some) - 1)))])


def share_spanned(v: Array, low: float, high: float) -> float:
    """The cues' 5-95 % range of relative values as a share of the map's; of eight or more, no single one makes it."""
    v = np.sort(v)
    spare = max(int(0.05 * (len(v) - 1)), int(len(v) >= 8))
    return float(v[len(v) - 1 - spare] - v[spare]) / (high - low) if high > low else 0.0


def too_little(span: float) -> str:
    """Why a span leaves the shift open; empty where it does not."""
    return "" if span >= MIN_SPAN else f"cues span {span:.0%} of the depth range"


def doubt(line: Line, v: Array, domain: Domain) -> str:
    """Why the line is no alignment; empty where it is one."""
    if line.slope <= 0:
        return "the cues' depth falls where the map's rises"
    if np.sqrt(line.covariance[0, 0]) > MOST_DOUBT * line.slope:
        return f"the scale is uncertain by {min(np.sqrt(line.covariance[0, 0]) / line.slope, 9.99):.0%}"
    if domain != "log_depth" and np.median(line.slope * v + line.intercept) <= 0:
        return "the fitted depth is negative"
    return ""
