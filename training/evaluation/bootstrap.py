"""Confidence intervals of means over images: the percentile bootstrap (Efron & Tibshirani 1993, chapter 13)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marigold3d.types import Array

RESAMPLES = 2000
LEVEL = 0.95


def mean_of_groups(groups: Sequence[Array]) -> float:
    """Mean over groups of the mean over a group's images; NaN are no images, and groups without images do not count."""
    means = [float(values.mean()) for values in _without_nan(groups)]
    return float(np.mean(means)) if means else float("nan")


def interval(groups: Sequence[Array], seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % interval of `mean_of_groups`, from images drawn anew with replacement within each group.

    groups: values (n_g,) of the images of each. (NaN, NaN) where no group has two images. It tells how far the figure
    would move with other images of the same kind; images of one clip are alike, so that there it is too narrow.
    """
    kept = _without_nan(groups)
    if not any(len(values) > 1 for values in kept):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    draws = np.zeros(resamples)
    for values in kept:
        picks = rng.integers(len(values), size=(resamples, len(values)))
        draws += values[picks].mean(axis=1) / len(kept)
    tail = 50.0 * (1.0 - LEVEL)
    low, high = np.percentile(draws, (tail, 100.0 - tail))
    return float(low), float(high)


def _without_nan(groups: Sequence[Array]) -> list[Array]:
    kept = [np.asarray(values, np.float64) for values in groups]
    kept = [values[~np.isnan(values)] for values in kept]
    return [values for values in kept if len(values)]
