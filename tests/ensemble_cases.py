"""Ensembles with a known truth, the published cost, diffusers' solver, and how well uncertainty ranks errors."""

from __future__ import annotations

import itertools
from unittest import mock

import numpy as np
import scipy.optimize

from marigold3d.depth.ensemble import Mode
from marigold3d.types import Array, FloatImage


def smooth_scene(height: int = 64, width: int = 96) -> FloatImage:
    """(height, width) depth in 0..1: a slope, a bump and a step."""
    v, u = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    scene = v + 0.5 * np.exp(-20 * ((u - 0.3) ** 2 + (v - 0.5) ** 2)) + 0.4 * (u > 0.7)
    return ((scene - scene.min()) / np.ptp(scene)).astype(np.float32)


def corrupted(
    rng: np.random.Generator, n: int, noise: float, size: tuple[int, int] = (64, 96), mode: Mode = "affine"
) -> FloatImage:
    """(n, *size): the scene with noise and a low-frequency error each, under unknown positive scales, and shifts too
    unless `mode` is "scale". Those of "scale" are positive, as depth is.
    """
    scene = smooth_scene(*size) + (0.3 if mode == "scale" else 0.0)
    v = np.linspace(-1, 1, size[0])[:, None]
    members = []
    for _ in range(n):
        scale, shift = rng.uniform(0.4, 2.0), rng.uniform(-0.5, 0.5) if mode == "affine" else 0.0
        error = rng.standard_normal(size) + rng.standard_normal() * v
        members.append(scale * (scene + noise * error) + shift)
    maps = np.stack(members).astype(np.float32)
    return maps.clip(min=1e-3) if mode == "scale" else maps


def full_cost(maps: FloatImage, scale: Array, shift: Array, mode: Mode = "affine", strength: float = 0.02) -> float:
    """The published cost, over all pixels, once the merged map is normalised as both methods end: to 0..1, under
    "scale" to a largest value of 1.
    """
    aligned = (scale[:, None, None] * maps + shift[:, None, None]).astype(np.float32)
    merged = np.median(aligned, axis=0)
    low = merged.min() if mode == "affine" else 0.0
    extent = merged.max() - low
    aligned, merged = (aligned - low) / extent, (merged - low) / extent
    pairs = sum(np.sqrt(np.mean((a - b) ** 2)) for a, b in itertools.combinations(aligned, 2))
    return float(pairs + strength * (abs(merged.min()) + abs(1 - merged.max())))


def spread_cost(maps: FloatImage, scale: Array, mode: Mode = "affine") -> float:
    """The pairwise cost at a mean spread of one, shifts at their best."""
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    if mode == "affine":
        flat = flat - flat.mean(axis=1, keepdims=True)
    flat = flat * scale[:, None]
    flat /= np.sqrt((flat**2).mean(axis=1)).mean()
    return float(sum(np.sqrt(np.mean((a - b) ** 2)) for a, b in itertools.combinations(flat, 2)))


def diffusers_merge(
    maps: FloatImage, mode: Mode = "affine", reduction: str = "median"
) -> tuple[FloatImage, FloatImage, Array, Array]:
    """What diffusers' ensembling returns, merged map and uncertainty (H, W), and the scales and shifts (N,) it found,
    for which its solver is overheard.
    """
    import torch
    from diffusers import MarigoldDepthPipeline

    solve = scipy.optimize.minimize
    found: list[Array] = []

    def overheard(*args: object, **settings: object) -> object:
        result = solve(*args, **settings)
        found.append(result.x)
        return result

    with mock.patch.object(scipy.optimize, "minimize", overheard):
        merged, uncertainty = MarigoldDepthPipeline.ensemble_depth(
            torch.from_numpy(maps)[:, None],
            shift_invariant=mode == "affine",
            reduction=reduction,
            output_uncertainty=True,
        )
    scale, shift = np.split(found[0], 2) if mode == "affine" else (found[0], np.zeros(len(maps)))
    return merged[0, 0].numpy(), uncertainty[0, 0].numpy(), scale, shift


def uneven_ensemble(rng: np.random.Generator, n: int, size: tuple[int, int] = (96, 128)) -> tuple[FloatImage, Array]:
    """(n, *size) predictions whose noise, smooth over some pixels as that of networks is, has a standard deviation of
    0.003 in some places and of 0.1 in others, under unknown scales and shifts; and the scene (*size).
    """
    from scipy.ndimage import gaussian_filter

    scene = smooth_scene(*size)
    where = gaussian_filter(rng.random(size), 8, mode="wrap")
    rank = where.argsort(axis=None).argsort().reshape(size) / where.size  # 0..1, all shares alike
    sigma = 0.003 * (0.1 / 0.003) ** rank
    members = []
    for _ in range(n):
        noise = gaussian_filter(rng.standard_normal(size), 2)
        members.append(rng.uniform(0.4, 2.0) * (scene + sigma * noise / noise.std()) + rng.uniform(-0.5, 0.5))
    return np.stack(members).astype(np.float32), scene


def sparsification_errors(error: Array, uncertainty: Array, steps: int = 50) -> tuple[float, float]:
    """AUSE of ranking pixels by `uncertainty`, and that of ranking them at random, both in units of the mean error.

    The area, over the share of pixels left out (the most uncertain first), between the mean error of the rest and the
    same where the ranking is by the error itself (Ilg et al., arXiv 1802.07095, section 4). Zero is perfect.
    """
    error, uncertainty = np.abs(error).ravel(), uncertainty.ravel()
    kept = np.arange(len(error) - 1, 0, -len(error) // steps)  # from nearly all pixels to few
    curves = [
        np.cumsum(error[np.argsort(key, kind="stable")])[kept] / (kept + 1) / error.mean()
        for key in (uncertainty, error)
    ]
    ranked, oracle = (float(curve.mean()) for curve in curves)
    return ranked - oracle, 1.0 - oracle
