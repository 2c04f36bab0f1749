"""What a camera and a codec do to a picture, on batches (B, 3, H, W) in 0..1."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def _uniform(rng: torch.Generator, count: int, low: float, high: float) -> Tensor:
    return torch.rand(count, 1, 1, 1, generator=rng) * (high - low) + low


def photograph(rgb: Tensor, rng: torch.Generator) -> Tensor:
    """Random gain, gamma, tint, saturation, vignette, blur, noise, blocks."""
    count = len(rgb)
    rgb = rgb.clamp_min(1e-4).pow(_uniform(rng, count, 0.7, 1.4)) * _uniform(rng, count, 0.7, 1.25)
    rgb = rgb * (1 + 0.1 * torch.randn(count, 3, 1, 1, generator=rng))
    grey = rgb.mean(1, keepdim=True)
    saturation = _uniform(rng, count, -0.2, 1.2).clamp_min(0.0)  # one picture in seven has no colour
    rgb = grey + (rgb - grey) * saturation
    rgb = rgb * vignette(rgb.shape[-2:], _uniform(rng, count, -0.1, 0.5).clamp_min(0.0))
    rgb = blur(rgb, rng)
    level = _uniform(rng, count, -0.01, 0.06).clamp_min(0.0)
    return quantise(rgb + level * torch.randn(rgb.shape, generator=rng), rng).clamp(0.0, 1.0)


def vignette(size: torch.Size, strength: Tensor) -> Tensor:
    """(B, 1, H, W) darkening towards the corners."""
    height, width = size
    v, u = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return 1 - strength * (u * u + v * v) / 2


def blur(rgb: Tensor, rng: torch.Generator) -> Tensor:
    """A small Gaussian, the same for a batch: none in a third of batches, up to 1.5 px."""
    sigma = float(torch.rand((), generator=rng)) * 2.2 - 0.7
    if sigma <= 0.15:
        return rgb
    taps = torch.arange(-4, 5, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 9)
    rgb = functional.conv2d(functional.pad(rgb, (4, 4, 0, 0), mode="replicate"), kernel, groups=3)
    return functional.conv2d(functional.pad(rgb, (0, 0, 4, 4), mode="replicate"), kernel.transpose(2, 3), groups=3)


def quantise(rgb: Tensor, rng: torch.Generator) -> Tensor:
    """Coarse chroma in half of the batches, as video codecs leave it."""
    if float(torch.rand((), generator=rng)) < 0.5:
        return rgb
    luma = rgb.mean(1, keepdim=True)
    chroma = functional.avg_pool2d(rgb - luma, 4, ceil_mode=True)
    return luma + functional.interpolate(chroma, size=rgb.shape[-2:], mode="bilinear", align_corners=False)


def crop_and_flip(rgb: Tensor, log_depth: Tensor, size: tuple[int, int], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """One random window of random aspect for the batch, brought to `size` (H, W); each picture mirrored half of the
    time.

    The pixels are averaged (antialiased) and depth takes the nearest, so that no depth lies between two surfaces.
    """
    height, width = rgb.shape[-2:]
    share = math.sqrt(float(torch.rand((), generator=rng)) * 0.65 + 0.35)
    aspect = math.exp((float(torch.rand((), generator=rng)) - 0.5) * 0.4)
    rows, columns = min(height, int(height * share / aspect)), min(width, int(width * share * aspect))
    top = int(torch.randint(height - rows + 1, (), generator=rng))
    left = int(torch.randint(width - columns + 1, (), generator=rng))
    window = (..., slice(top, top + rows), slice(left, left + columns))
    rgb = functional.interpolate(rgb[window], size=size, mode="bilinear", antialias=True, align_corners=False)
    log_depth = functional.interpolate(log_depth[window], size=size, mode="nearest-exact")
    mirrored = torch.rand(len(rgb), 1, 1, 1, generator=rng) < 0.5
    return torch.where(mirrored, rgb.flip(-1), rgb), torch.where(mirrored, log_depth.flip(-1), log_depth)
