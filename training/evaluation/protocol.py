"""Marigold's protocol: one affine fit an image to the truth, clipped to the data set's range.

Ke et al. (arXiv 2312.02145), section 4.1, with the details of their evaluation code. The fit is least squares over the
valid pixels:

- depth, metric: z = s v + b. A metric network is fitted too, as every other.
- log_depth: the same, with v the exponential of the network's number.
- disparity: 1/z = s v + b over pixels with v > 0; disparities below 0.001 / m are raised to it, then inverted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from marigold3d.types import Array, BoolImage, Domain, RelativeDepth

LEAST_DISPARITY = 1e-3  # 1/m
LEAST_DEPTH_M = 1e-6


@dataclass(frozen=True)
class Protocol:
    """What is particular to a data set.

    valid_m: truth counts strictly between these. clip_m: fitted depth is clipped to these. processing_resolution: of
    Marigold checkpoints, px on the longest side, 0 for the picture's own. alignment_px: larger maps are thinned to this
    for the fit. images: how many the published rows are for. split: the official list's file name.
    """

    title: str
    valid_m: tuple[float, float]
    clip_m: tuple[float, float]
    processing_resolution: int | None = None
    alignment_px: int | None = None
    images: int | None = None
    split: str | None = None


def fit_space(domain: Domain) -> str:
    """Where the fit is made, for people."""
    if domain == "disparity":
        return "disparity"
    return "depth, the exponential of the network's log depth" if domain == "log_depth" else "depth"


def aligned(relative: RelativeDepth, truth_m: Array, valid: BoolImage, protocol: Protocol) -> Array:
    """(H, W) float64 metres: the map fitted to truth_m (H, W) over `valid` (H, W), clipped to the protocol's range.

    Pixels without an estimate (NaN) get the median of the others first, so that leaving hard ones out does not pay.
    """
    values = _complete(relative.values.astype(np.float64))
    columns = _columns(values.shape, protocol.alignment_px)
    v, t, counts = values[:, columns], truth_m[:, columns].astype(np.float64), valid[:, columns]
    depth: Array
    if relative.domain == "disparity":
        counts = counts & (v > 0) if bool((v[counts] > 0).any()) else counts
        depth = 1.0 / np.maximum(_fitted(values, v[counts], 1.0 / t[counts]), LEAST_DISPARITY)
    elif relative.domain == "log_depth":
        middle = np.median(values)  # any constant factor would do: this one keeps exp from overflowing
        depth = _fitted(np.exp(values - middle), np.exp(v[counts] - middle), t[counts])
    else:
        depth = _fitted(values, v[counts], t[counts])
    return np.maximum(np.clip(depth, *protocol.clip_m), LEAST_DEPTH_M)


def _fitted(values: Array, v: Array, y: Array) -> Array:
    """s values + b with (s, b) = argmin sum (s v + b - y)^2; v, y (n,). s = 0 where v does not vary."""
    centre, mean = v.mean(), y.mean()
    variance = np.mean((v - centre) ** 2)
    varies = variance > 1e-24 * np.mean(v * v)  # below, it is rounding
    scale = np.mean((v - centre) * (y - mean)) / variance if varies else 0.0
    return scale * (values - centre) + mean


def _columns(shape: tuple[int, ...], alignment_px: int | None) -> slice | Array:
    """The columns that the fit looks at. Marigold thins large maps by nearest neighbour, and hands torch (1, H, W),
    of which it scales the last axis alone: every row stays.
    """
    factor = 1.0 if alignment_px is None else alignment_px / max(shape)
    if factor >= 1.0:
        return slice(None)
    return np.floor(np.arange(int(shape[1] * factor)) / factor).astype(np.intp)


def _complete(values: Array) -> Array:
    known = np.isfinite(values)
    if known.all():
        return values
    return np.where(known, values, np.median(values[known]) if known.any() else 0.0)
