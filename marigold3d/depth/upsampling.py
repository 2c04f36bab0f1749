"""Bringing a coarse map to a picture's size without ramps across its edges."""

from __future__ import annotations

import torch
from torch import Tensor

SPATIAL_SIGMA = 0.7  # coarse pixels
COLOR_SIGMA = 0.08  # of colours in 0..1


def joint_bilateral(coarse: Tensor, coarse_rgb: Tensor, rgb: Tensor) -> Tensor:
    """Upsample maps by the colours of the picture (Kopf et al. 2007).

    coarse (C, h, w) at the pixels of coarse_rgb (3, h, w); rgb (3, H, W) the full picture. Each full pixel takes the
    mean of the 3 x 3 coarse pixels around it, weighted by nearness and by likeness of colour: (C, H, W), within the
    range of its neighbours.
    """
    guide = torch.cat((coarse, coarse_rgb))
    guide = torch.nn.functional.pad(guide[None], (1, 1, 1, 1), mode="replicate")[0]  # (C + 3, h + 2, w + 2)
    row, up = _nearest(rgb.shape[1], coarse.shape[1], rgb.device)
    column, left = _nearest(rgb.shape[2], coarse.shape[2], rgb.device)
    total = torch.zeros((len(coarse), *rgb.shape[1:]), device=rgb.device)
    weight_sum = torch.full(rgb.shape[1:], 1e-12, device=rgb.device)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            neighbour = guide[:, row + dy + 1][:, :, column + dx + 1]  # (C + 3, H, W)
            unlikeness = (neighbour[-3:] - rgb).square().sum(0) / COLOR_SIGMA**2
            distance = ((up + dy).square()[:, None] + (left + dx).square()) / SPATIAL_SIGMA**2
            # The floor keeps a mean where no colour fits.
            weight = torch.exp(-0.5 * distance) * (torch.exp(-0.5 * unlikeness) + 1e-4)
            total += neighbour[:-3] * weight
            weight_sum += weight
    return total / weight_sum


def _nearest(fine: int, coarse: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Index (fine,) of the coarse pixel nearest to each fine one, and that pixel's offset from it in coarse pixels."""
    place = (torch.arange(fine, device=device) + 0.5) * coarse / fine - 0.5
    index = place.round().clamp(0, coarse - 1).long()
    return index, index - place
