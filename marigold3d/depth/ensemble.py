"""Merging N predictions of one frame into one map and its uncertainty.

"affine": each map x_i is known up to its own scale s_i > 0 and shift t_i. As in Marigold (arXiv 2312.02145, eq. 4) the
sum over pairs of RMS(s_i x_i + t_i - s_j x_j - t_j) is minimised. Two remarks make that a problem in N numbers:

* Shifts. Let m_i and sigma_i be mean and standard deviation of map i, r_ij the correlation of two maps, and
  p_i = s_i sigma_i. The mean square is (s_i m_i + t_i - s_j m_j - t_j)^2 + (p_i - p_j)^2 + 2 p_i p_j (1 - r_ij).
  Its first term vanishes for t_i = -s_i m_i, whatever the scales; the rest needs the N x N correlations alone: one
  pass over the pixels.
* Range. A common scale and shift of all maps is free. Marigold pins it with 0.02 (|min| + |1 - max|) of the merged
  map. The pairwise sum grows with the common scale, so wherever it exceeds 0.02 the true minimum of that cost is
  s = 0; the solver stays clear of it by stopping after a few iterations. Besides, the term has kinks at its own
  optimum, and hangs on two single pixels. Here sum p_i = N takes its place, under which the problem is convex in p;
  the range comes from the final renormalisation to 0..1, which the original makes too.

"scale": the shifts are known to be zero. All of this holds with moments about zero in place of those about the mean:
sigma_i is then the root mean square of a map, and r_ij the cosine between two.

"none": the maps share scale and shift already (metres, say). They are reduced, and keep their units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ..errors import InputError
from ..types import Array, FloatImage
from .reduction import Reduction, reduce_ensemble

Mode = Literal["affine", "scale", "none"]
"""What the members' numbers are known up to: scale and shift, scale alone, or nothing."""

_SMOOTH = 1e-4
"""RMS differences below this share of a map's spread count as agreement: keeps the root differentiable."""

_FLAT = 1e-6
"""Maps whose spread is below this hold no shape to align."""

_BLOCK_PX = 16384
"""Pixels whose products are summed together: few enough for a core's cache."""


def merge_ensemble(
    maps: FloatImage, reduction: Reduction = "median", mode: Mode = "affine"
) -> tuple[FloatImage, FloatImage]:
    """One map (H, W) from N predictions of it, and its one-sigma uncertainty in the same units.

    maps: (N, H, W) finite. reduction: as for `reduce_ensemble`. mode: "affine" gives 0..1, both reached; "scale" gives
    values whose largest is 1 and whose zero is the maps' zero; "none" keeps the maps' units. Members without shape
    (constant ones, zero ones under "scale") are left out of the alignment; if all are, both results are zero.
    Raises InputError for maps that are not (N, H, W) or not finite, and for unknown names.
    """
    _check(maps, mode)
    if mode == "none":
        return reduce_ensemble(maps, reduction)
    moments = _moments(maps, mode)
    shaped = moments.spread > _FLAT
    if not shaped.any():
        return np.zeros(maps.shape[1:], np.float32), np.zeros(maps.shape[1:], np.float32)
    if not shaped.all():
        maps, moments = maps[shaped], moments.of(shaped)
    scale, shift = _aligned(moments)
    return _renormalised(*reduce_ensemble(maps, reduction, scale, shift), mode)


def align_ensemble(maps: FloatImage, mode: Mode = "affine") -> tuple[Array, Array]:
    """Scales (N,) and shifts (N,) that bring maps (N, H, W), none of them flat, together, but not to 0..1."""
    if mode == "none":
        return np.ones(len(maps)), np.zeros(len(maps))
    return _aligned(_moments(maps, mode))


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


def _check(maps: FloatImage, mode: Mode) -> None:
    if mode not in get_args(Mode):
        raise InputError(f"unknown ensemble mode {mode!r}: use {', '.join(get_args(Mode))}")
    if maps.ndim != 3 or 0 in maps.shape:
        raise InputError(f"an ensemble must be (N, H, W), none of them 0, got {maps.shape}")
    if not np.all(np.isfinite(maps)):
        raise InputError("ensemble members must be finite; fill or drop invalid pixels first")


@dataclass(frozen=True, eq=False)
class _Moments:
    """Of N maps, about `centre` (N,): their means, or zero. `spread` (N,) is the root mean square about it,
    `correlation` (N, N) the mean product of two maps in units of their spreads.
    """

    centre: Array
    spread: Array
    correlation: Array

    def of(self, keep: NDArray[np.bool_]) -> _Moments:
        """Those of some of the maps."""
        return _Moments(self.centre[keep], self.spread[keep], self.correlation[np.ix_(keep, keep)])


def _moments(maps: FloatImage, mode: Mode) -> _Moments:
    """In one pass over the pixels, a block of them at a time in float64."""
    rows = maps.reshape(len(maps), -1)  # (N, pixels)
    # About a first guess of the means: a small spread on a large mean would cancel in the products.
    guess = rows.mean(axis=1).astype(np.float64) if mode == "affine" else np.zeros(len(maps))  # (N,)
    total, gram = np.zeros(len(maps)), np.zeros((len(maps), len(maps)))
    for begin in range(0, rows.shape[1], _BLOCK_PX):
        x = rows[:, begin : begin + _BLOCK_PX] - guess[:, None]
        total += x.sum(axis=1)
        gram += x @ x.T
    centre, gram = guess, gram / rows.shape[1]
    if mode == "affine":
        error = total / rows.shape[1]
        centre, gram = guess + error, gram - np.outer(error, error)
    spread = np.sqrt(np.diag(gram).clip(min=0.0))
    correlation = np.clip(gram / np.outer(spread, spread).clip(min=_FLAT**2), -1.0, 1.0)
    np.fill_diagonal(correlation, 1.0)
    return _Moments(centre, spread, correlation)


def _aligned(moments: _Moments) -> tuple[Array, Array]:
    """Scales and shifts (N,) at the least pairwise cost."""
    start = np.zeros(len(moments.spread))  # every map of spread 1: the optimum where all correlations are alike
    options = {"maxiter": 200, "ftol": 1e-14, "gtol": 1e-8}
    found = minimize(pairwise_rms, start, args=(moments.correlation,), jac=True, method="L-BFGS-B", options=options)
    scale = _spreads(found.x) / moments.spread
    return scale, -scale * moments.centre


def _spreads(theta: Array) -> Array:
    weight = np.exp(theta - theta.max())
    return np.asarray(len(theta) * weight / weight.sum())


def _renormalised(centre: FloatImage, spread: FloatImage, mode: Mode) -> tuple[FloatImage, FloatImage]:
    low = centre.min() if mode == "affine" else np.float32(0.0)
    extent = np.maximum(centre.max() - low, np.float32(1e-6))
    return (centre - low) / extent, spread / extent
