"""Plane sweep around an aligned prior: other views decide; the prior says where to look.

Three levels, each around the result of the one before. The first, at a quarter of the size and in colour, searches
planes parallel to the image over all depths that the prior has and well beyond, so that neither a wrong prior nor its
blurred outlines leave a trace. The others, at half and full size, try factors on what was found: matching windows then
follow its slants, and smoothness between pixels means "keep this shape". The prior's pull is weak and bounded: it
settles what matching leaves open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..depth.device import choose_device
from ..types import BoolImage, FloatImage, Intrinsics
from .matching import Matcher, SweepView
from .semi_global import semi_global, sub_step

PRIOR_PULL = 0.015  # cost of a hypothesis one prior sigma away ...
FARTHEST_PULL = 3.0  # ... growing with the square up to so many sigmas
LEAST_PRIOR_SIGMA = 0.15  # relative: an aligned prior's own sigma says little of what stands out of its blurred shape
WIDEST_PRIOR_SIGMA = 0.6
PLANES_SIGMA = 3.0  # times the prior's sigma, in the first level
MOST_PLANES = 96
PLAIN_FIT, TEXTURED_FIT = -0.1, 0.2  # scores from which depth explains a view, without texture and with much


@dataclass(frozen=True)
class Level:
    """One pass: the image is `reduced` by this; hypotheses span `nearest` to `farthest` (log depth) by `step`.

    planes: they are planes, about the prior's range of depths; else factors on the depth found so far.
    """

    reduced: int
    colour: bool
    nearest: float
    farthest: float
    step: float
    planes: bool = False


LEVELS = (
    Level(4, True, -1.2, 0.6, 0.05, planes=True),
    Level(2, False, -0.3, 0.3, 0.025),
    Level(1, False, -0.06, 0.06, 0.01),
)


@dataclass(frozen=True, eq=False)
class SweepResult:
    """depth (H, W); sigma (H, W), relative, from the costs' curvature; score (H, W): what matching reached, below 1."""

    depth: FloatImage
    sigma: FloatImage
    score: FloatImage


def sweep(
    view: SweepView,
    others: Sequence[SweepView],
    camera: Intrinsics,
    prior: FloatImage,
    prior_sigma: float,
    device: str = "cpu",
    levels: Sequence[Level] = LEVELS,
) -> SweepResult:
    """Depth of `view` from `others`, around `prior` (H, W), positive everywhere, of relative sigma `prior_sigma`."""
    where = choose_device(device)
    pull = float(np.clip(prior_sigma, LEAST_PRIOR_SIGMA, WIDEST_PRIOR_SIGMA))
    with torch.inference_mode():
        full = torch.as_tensor(prior, device=where)[None, None]
        bend = torch.zeros((1, 1), device=where)  # log of the depth found over the prior's
        for level in levels:
            size = max(16, camera.width // level.reduced), max(16, camera.height // level.reduced)
            matcher = Matcher(view, others, camera.scaled_to(*size), where, colour=level.colour)
            z = _resized(full, matcher.shape)
            bend = _enlarged(bend, matcher.shape)
            matcher.equalise(z * torch.exp(bend))
            if level.planes:
                bend, score, sigma = _search(matcher, z, *_planes(z, level, pull), PLANES_SIGMA * pull)
            else:
                offsets = torch.arange(level.nearest, level.farthest + level.step / 2, level.step, device=where)
                bend, score, sigma = _search(matcher, z, bend, offsets, pull)
        return SweepResult(*(x.cpu().numpy() for x in (z * torch.exp(bend), sigma, score)))


def explained(
    view: SweepView, others: Sequence[SweepView], camera: Intrinsics, depth: FloatImage, device: str = "cpu"
) -> BoolImage:
    """(H, W) where a depth map (H, W), 0 unknown, does not contradict what the views show.

    Windows with texture must match; those without must be of one colour.
    """
    where = choose_device(device)
    with torch.inference_mode():
        known = torch.as_tensor(depth > 0, device=where)
        z = torch.where(known, torch.as_tensor(depth, device=where), float(depth.max(initial=1.0)))
        matcher = Matcher(view, others, camera, where, colour=True)
        matcher.equalise(z)
        fits = known & (matcher.scores(z[None])[0] > PLAIN_FIT + (TEXTURED_FIT - PLAIN_FIT) * matcher.texture)
        found: BoolImage = fits.cpu().numpy()
        return found


def _planes(z: torch.Tensor, level: Level, pull: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One plane over the prior's depth z (H, W), in log depth, and the offsets (K,) of all planes from it."""
    near, middle, far = torch.log(torch.quantile(z, torch.tensor([0.02, 0.5, 0.98], device=z.device))).tolist()
    widened = max(1.0, pull / (2 * LEAST_PRIOR_SIGMA))
    first, last = near - middle + widened * level.nearest, far - middle + widened * level.farthest
    count = min(MOST_PLANES, round((last - first) / (widened * level.step)) + 1)
    return middle - torch.log(z), torch.linspace(first, last, count, device=z.device)


def _search(
    matcher: Matcher, z: torch.Tensor, start: torch.Tensor, offsets: torch.Tensor, pull: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log of the depth found over the prior's z (H, W), from `start` (H, W) and offsets (K,); score and sigma there."""
    from_prior = start + offsets[:, None, None]  # (K, H, W)
    score = matcher.scores(z * torch.exp(from_prior))
    far = (from_prior / pull).square_().clamp_max_(FARTHEST_PULL**2)
    more, reached, sigma = sub_step(semi_global(1 - score + PRIOR_PULL * far, matcher.gray), score, offsets)
    return start + more, reached, sigma


def _resized(image: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    return image[0, 0] if image.shape[-2:] == shape else F.interpolate(image, size=shape, mode="area")[0, 0]


def _enlarged(bend: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The result of a coarser level, single pixels smoothed away, at this one's size."""
    if bend.numel() == 1:
        return bend.expand(shape)
    patches = F.unfold(F.pad(bend[None, None], (1, 1, 1, 1), mode="replicate"), 3)  # (1, 9, H*W)
    smooth = patches.median(1).values.reshape(1, 1, *bend.shape)
    return F.interpolate(smooth, size=shape, mode="bilinear", align_corners=False)[0, 0]
