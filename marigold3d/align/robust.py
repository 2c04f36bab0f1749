"""Robust statistics: weights for iteratively reweighted least squares, and spreads that outliers do not move."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..types import Array

Loss = Literal["tukey", "huber"]

TUKEY = 4.685  # 95 % efficiency on Gaussian residuals (Holland & Welsch 1977)
HUBER = 1.345  # the same for Huber's loss
CORE = 2.0  # residuals within this many spreads are the core that `core_spread` measures
CORE_VARIANCE = 0.7737  # variance of a standard normal cut at CORE: 1 - 2 c phi(c) / (2 Phi(c) - 1)
LEAST_CORE = 1 / 3  # of the MAD: with nearly half of the residuals outliers the MAD is three times the core's spread


def tukey(r: Array) -> Array:
    """Tukey's biweight of standardised residuals (N,)."""
    return np.where(np.abs(r) < TUKEY, (1 - (r / TUKEY) ** 2) ** 2, 0.0)


def huber(r: Array) -> Array:
    """Huber's weight of standardised residuals (N,): 1 in the middle, falling as 1 / |r|."""
    return HUBER / np.maximum(np.abs(r), HUBER)


def weight(r: Array, loss: Loss) -> Array:
    """Weight of standardised residuals (N,) under a loss."""
    return tukey(r) if loss == "tukey" else huber(r)


def slope_of_psi(r: Array, loss: Loss) -> Array:
    """psi'(r) (N,) where psi(r) = r w(r) is the influence function of a loss."""
    if loss == "huber":
        return (np.abs(r) < HUBER).astype(float)
    u = (r / TUKEY) ** 2
    return np.where(u < 1, (1 - u) * (1 - 5 * u), 0.0)


def mad(r: Array) -> float:
    """Standard deviation from the median absolute residual."""
    size = np.abs(r)
    middle = len(size) // 2
    return float(1.4826 * np.partition(size, middle)[middle])  # np.median would look for NaN and take twice as long


def core_spread(r: Array, parameters: int) -> float:
    """Standard deviation of the residuals (N,) of a fit with so many `parameters`, outliers left out.

    The MAD of 40 % outliers and 60 % Gaussian residuals is twice their standard deviation. From there the spread of
    those within CORE spreads is taken, corrected for the cut, until their number stays: a redescending M-estimate of
    scale. Where the residuals have no core but long tails it stays near the MAD. The smallest residuals, which the fit
    made vanish, do not count for the MAD.
    """
    size = np.sort(np.abs(r))
    total = np.cumsum(size * size)
    rest = size[min(parameters, len(size) - 1) :]
    most = 1.4826 * float(rest[(len(rest) - 1) // 2] + rest[len(rest) // 2]) / 2
    spread, count = most, -1
    for _ in range(20):
        before, count = count, int(np.searchsorted(size, CORE * spread, side="right"))
        if count in (before, 0):
            break
        spread = float(np.sqrt(total[count - 1] / max(count - parameters, 1) / CORE_VARIANCE))
        spread = min(max(spread, most * LEAST_CORE), most)
    return spread
