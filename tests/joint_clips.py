"""Clips for the joint alignment, with truth: the room of `synthetic` as a network might see it.

Every frame has a scale and shift of its own, a smooth error of its own in log depth, and white noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import zoom

from marigold3d.align.domains import to_domain
from marigold3d.types import Domain, Intrinsics, RelativeDepth, SparseCues
from tests import synthetic

DOMAINS: tuple[Domain, ...] = ("depth", "disparity", "log_depth")
CUE_NOISE = 0.01  # relative


@dataclass(frozen=True, eq=False)
class NoisyClip:
    """truth (T, H, W) z-depth; y(truth) = scale * relative + shift in every frame, but for its errors."""

    camera: Intrinsics
    T_world_camera: np.ndarray
    truth: np.ndarray
    relative: list[RelativeDepth]
    scale: np.ndarray  # (T,)
    shift: np.ndarray  # (T,)

    def __len__(self) -> int:
        return len(self.relative)

    def cues(self, frames: object = None, count: int = 100, outliers: float = 0.0, seed: int = 1) -> dict:
        """By position, for all frames or those named: `count` random pixels, a share of them 1.5 to 4 times too far."""
        rng = np.random.default_rng(seed)
        positions = range(len(self)) if frames is None else frames
        return {i: cues_of(self.truth[i], rng, count, outliers) for i in positions}  # type: ignore[attr-defined]


def cues_of(truth: np.ndarray, rng: np.random.Generator, count: int, outliers: float = 0.0) -> SparseCues:
    height, width = truth.shape
    uv = rng.uniform((0, 0), (width, height), (count, 2))
    z = truth[uv[:, 1].astype(int), uv[:, 0].astype(int)] * np.exp(CUE_NOISE * rng.normal(size=count))
    wrong = rng.random(count) < outliers
    z[wrong] *= rng.uniform(1.5, 4, int(wrong.sum()))
    return SparseCues(uv, z, CUE_NOISE * z, "test")


def noisy_clip(
    count: int,
    domain: Domain,
    *,
    seed: int = 0,
    distortion: float = 0.03,
    noise: float = 0.02,
    static: bool = False,
    size: tuple[int, int] = (160, 120),
    affine: float = 0.3,
    poses: np.ndarray | None = None,
) -> NoisyClip:
    """distortion, noise: standard deviations in log depth, smooth and white; affine: of log scale and of the shift."""
    rng = np.random.default_rng(seed)
    camera = synthetic.camera(*size)
    if poses is None:
        poses = np.tile(synthetic.look((0, 0, 0)), (count, 1, 1)) if static else synthetic.walk(count)
    truth = np.stack([synthetic.depth_of(camera, T).astype(float) for T in poses])
    scale = np.exp(affine * rng.normal(size=count))
    shift = affine * (0.3 if domain == "disparity" else 1.0) * rng.normal(size=count)
    relative = []
    for z, s, t in zip(truth, scale, shift, strict=True):
        error = distortion * smooth(z.shape, rng) + noise * rng.normal(size=z.shape)
        y = to_domain(z * np.exp(error), domain)
        relative.append(RelativeDepth(((y - t) / s).astype(np.float32), domain))
    return NoisyClip(camera, poses, truth, relative, scale, shift)


def smooth(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W) low-frequency, mean zero and standard deviation one."""
    coarse = rng.normal(size=(4, 5))
    out = zoom(coarse, (shape[0] / 4, shape[1] / 5), order=3)
    out -= out.mean()
    return out / out.std()
