"""What a camera and a codec do to a picture, on batches (B, 3, H, W) in 0..1."""

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional


def _uniform(rng: torch.Generator, count: int, low: float, high: float) -> Tensor:
    return torch.rand(count, 1, 1, 1, generator=rng) * (high - low) + low


def photograph(rgb: Tensor, rng: torch.Generator) -> Tensor:
    """Uneven light, gain, gamma, tint, hue, saturation, vignette, blur, noise, chroma blocks, JPEG."""
    count = len(rgb)
    rgb = rgb * uneven(rgb, _uniform(rng, count, -0.3, 0.6).clamp_min(0.0), rng)
    rgb = rgb.clamp_min(1e-4).pow(_uniform(rng, count, 0.7, 1.4)) * _uniform(rng, count, 0.75, 1.3)
    rgb = rgb * (1 + 0.12 * torch.randn(count, 3, 1, 1, generator=rng))
    rgb = turn_hue(rgb, rng)
    grey = rgb.mean(1, keepdim=True)
    saturation = _uniform(rng, count, -0.15, 1.3).clamp_min(0.0)  # one picture in ten has no colour
    rgb = grey + (rgb - grey) * saturation
    rgb = rgb * vignette(rgb.shape[-2:], _uniform(rng, count, -0.1, 0.5).clamp_min(0.0))
    rgb = blur(rgb, rng)
    level = _uniform(rng, count, -0.01, 0.06).clamp_min(0.0)
    rgb = quantise(rgb + level * torch.randn(rgb.shape, generator=rng), rng).clamp(0.0, 1.0)
    return compressed(rgb, rng)


def uneven(rgb: Tensor, strength: Tensor, rng: torch.Generator) -> Tensor:
    """(B, 1, H, W) smooth factors about 1: light that no lamp of the scene explains."""
    coarse = torch.randn(len(rgb), 1, 3, 4, generator=rng) * strength
    return functional.interpolate(coarse, size=rgb.shape[-2:], mode="bicubic", align_corners=False).exp()


def turn_hue(rgb: Tensor, rng: torch.Generator) -> Tensor:
    """Colours turned about the grey axis: a little in all pictures, anyhow in one of eight."""
    count = len(rgb)
    anyhow = torch.rand(count, generator=rng) < 0.125
    angle = torch.randn(count, generator=rng) * torch.where(anyhow, math.pi, 0.15)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # cross product with the grey axis
    turn = cos * torch.eye(3) + sin * across + (1 - cos) / 3
    return torch.einsum("bij,bjhw->bihw", turn, rgb).clamp_min(0.0)


def compressed(rgb: Tensor, rng: torch.Generator) -> Tensor:
    """JPEG of random quality, half of the pictures."""
    chosen = torch.rand(len(rgb), generator=rng) < 0.5
    quality = torch.randint(20, 92, (len(rgb),), generator=rng)
    out = rgb.clone()
    for i in chosen.nonzero()[:, 0].tolist():
        pixels = (rgb[i].permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous().numpy()
        packed = io.BytesIO()
        Image.fromarray(pixels).save(packed, "JPEG", quality=int(quality[i]))
        decoded = np.asarray(Image.open(packed)).copy()
        out[i] = torch.from_numpy(decoded).permute(2, 0, 1).float() / 255
    return out


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
