"""Prior and geometry in one depth map: what views agree on bends the prior, then each pixel goes by its sigma."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from ..align.field import fit_field, grid_shape
from ..types import Array, BoolImage, DepthMap, FloatImage

FIELD_COLUMNS = 24
FIELD_SAMPLES = 4000
MIN_SAMPLES = 200  # agreed pixels under which the sweep is not used at all
BLEND_PX = 8.0  # reach of the correction beyond the agreed pixels, px
BLEND_HOLD = 0.05  # weight of "no correction": its influence fades where few agreed pixels are near


@dataclass(frozen=True, eq=False)
class Merged:
    """The merged map and which of its pixels (H, W) the views decided."""

    depth: DepthMap
    from_views: BoolImage


def merge(prior: DepthMap, swept: FloatImage, swept_sigma: FloatImage, agreed: BoolImage) -> Merged:
    """Combine the aligned prior with swept depth (H, W), relative sigma (H, W), trusted where `agreed` (H, W).

    1. A fine log-scale field bends the prior to the agreed depths; 2. what is left is carried a few pixels beyond them,
    so that there is no seam; 3. agreed pixels are averaged with the bent prior by inverse variance.
    """
    agreed = agreed & prior.valid & (swept > 0)
    if agreed.sum() < MIN_SAMPLES:
        return Merged(prior, np.zeros_like(agreed))
    z = np.where(prior.valid, prior.depth, 1.0)
    ratio = np.log(np.where(agreed, swept, z) / z)  # (H, W), zero where nothing is known
    z, field_sigma = _bent(z, ratio, swept_sigma, agreed)
    ratio = np.where(agreed, np.log(np.where(agreed, swept, z) / z), 0.0)
    spread = max(float(1.4826 * np.median(np.abs(ratio[agreed]))), 0.01)
    z = z * np.exp(_carried(ratio, swept_sigma, agreed, spread))
    prior_sigma = np.hypot(field_sigma, 2 * spread)
    weight_views = np.where(agreed, 1 / np.maximum(swept_sigma, 0.003) ** 2, 0.0)
    weight_prior = 1 / prior_sigma**2
    left = np.where(agreed, np.log(np.where(agreed, swept, z) / z), 0.0)
    share = weight_views / (weight_views + weight_prior)
    depth = np.where(prior.valid, z * np.exp(share * left), 0).astype(np.float32)
    sigma = depth / np.sqrt(weight_views + weight_prior)
    return Merged(DepthMap(depth, prior.valid, sigma.astype(np.float32)), agreed)


def _bent(z: Array, ratio: Array, sigma: FloatImage, agreed: BoolImage) -> tuple[Array, FloatImage]:
    height, width = z.shape
    rows, columns = np.nonzero(agreed)
    pick = np.random.default_rng(0).permutation(len(rows))[:FIELD_SAMPLES]
    rows, columns = rows[pick], columns[pick]
    uv = np.stack([columns + 0.5, rows + 0.5], 1)
    field = fit_field(
        uv, ratio[rows, columns], sigma[rows, columns], width, height, grid_shape(width, height, FIELD_COLUMNS)
    )
    return z * np.exp(field.log_scale()), field.sigma()


def _carried(ratio: Array, sigma: FloatImage, agreed: BoolImage, spread: float) -> Array:
    """Normalised convolution of the log ratios that are left; large ones belong to other surfaces and stay there."""
    weight = np.where(agreed & (np.abs(ratio) < 4 * spread), 1.0 / (1 + (sigma / spread) ** 2), 0.0)
    carried: Array = gaussian_filter(weight * ratio, BLEND_PX) / (gaussian_filter(weight, BLEND_PX) + BLEND_HOLD)
    return carried
