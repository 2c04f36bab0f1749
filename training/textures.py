"""Procedural textures: colour as a function of surface coordinates in metres, evaluated for all rays of a view at once.

A material is one row of floats, so that materials of thousands of surfaces gather into the rays that hit them.
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

FLAT, CHECKER, STRIPES, BRICKS, MARBLE, WOOD, SPECKLE, PICTURE, BARS = range(9)

# Columns of a material row.
FAMILY, SCALE_M, JOINT, GRAIN, GRAIN_SCALE_M, GLOSS, GLOW = 0, 7, 8, 11, 12, 13, 16
COLOR_A, COLOR_B, OFFSET, ROTATION = slice(1, 4), slice(4, 7), slice(9, 11), slice(14, 16)
COLUMNS = 17

ATLAS_SIZE = 256


def material(
    family: int,
    color_a: NDArray[np.float64],
    color_b: NDArray[np.float64],
    scale_m: float = 0.3,
    joint: float = 0.05,
    offset: tuple[float, float] = (0.0, 0.0),
    grain: float = 0.1,
    grain_scale_m: float = 1.0,
    gloss: float = 0.0,
    angle_rad: float = 0.0,
    glow: float = 0.0,
) -> NDArray[np.float32]:
    """One material row (COLUMNS,): colours linear RGB, `scale_m` the period, `joint` the share of mortar, `glow`
    self-lit share.
    """
    turn = (np.cos(angle_rad), np.sin(angle_rad))
    row = [family, *color_a, *color_b, scale_m, joint, *offset, grain, grain_scale_m, gloss, *turn, glow]
    return np.asarray(row, np.float32)


@cache
def _atlas(device: torch.device) -> Tensor:
    """(1, 4, S + 1, S + 1): four fixed tiles of 1/f noise, uniform in [0, 1], wrapped by one pixel."""
    rng = np.random.default_rng(20)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(ATLAS_SIZE), np.fft.fftfreq(ATLAS_SIZE)))
    amplitude = 1.0 / np.maximum(frequency, 1.5 / ATLAS_SIZE) ** 1.3
    tiles = []
    for _ in range(4):
        white = np.fft.fft2(rng.standard_normal((ATLAS_SIZE, ATLAS_SIZE)))
        tile = np.fft.ifft2(white * amplitude).real
        rank = tile.ravel().argsort().argsort().reshape(tile.shape)  # uniform histogram: any share can be thresholded
        tiles.append(np.pad(rank / rank.size, ((0, 1), (0, 1)), mode="wrap"))
    return torch.tensor(np.stack(tiles)[None], dtype=torch.float32, device=device)


def noise(u: Tensor, v: Tensor) -> Tensor:
    """(4, R) smooth noise in [0, 1] at (u, v) (R,); period 1, features down to 1 / ATLAS_SIZE."""
    grid = torch.stack((u - u.floor(), v - v.floor()), -1)[None, None] * 2 - 1  # (1, 1, R, 2)
    return functional.grid_sample(_atlas(u.device), grid, align_corners=True)[0, :, 0]


def _cell_hash(i: Tensor, j: Tensor) -> Tensor:
    """A number in [0, 1) for every integer cell."""
    x = torch.sin(i * 12.9898 + j * 78.233 + 0.5) * 4758.5453
    return x - x.floor()


def albedo(rows: Tensor, u: Tensor, v: Tensor, footprint_m: Tensor) -> Tensor:
    """Linear RGB (3, R) of material rows (COLUMNS, R) at surface coordinates u, v in metres (R,).

    `footprint_m` is a pixel's size on the surface: patterns finer than it fade into their mean (a one-tap mip map).
    """
    cos, sin = rows[ROTATION]
    scale = rows[SCALE_M]
    offset = rows[OFFSET]
    x = (u * cos - v * sin) / scale + offset[0]
    y = (u * sin + v * cos) / scale + offset[1]
    family = rows[FAMILY]

    coarse = noise(x * 0.13 + offset[1], y * 0.13 + offset[0])  # blotches some periods wide
    grain = noise(u / rows[GRAIN_SCALE_M] + offset[0], v / rows[GRAIN_SCALE_M] + offset[1])
    share = _pattern(family, x, y, rows[JOINT], coarse)
    contrast = (1.5 - 2.0 * footprint_m / scale).clamp(0.0, 1.0)
    share = 0.5 + (share - 0.5) * contrast
    color = rows[COLOR_A] + (rows[COLOR_B] - rows[COLOR_A]) * share
    color = torch.where(family == PICTURE, _picture(coarse, rows[COLOR_A], rows[COLOR_B]), color)
    color = torch.where(family == BARS, _bars(x, y, rows[COLOR_A], rows[COLOR_B]), color)
    shade = 1.0 + rows[GRAIN] * (0.6 * (grain[0] - 0.5) + 0.4 * (coarse[3] - 0.5)) * 2.0
    return (color * shade).clamp(0.0, 1.0)


def _pattern(family: Tensor, x: Tensor, y: Tensor, joint: Tensor, coarse: Tensor) -> Tensor:
    """Share of colour B, (R,), of the two-colour families."""
    column, row = x.floor(), y.floor()
    checker = torch.remainder(column + row, 2.0)
    stripes = (x - column < 0.5).float()
    shifted = x + 0.5 * torch.remainder(row, 2.0) * (joint > 0.06)  # wide joints: bricks; narrow ones: square tiles
    edge = torch.minimum(shifted - shifted.floor(), y - row)
    tone = 0.35 * _cell_hash(shifted.floor(), row)
    bricks = torch.where(edge < joint, 1.0, tone)
    wood = 0.5 + 0.5 * torch.sin(40.0 * coarse[0] + 2.0 * y)
    wood = 0.6 * wood + 0.4 * _cell_hash(column, torch.zeros_like(row))  # boards of differing tone
    speckle = (coarse[1] + 0.25 * _cell_hash((x * 9).floor(), (y * 9).floor()) > 0.7).float()
    share = torch.zeros_like(x)
    for member, value in (
        (CHECKER, checker),
        (STRIPES, stripes),
        (BRICKS, bricks),
        (MARBLE, coarse[0]),
        (WOOD, wood),
        (SPECKLE, speckle),
    ):
        share = torch.where(family == member, value, share)
    return share


def _picture(coarse: Tensor, color_a: Tensor, color_b: Tensor) -> Tensor:
    """Posters, screens, book covers: posterised noise, a different threshold in each channel; (3, R)."""
    level = (coarse[:3] * 4.0).floor() / 3.0
    return color_a + (color_b - color_a) * level


def _bars(x: Tensor, y: Tensor, color_a: Tensor, color_b: Tensor) -> Tensor:
    """Book spines: upright bars of random colour between the two, a row of them each period of y; (3, R)."""
    bar = (x * 8.0).floor()
    row = y.floor()
    mix = torch.stack([_cell_hash(bar, row + 17.0 * channel) for channel in range(3)])
    return (color_a + (color_b - color_a) * mix) * (0.3 + 0.7 * ((y - row) < 0.85))
