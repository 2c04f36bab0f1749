"""A clip by diffusion: frames that start from their predecessor's depth, and ensembles on keyframes only.

Both are off unless asked for; then a frame's depth is a function of its segment alone (`segment_length`), so that a run
which was interrupted goes on with the same numbers.

Warm start: the latent is 0.9 noise + 0.1 the depth latent of the frame before, as in diffusers' guide to Marigold on
video. Chains end at segments and at gaps: an error is not carried for ever, and no scene leans on another.

Keyframes: an ensemble costs its size in time and is wanted for its spread. Every `sigma_every`-th frame gets one. All
frames keep the prediction of member 0, so that a keyframe does not stand out from its neighbours by being smoother, or
by another scale and shift. The frames between take the sigma that the keyframe's ensemble suggests for *their* depth:
uncertainty sits at depth edges, which move with the picture, so what is carried is not the map but a law,

    sigma = level + slope * |gradient of depth|,    level, slope >= 0,

fitted to the keyframe by least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..types import FloatImage, RelativeDepth
from .device import run_within_memory
from .ensemble import merge_ensemble
from .images import check_rgb, check_side
from .stream import begins_chain

if TYPE_CHECKING:
    from .marigold import MarigoldEstimator, Prediction

SEGMENT = 32  # frames, or a few more, after which a chain of warm starts begins anew


def segment_length(warm_start: bool, sigma_every: int) -> int:
    """Frames that lean on each other: between keyframes, and about SEGMENT of them under warm start."""
    return -(-SEGMENT // sigma_every) * sigma_every if warm_start else sigma_every


@dataclass(frozen=True)
class SigmaLaw:
    """sigma = level + slope |gradient of depth|, in units of depth a pixel."""

    level: float
    slope: float

    @classmethod
    def fitted(cls, depth: FloatImage, sigma: FloatImage) -> SigmaLaw:
        """Least squares over a keyframe's depth and sigma (H, W), with neither number below zero."""
        x, y = _gradient(depth).astype(np.float64), sigma.astype(np.float64)
        slope = float(np.mean((x - x.mean()) * (y - y.mean())) / max(float(x.var()), 1e-12))
        level = float(y.mean()) - slope * float(x.mean())
        if slope < 0:
            return cls(float(y.mean()), 0.0)
        if level < 0:
            return cls(0.0, float(np.mean(x * y) / np.mean(x * x)))
        return cls(level, slope)

    def __call__(self, depth: FloatImage) -> FloatImage:
        """(H, W) sigma of depth (H, W)."""
        return (self.level + self.slope * _gradient(depth)).astype(np.float32)


class MarigoldPass:
    """A pass over a clip; call it with one batch after the other."""

    def __init__(self, estimator: MarigoldEstimator) -> None:
        self._estimator = estimator
        self._position: int | None = None  # of the frame before
        self._latent: torch.Tensor | None = None  # its depth
        self._law = SigmaLaw(0.0, 0.0)

    def __call__(self, positions: Sequence[int], rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        """Depth of rgb (N, H, W, 3), the frames at positions (N,); errors are those of `MarigoldEstimator.estimate`."""
        estimator = self._estimator
        if estimator.segment == 1:
            return estimator.estimate(rgb)
        check_rgb(rgb)
        check_side(rgb)
        size = 1 if estimator.warm_start else len(rgb)
        found: list[RelativeDepth] = []
        for i in range(0, len(rgb), size):
            found += self._together(positions[i : i + size], rgb[i : i + size])
        return found

    def _together(self, positions: Sequence[int], rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        estimator = self._estimator
        befores = [self._position, *positions[:-1]]
        keys = [begins_chain(p, b, estimator.sigma_every) for p, b in zip(positions, befores, strict=True)]
        before = None if begins_chain(positions[0], befores[0], estimator.segment) else self._latent
        counts = [estimator.ensemble if key else 1 for key in keys]
        frames = run_within_memory(lambda some, members: estimator.predict(some, members, before), rgb, counts)
        depths = [self._depth(*parts, rgb.shape[1:3]) for parts in zip(frames, keys, strict=True)]
        self._position = positions[-1]
        self._latent = frames[-1][0].latent if estimator.warm_start else None
        return depths

    def _depth(self, members: list[Prediction], key: bool, size: tuple[int, int]) -> RelativeDepth:
        estimator = self._estimator
        single = members[0].depth[None]  # (1, h, w)
        if estimator.ensemble == 1:
            return estimator.at_size(single, size)
        if not key:
            plain = estimator.at_size(single, size)
            return RelativeDepth(plain.values, plain.domain, self._law(plain.values))
        maps = torch.stack([member.depth for member in members])
        if estimator.sigma_every == 1:
            return estimator.merged(maps, size)
        depth = estimator.at_size(torch.cat([single, _sigma_in_units_of_first(maps, estimator)]), size)
        if depth.uncertainty is not None:
            self._law = SigmaLaw.fitted(depth.values, depth.uncertainty)
        return depth


def _sigma_in_units_of_first(maps: torch.Tensor, estimator: MarigoldEstimator) -> torch.Tensor:
    """(1, h, w) spread of an ensemble (E, h, w), in the units of its first member."""
    values = maps.cpu().numpy()
    merged, sigma = merge_ensemble(values, mode=estimator.model.mode)
    first = values[0] - values[0].mean()
    centred = merged - merged.mean()
    scale = float(np.sum(first * centred)) / max(float(np.sum(centred**2)), 1e-12)
    return torch.from_numpy(np.abs(scale) * sigma)[None].to(maps)


def _gradient(depth: FloatImage) -> FloatImage:
    """(H, W) steepest slope of depth, a pixel."""
    return np.hypot(*np.gradient(depth)).astype(np.float32)  # type: ignore[no-any-return]
