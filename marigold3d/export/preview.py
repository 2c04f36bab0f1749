"""Depth as a picture for people: by default near is warm and far is cold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..types import BoolImage, FloatImage, RelativeDepth
from .colormaps import LEVELS, color_stops, colormap

SPECTRAL = color_stops("Spectral")  # (11, 3), near to far
INVALID_RGB = (0, 0, 0)
SIGMA_COLORMAP = "inferno"  # dark where the network is sure
TAIL_PERCENT = 2.0  # of the pixels at either end, which do not stretch the colours
THINNING = 4  # percentiles are taken of every fourth pixel along each side


def depth_range(depth: FloatImage, valid: BoolImage) -> tuple[float, float]:
    """(near, far) of the colours: the 2nd and 98th percentile of valid depth; (1, 2) when nothing is valid."""
    if not valid.any():
        return 1.0, 2.0
    near, far = np.percentile(depth[valid], [TAIL_PERCENT, 100 - TAIL_PERCENT])
    return float(near), float(max(far, near * 1.001))


def colorize(depth: FloatImage, valid: BoolImage, near_far: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """uint8 RGB (H, W, 3) of depth (H, W), equal steps for equal ratios of depth; invalid pixels are black.

    near_far: depths at the ends of the colours (one pair for a clip prevents flicker); None: from this map.
    """
    near, far = near_far or depth_range(depth, valid)
    ratio = np.where(valid, depth, np.float32(near)) / near
    return _painted(np.log(np.maximum(ratio, 1e-6)) / np.log(far / near), valid, "Spectral")


@dataclass(frozen=True)
class ColorRange:
    """What the ends of the colours stand for: `near` and `far` on the scale of `remoteness`, and the largest sigma."""

    near: float
    far: float
    sigma: float

    @classmethod
    def of(cls, depth: RelativeDepth) -> ColorRange:
        """The range that shows all of a map but the tails of its values."""
        sigma = 0.0
        if depth.uncertainty is not None:
            _, sigma = _inner(depth.uncertainty)
        return cls(*_inner(remoteness(depth)), sigma)

    @classmethod
    def of_clip(cls, frames: Iterable[ColorRange]) -> ColorRange:
        """One range for all frames, so that colours do not flicker; single frames that run away do not stretch it."""
        all_frames = np.array([(f.near, f.far, f.sigma) for f in frames]).reshape(-1, 3)
        if not len(all_frames):
            return cls(0.0, 1.0, 1.0)
        near, far, sigma = all_frames.T
        return cls(*(float(np.percentile(v, p)) for v, p in ((near, 5), (far, 95), (sigma, 95))))


def remoteness(depth: RelativeDepth) -> FloatImage:
    """(H, W) values whose equal steps look like equal steps, growing away from the camera: what colours show.

    Affine-invariant depth and log depth as they are, disparity with its sign turned, metres by their logarithm.
    """
    if depth.domain == "disparity":
        return -depth.values
    if depth.domain == "metric":
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithm: FloatImage = np.where(depth.values > 0, np.log(depth.values), np.float32(np.nan))
        return logarithm
    return depth.values


def far_large(relative: RelativeDepth) -> FloatImage:
    """Relative values (H, W) that grow with distance, whatever the domain: disparity turned round, log depth raised."""
    v = relative.values
    if relative.domain == "disparity":
        return (np.nanmax(v) - v).astype(np.float32)
    if relative.domain == "log_depth":
        return np.exp(v - np.nanmedian(v)).astype(np.float32)
    return v


def paint_depth(depth: RelativeDepth, shown: ColorRange, colors: str = "Spectral") -> NDArray[np.uint8]:
    """uint8 RGB (H, W, 3): near takes the first colours of the map, far the last; pixels without depth are black."""
    value = remoteness(depth)
    return _painted((value - shown.near) / max(shown.far - shown.near, 1e-12), np.isfinite(value), colors)


def paint_sigma(sigma: FloatImage, shown: ColorRange) -> NDArray[np.uint8]:
    """uint8 RGB (H, W, 3) of a standard deviation: from black, where it is zero, to bright."""
    return _painted(sigma / max(shown.sigma, 1e-12), np.isfinite(sigma), SIGMA_COLORMAP)


def _painted(position: FloatImage, valid: BoolImage, colors: str) -> NDArray[np.uint8]:
    """Colours of positions (H, W), of which 0 to 1 spans the map."""
    with np.errstate(invalid="ignore"):
        level = np.clip(np.nan_to_num(position) * (LEVELS - 1) + 0.5, 0, LEVELS - 1).astype(np.intp)
    rgb = colormap(colors).take(level, axis=0)  # (H, W, 3)
    rgb[~valid] = INVALID_RGB
    return rgb


def _inner(values: FloatImage) -> tuple[float, float]:
    """The range of finite values without their tails; (0, 1) when there are none."""
    thinned = values[::THINNING, ::THINNING] if min(values.shape) >= 8 * THINNING else values
    finite = thinned[np.isfinite(thinned)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, [TAIL_PERCENT, 100 - TAIL_PERCENT])
    return float(low), float(high)
