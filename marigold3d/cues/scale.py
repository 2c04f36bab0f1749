"""The one factor from scene units to the units of known depths, from every frame that has both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..align.robust import mad
from ..errors import GeometryError
from ..types import Array

OUTLIER = 3.0  # robust standard deviations from its frame's median: a cue farther off is not counted as agreeing
LEAST_SPREAD = 0.005  # of log ratios: depths agree no better than this, whatever few exact cues say
MEDIAN_LOSS = 1.2533  # standard error of a median over that of a mean, Gaussian


@dataclass(frozen=True, eq=False)
class MetricScale:
    """cue depth = factor * scene depth.

    sigma: standard deviation of `factor`; frame_factors (F,): of each frame, in the order given, NaN where it has no
    cues; spread: robust standard deviation of the frames' factors as a share, large when frames disagree; used,
    rejected: cues.
    """

    factor: float
    sigma: float
    frame_factors: Array
    spread: float
    used: int
    rejected: int


def metric_scale(frames: Iterable[tuple[Array, Array]]) -> MetricScale:
    """Weighted median over frames of each frame's median log ratio of cue depth (N,) to scene depth (N,).

    A frame's weight is what its number of cues and their spread are worth beside the spread between frames, so that
    neither many cues in one frame nor few good ones decide alone. Pairs that are not finite and positive are skipped.
    Raises GeometryError when no frame has a pair.
    """
    medians, variances, used, rejected = [], [], 0, 0
    for cue_depth, scene_depth in frames:
        ratios = _log_ratios(cue_depth, scene_depth)
        median = float(np.median(ratios)) if len(ratios) else np.nan
        spread = max(mad(ratios - median), LEAST_SPREAD) if len(ratios) else np.nan
        agree = int((np.abs(ratios - median) <= OUTLIER * spread).sum())
        used, rejected = used + agree, rejected + len(ratios) - agree
        medians.append(median)
        variances.append((MEDIAN_LOSS * spread) ** 2 / max(len(ratios), 1))
    if not used:
        raise GeometryError(
            "no known depth meets a valid pixel of the depth maps, so the scale is open: check the cues' frames and "
            "pixels"
        )
    log_frame, variance = np.array(medians), np.array(variances)
    known = np.isfinite(log_frame)
    frames_known = int(known.sum())
    # Without the factor, the spread of few frames comes out too small (Croux & Rousseeuw 1992).
    between = mad(log_frame[known] - np.median(log_frame[known])) * frames_known / (frames_known - 0.8)
    weights = 1 / (variance[known] + between**2)
    factor = float(np.exp(weighted_median(log_frame[known], weights)))
    effective = weights.sum() ** 2 / (weights**2).sum()
    sigma = max(MEDIAN_LOSS * between / np.sqrt(effective), float(np.sqrt(1 / weights.sum())))
    return MetricScale(factor, factor * sigma, np.exp(log_frame), between, used, rejected)


def weighted_median(values: Array, weights: Array) -> float:
    """Where half of the weight (N,) lies on either side of values (N,), interpolated between them."""
    order = np.argsort(values)
    middle = np.cumsum(weights[order]) - weights[order] / 2
    return float(np.interp(weights.sum() / 2, middle, values[order]))


def _log_ratios(cue_depth: Array, scene_depth: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log(cue_depth.astype(float)) - np.log(scene_depth.astype(float))
    return ratios[np.isfinite(ratios)]
