"""Merging N affine-invariant predictions of one frame into one map and its uncertainty.

Each map x_i is known up to its own scale s_i > 0 and shift t_i. As in Marigold (arXiv 2312.02145, eq. 4) the sum over
pairs of RMS(s_i x_i + t_i - s_j x_j - t_j) is minimised. Two remarks make that a problem in N numbers:

* Shifts. Let m_i and sigma_i be mean and standard deviation of map i, r_ij the correlation of two maps, and
  p_i = s_i sigma_i. The mean square is (s_i m_i + t_i - s_j m_j - t_j)^2 + (p_i - p_j)^2 + 2 p_i p_j (1 - r_ij).
  Its first term vanishes for t_i = -s_i m_i, whatever the scales; the rest needs the N x N correlations alone: one
  pass over the pixels.
* Range. A common scale and shift of all maps is free. Marigold pins it with 0.02 (|min| + |1 - max|) of the merged
  map. The pairwise sum grows with the common scale, so wherever it exceeds 0.02 the true minimum of that cost is
  s = 0; the solver stays clear of it by stopping after a few iterations. Besides, the term has kinks at its own
  optimum, and hangs on two single pixels. Here sum p_i = N takes its place, under which the problem is convex in p;
  the range comes from the final renormalisation to 0..1, which the original makes too.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ..errors import InputError
from ..types import Array, FloatImage

Reduction = Literal["median", "mean"]

_SMOOTH = 1e-4
"""RMS differences below this share of a map's standard deviation count as agreement: keeps the root differentiable."""

_FLAT = 1e-6
"""Maps whose standard deviation is below this hold no shape to align."""


def merge_ensemble(maps: FloatImage, reduction: Reduction = "median") -> tuple[FloatImage, FloatImage]:
    """One map in 0..1 from N affine-invariant ones, and its one-sigma uncertainty in the same units.

    maps: (N, H, W) finite. "median" gives 1.4826 times the median absolute deviation, "mean" the standard deviation.
    Raises InputError for maps that are not (N, H, W) or not finite.
    """
    _check(maps)
    shaped = maps[maps.reshape(len(maps), -1).std(axis=1) > _FLAT]
    if len(shaped) == 0:
        return np.zeros(maps.shape[1:], np.float32), np.zeros(maps.shape[1:], np.float32)
    scale, shift = align_ensemble(shaped)
    aligned = scale[:, None, None] * shaped + shift[:, None, None]  # (N, H, W)
    return _renormalised(*reduce_ensemble(aligned, reduction))


def align_ensemble(maps: FloatImage) -> tuple[Array, Array]:
    """Scales (N,) and shifts (N,) that bring maps (N, H, W), none of them flat, together, but not to 0..1."""
    mean, sigma, correlation = _moments(maps)
    start = np.zeros(len(maps))  # every map standardised: the optimum already where all correlations are alike
    options = {"maxiter": 200, "ftol": 1e-14, "gtol": 1e-8}
    found = minimize(pairwise_rms, start, args=(correlation,), jac=True, method="L-BFGS-B", options=options)
    scale = _spreads(found.x) / sigma
    return scale, -scale * mean


def pairwise_rms(theta: Array, correlation: Array) -> tuple[float, Array]:
    """Sum over pairs of the RMS difference between maps of spread p = N softmax(theta), and its gradient in theta (N,).

    correlation: (N, N) of the maps. The softmax keeps every scale positive and the mean spread at one.
    """
    p = _spreads(theta)
    difference = p[:, None] - p[None, :]  # (N, N)
    disagreement = 1.0 - correlation  # (N, N); zero on the diagonal
    rms = np.sqrt(difference**2 + 2.0 * np.outer(p, p) * disagreement + _SMOOTH**2)
    cost = 0.5 * float(np.sum(rms) - len(p) * _SMOOTH)
    by_p = np.sum((difference + p[None, :] * disagreement) / rms, axis=1)  # (N,)
    return cost, p * (by_p - by_p @ p / len(p))  # chain rule of the softmax


def reduce_ensemble(aligned: NDArray[np.floating], reduction: Reduction = "median") -> tuple[Array, Array]:
    """Centre and one-sigma spread over the first axis of aligned maps (N, H, W)."""
    if reduction == "mean":
        return aligned.mean(axis=0), aligned.std(axis=0, ddof=min(1, len(aligned) - 1))
    if reduction == "median":
        centre = np.median(aligned, axis=0)
        return centre, 1.4826 * np.median(np.abs(aligned - centre), axis=0)  # MAD of a normal distribution
    raise InputError(f"unknown ensemble reduction {reduction!r}: use 'median' or 'mean'")


def _check(maps: FloatImage) -> None:
    if maps.ndim != 3 or len(maps) == 0:
        raise InputError(f"an ensemble must be (N, H, W) with N > 0, got {maps.shape}")
    if not np.all(np.isfinite(maps)):
        raise InputError("ensemble members must be finite; fill or drop invalid pixels first")


def _moments(maps: FloatImage) -> tuple[Array, Array, Array]:
    """Means (N,), standard deviations (N,) and correlations (N, N)."""
    x = maps.reshape(len(maps), -1).astype(np.float64)  # (N, pixels)
    mean = x.mean(axis=1)
    x -= mean[:, None]  # before the products: a small spread on a large mean would cancel
    gram = x @ x.T / x.shape[1]  # (N, N)
    sigma = np.sqrt(np.diag(gram))
    correlation = np.clip(gram / np.outer(sigma, sigma), -1.0, 1.0)
    np.fill_diagonal(correlation, 1.0)
    return mean, sigma, correlation


def _spreads(theta: Array) -> Array:
    weight = np.exp(theta - theta.max())
    return np.asarray(len(theta) * weight / weight.sum())


def _renormalised(centre: Array, spread: Array) -> tuple[FloatImage, FloatImage]:
    low, high = centre.min(), centre.max()
    extent = max(high - low, 1e-6)
    return ((centre - low) / extent).astype(np.float32), (spread / extent).astype(np.float32)
