"""Pictures and depth maps as tensors, and samples made of them; a damaged file is a CorruptSample that names it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from training.data.samples import CorruptSample, Sample


def read_rgb(file: Path | BinaryIO, name: str) -> Tensor:
    """(3, H, W) uint8 sRGB. `name` is what a CorruptSample calls the file."""
    with _opened(file, name) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def read_depth(file: Path | BinaryIO, name: str, unit_m: float) -> Tensor:
    """(1, H, W) float32 metres of a 16-bit grey PNG whose values are multiples of `unit_m`."""
    with _opened(file, name) as image:
        if not image.mode.startswith("I"):
            raise CorruptSample(f"{name}: depth must be 16-bit grey, this is {image.mode}")
        values = np.array(image)
    return torch.from_numpy((values * unit_m).astype(np.float32))[None]


def to_sample(rgb: Tensor, depth_m: Tensor, range_m: tuple[float, float], name: str) -> Sample:
    """A sample whose depths count strictly inside `range_m`. Raises CorruptSample where the sizes differ."""
    if rgb.shape[1:] != depth_m.shape[1:]:
        (h, w), (depth_h, depth_w) = rgb.shape[1:], depth_m.shape[1:]
        raise CorruptSample(f"{name}: the picture is {w}x{h}, its depth {depth_w}x{depth_h}")
    near, far = range_m
    return Sample(rgb, depth_m, (depth_m > near) & (depth_m < far), name)


@contextmanager
def _opened(file: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """The image, all of it decoded: Pillow says that a file is cut short, other libraries fill the rest with grey."""
    try:
        with Image.open(file) as image:
            image.load()
            yield image
    except UnidentifiedImageError:
        raise CorruptSample(f"{name}: not an image") from None
    except FileNotFoundError:
        raise CorruptSample(f"{name}: no such file") from None
    except (OSError, ValueError, SyntaxError, EOFError, zlib.error, Image.DecompressionBombError) as error:
        raise CorruptSample(f"{name}: {str(error).splitlines()[0] if str(error) else 'damaged'}") from error
