"""Robust statistics: weights for iteratively reweighted least squares, and a spread that outliers do not move."""

from __future__ import annotations

import numpy as np

from ..types import Array

TUKEY = 4.685  # 95 % efficiency on Gaussian residuals (Holland & Welsch 1977)


def tukey(r: Array) -> Array:
    """Tukey's biweight of standardised residuals (N,)."""
    return np.where(np.abs(r) < TUKEY, (1 - (r / TUKEY) ** 2) ** 2, 0.0)


def mad(r: Array) -> float:
    """Standard deviation from the median absolute residual."""
    return float(1.4826 * np.median(np.abs(r)))
