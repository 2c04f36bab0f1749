"""Prior and geometry in one depth map: what views agree on bends the prior and spreads as far as the image is smooth.

Three sources, each with its weight: depth that several views agree on; what one sweep found and no other confirmed; and
the prior, bent to the first by a fine log-scale field. Each pixel takes the mean over its surroundings in the sense of
`edges`: over the surface it lies on, not over the one behind the next outline. So a chair that is known at its rims
becomes a chair, and where nothing is known near by, the prior stands. The spread of what was averaged is its sigma.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from ..align.field import fit_field, grid_shape
from ..types import UNSTATED_SIGMA, BoolImage, DepthMap, FloatImage
from .consistency import clear_of_edges
from .edges import Edges
from .sizes import resized, shrunk

FIELD_COLUMNS = 24
FIELD_SAMPLES, FIELD_LEAST = 4000, 100
LEAST_SURE = 0.03  # share of agreed pixels under which the views are not used at all: so many agree by chance
SUPPORT_PX, LEAST_SUPPORT = 7, 0.2  # an agreed pixel counts where this share of the window around it agrees too
OUTLINE_PX = 4  # half a matching window, and one
REACH = 0.25  # of the width: how far a surface's depth spreads over it
CONTRAST = 0.25  # colour change, summed over channels, that is as far as the reach
LIKELY_WEIGHT, PRIOR_WEIGHT = 0.04, 0.005  # beside an agreed pixel's 1
FLOOR = 0.01  # relative sigma that no pixel is below: poses and camera are not exact either
ENLARGED_REACH = 2.0  # pixels of the smaller map, over which its steps are smoothed when it is enlarged


@dataclass(frozen=True, eq=False)
class Evidence:
    """What views say of one frame, at the sweep's size.

    sure: what they agree on. likely (H, W): depth that one found, with likely_weight (H, W) from 0 (nothing) to 1.
    """

    sure: DepthMap
    likely: FloatImage
    likely_weight: FloatImage

    @classmethod
    def none(cls, shape: tuple[int, int]) -> Evidence:
        empty = np.zeros(shape, np.float32)
        return cls(DepthMap(empty, empty > 0, empty), empty, empty)


@dataclass(frozen=True, eq=False)
class Merged:
    """The merged map, and where (H, W) views decided: what they agree on outweighs the rest."""

    depth: DepthMap
    from_views: BoolImage


def merge(prior: DepthMap, evidence: Evidence, rgb: NDArray[np.uint8]) -> Merged:
    """Combine the aligned prior with what views say; all at one size, rgb (H, W, 3) too."""
    sure = clear_of_edges(evidence.sure, OUTLINE_PX)
    sure &= uniform_filter(evidence.sure.valid.astype(np.float32), SUPPORT_PX) > LEAST_SUPPORT
    if sure.mean() < LEAST_SURE or not prior.valid.any():
        return Merged(prior, np.zeros_like(sure))
    sure_sigma = _share(evidence.sure)
    bent, bent_sigma = _bent(prior, evidence.sure.depth, sure_sigma, sure)
    known = np.where(sure, evidence.sure.depth, 1.0)
    rim = evidence.sure.valid & ~sure  # agreed on, but perhaps only by the texture of the outline beside it
    likely = np.where(rim, evidence.sure.depth, np.where(evidence.likely_weight > 0, evidence.likely, 1.0))
    likely_weight = LIKELY_WEIGHT * np.where(rim, 1.0, evidence.likely_weight)
    weights = np.stack([sure, ~sure * likely_weight, ~sure * PRIOR_WEIGHT * prior.valid])
    logs = np.log(np.stack([known, likely, bent]))  # (3, H, W)
    unit = float(np.median(logs[0][sure]))  # the second moment is taken about it: float32 would lose the variance
    y = logs - unit
    edges = Edges.of(rgb, REACH * rgb.shape[1], CONTRAST)
    total, mean, square, of_sure = edges.smoothed(
        np.stack([weights.sum(0), (weights * y).sum(0), (weights * y * y).sum(0), sure]).astype(np.float32)
    )
    total = np.maximum(total, 1e-12)
    mean = mean / total
    spread = np.sqrt(np.maximum(square / total - mean**2, 0))
    share = of_sure / total
    sigma = np.sqrt(spread**2 + FLOOR**2 + ((1 - share) * bent_sigma) ** 2)
    # At a pixel that views agree on, its own depth and that of its surroundings, by inverse variance.
    own = np.where(sure, sigma**2 / (sigma**2 + np.maximum(sure_sigma, FLOOR) ** 2), 0.0)
    log_depth = unit + mean + own * (y[0] - mean)
    valid = prior.valid | sure
    depth = np.where(valid, np.exp(log_depth), 0).astype(np.float32)
    sigma = sigma * np.sqrt(1 - own)
    return Merged(DepthMap(depth, valid, (sigma * depth).astype(np.float32)), valid & (share > 0.5))


def enlarged(merged: DepthMap, prior: DepthMap, aligned: DepthMap, rgb: NDArray[np.uint8]) -> DepthMap:
    """The merged map at the size of `aligned` and rgb (H, W, 3), whose `reduced` form is `prior`.

    What is enlarged is the factor between the two, its steps drawn to the image's outlines: so the finer map keeps its
    detail.
    """
    height, width = aligned.depth.shape
    if merged.depth.shape == (height, width):
        return merged
    both = merged.valid & prior.valid
    factor = np.where(both, np.log(np.where(both, merged.depth, 1) / np.where(both, prior.depth, 1)), 0)
    weight = both.astype(np.float32)
    channels = np.stack([weight, factor, weight * _share(merged)]).astype(np.float32)
    channels = np.stack([resized(c, width, height) for c in channels])
    edges = Edges.of(shrunk(rgb, width, height), ENLARGED_REACH * width / merged.depth.shape[1], CONTRAST)
    total, mean, sigma = edges.smoothed(channels)
    known = total > 1e-3
    total = np.maximum(total, 1e-3)
    valid = aligned.valid & known
    depth = np.where(valid, aligned.depth * np.exp(mean / total), 0)
    holes = resized(merged.valid & ~prior.valid, width, height) & ~valid  # views saw something where the prior has none
    depth = np.where(holes, resized(merged.depth, width, height), depth).astype(np.float32)
    sigma = np.where(holes, resized(_share(merged), width, height), sigma / total)
    return DepthMap(depth, valid | holes, (depth * sigma).astype(np.float32))


def _bent(prior: DepthMap, known: FloatImage, sigma: FloatImage, sure: BoolImage) -> tuple[FloatImage, FloatImage]:
    """The prior (H, W) bent to what is known where sure, and the relative sigma of that; 1 where there is no prior."""
    height, width = known.shape
    z = np.where(prior.valid, prior.depth, 1.0)
    rows, columns = np.nonzero(sure & prior.valid)
    if len(rows) < FIELD_LEAST:
        return z, np.ones_like(z)
    pick = np.random.default_rng(0).permutation(len(rows))[:FIELD_SAMPLES]
    rows, columns = rows[pick], columns[pick]
    uv = np.stack([columns + 0.5, rows + 0.5], 1)
    ratio = np.log(known[rows, columns] / z[rows, columns])
    field = fit_field(uv, ratio, sigma[rows, columns], width, height, grid_shape(width, height, FIELD_COLUMNS))
    return z * np.exp(field.log_scale()), np.hypot(field.sigma(), 0.5 * _share(prior))


def _share(depth: DepthMap) -> FloatImage:
    """Relative sigma (H, W); 5 % where the map has none."""
    if depth.sigma is None:
        return np.full_like(depth.depth, UNSTATED_SIGMA)
    return np.where(depth.valid, depth.sigma / np.maximum(depth.depth, 1e-12), 1.0).astype(np.float32)
