"""Bringing a coarse map to a picture's size without ramps across its edges."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

SPATIAL_SIGMA = 0.7  # coarse pixels
COLOR_SIGMA = 0.08  # of colours in 0..1
FLOOR = 1e-4  # keeps a mean where no colour fits
STRIP_ROWS = 24  # computed together on a CPU: what they need stays in the cache, which makes them several times faster


def joint_bilateral(coarse: Tensor, coarse_rgb: Tensor, rgb: Tensor) -> Tensor:
    """Upsample maps by the colours of the picture (Kopf et al. 2007, eq. 3).

    coarse (C, h, w) at the pixels of coarse_rgb (3, h, w); rgb (3, H, W) the full picture. Each full pixel takes the
    mean of the 3 x 3 coarse pixels around it, weighted by nearness and by likeness of colour: (C, H, W), within the
    range of its neighbours.
    """
    guide = torch.cat((coarse, coarse_rgb))
    guide = torch.nn.functional.pad(guide[None], (1, 1, 1, 1), mode="replicate")[0]  # (C + 3, h + 2, w + 2)
    row, row_nearness = _neighbours(rgb.shape[1], coarse.shape[1], rgb.device)
    column, column_nearness = _neighbours(rgb.shape[2], coarse.shape[2], rgb.device)
    columns = [guide[:, :, index] for index in column]  # of the left, nearest and right neighbour: (C + 3, h + 2, W)
    strip = STRIP_ROWS if rgb.device.type == "cpu" else rgb.shape[1]
    done = []
    for picture, rows, nearness in zip(
        rgb.split(strip, 1), row.split(strip, 1), row_nearness.split(strip, 1), strict=True
    ):
        total = torch.zeros((len(coarse), *picture.shape[1:]), device=rgb.device)
        weight_sum = torch.full(picture.shape[1:], 1e-12, device=rgb.device)
        for dy, dx in product(range(3), range(3)):
            neighbour = columns[dx].index_select(1, rows[dy])  # (C + 3, rows, W)
            unlikeness = (neighbour[-3:] - picture).square_().sum(0)
            weight = unlikeness.mul_(-0.5 / COLOR_SIGMA**2).exp_().add_(FLOOR)
            weight.mul_(nearness[dy][:, None]).mul_(column_nearness[dx])
            total.addcmul_(neighbour[:-3], weight)
            weight_sum.add_(weight)
        done.append(total.div_(weight_sum))
    return torch.cat(done, 1)


def _neighbours(fine: int, coarse: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices (3, fine), in the padded map, of the coarse pixels before, at and after each fine one, and the weights
    (3, fine) of their distances.
    """
    place = (torch.arange(fine, device=device) + 0.5) * coarse / fine - 0.5
    index = place.round().clamp(0, coarse - 1).long()
    step = torch.arange(-1, 2, device=device)[:, None]
    nearness = torch.exp(-0.5 * (index - place + step).square() / SPATIAL_SIGMA**2)
    return index + step + 1, nearness
