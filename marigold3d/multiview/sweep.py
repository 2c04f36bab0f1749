"""Plane sweep around an aligned prior: other views decide; the prior says where to look.

Hypotheses are factors on the prior's depth, not fronto-parallel planes: matching windows then follow the prior's
slants, and smoothness between neighbouring pixels means "keep the prior's shape". Three levels, each around the result
of the one before: a quarter of the size in colour, over a band so wide that a prior wrong by a factor of four is
escaped; then half and full size in narrow bands. The prior's pull is bounded: it settles what matching leaves open.
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
PLAIN_FIT, TEXTURED_FIT = -0.1, 0.2  # scores from which depth explains a view, without texture and with much


@dataclass(frozen=True)
class Level:
    """One pass: the image is `reduced` by this, hypotheses span `nearest` to `farthest` (log depth) by `step`."""

    reduced: int
    colour: bool
    nearest: float
    farthest: float
    step: float

    def offsets(self, widened: float) -> torch.Tensor:
        """(K,) hypotheses, log of depth over the level's start."""
        return widened * torch.arange(self.nearest, self.farthest + self.step / 2, self.step)


LEVELS = (Level(4, True, -1.5, 0.8, 0.05), Level(2, False, -0.3, 0.3, 0.025), Level(1, False, -0.06, 0.06, 0.01))


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
        for number, level in enumerate(levels):
            size = max(16, camera.width // level.reduced), max(16, camera.height // level.reduced)
            matcher = Matcher(view, others, camera.scaled_to(*size), where, colour=level.colour)
            z = _resized(full, matcher.shape)
            bend = _enlarged(bend, matcher.shape)
            widened = max(1.0, pull / (2 * LEAST_PRIOR_SIGMA)) if number == 0 else 1.0
            more, score, sigma = _search(matcher, z, bend, level.offsets(widened).to(where), pull)
            bend = bend + more
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


def _search(
    matcher: Matcher, z: torch.Tensor, bend: torch.Tensor, offsets: torch.Tensor, pull: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What to add to `bend` (H, W), the score and sigma (H, W) there."""
    matcher.equalise(z * torch.exp(bend))
    from_prior = bend + offsets[:, None, None]  # (K, H, W)
    score = matcher.scores(z * torch.exp(from_prior))
    far = (from_prior / pull).square_().clamp_max_(FARTHEST_PULL**2)
    return sub_step(semi_global(1 - score + PRIOR_PULL * far, matcher.gray), score, offsets)


def _resized(image: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    return image[0, 0] if image.shape[-2:] == shape else F.interpolate(image, size=shape, mode="area")[0, 0]


def _enlarged(bend: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The result of a coarser level, single pixels smoothed away, at this one's size."""
    if bend.numel() == 1:
        return bend.expand(shape)
    patches = F.unfold(F.pad(bend[None, None], (1, 1, 1, 1), mode="replicate"), 3)  # (1, 9, H*W)
    smooth = patches.median(1).values.reshape(1, 1, *bend.shape)
    return F.interpolate(smooth, size=shape, mode="bilinear", align_corners=False)[0, 0]
