"""Samples brought to one size, as a batch needs them. Depth is picked, never averaged across an edge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from marigold3d.errors import UsageError
from training.data.samples import CorruptSample, Sample, Source


class Fitted:
    """`source` with the middle `crop` (height, width) of each sample, resized to `resize` (height, width)."""

    def __init__(self, source: Source, crop: Sequence[int] | None = None, resize: Sequence[int] | None = None) -> None:
        self.source, self.name = source, source.name
        self.crop, self.resize = size_of(crop, "crop"), size_of(resize, "resize")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        if self.crop is not None:
            sample = cropped(sample, self.crop)
        return sample if self.resize is None else resized(sample, self.resize)


def size_of(value: Sequence[int] | None, key: str) -> tuple[int, int] | None:
    """(height, width) of a setting. Raises UsageError unless it is two positive integers or None."""
    if value is None:
        return None
    if isinstance(value, Sequence) and len(value) == 2 and all(type(side) is int and side > 0 for side in value):
        return value[0], value[1]
    raise UsageError(f"{key}={value!r} is no size: write [height, width] in pixels")


def cropped(sample: Sample, size: tuple[int, int], bottom: bool = False) -> Sample:
    """The middle, or the bottom middle, `size` (height, width) of a sample. Raises CorruptSample if it is smaller."""
    (height, width), (rows, columns) = sample.rgb.shape[1:], size
    if height < rows or width < columns:
        raise CorruptSample(f"{sample.name} is {width}x{height}, smaller than the crop of {columns}x{rows}")
    top, left = height - rows if bottom else (height - rows) // 2, (width - columns) // 2
    window = (slice(None), slice(top, top + rows), slice(left, left + columns))
    return Sample(sample.rgb[window], sample.depth_m[window], sample.valid[window], sample.name)


def resized(sample: Sample, size: tuple[int, int]) -> Sample:
    """A sample at `size` (height, width): colours averaged, depth and its mask of the nearest pixel."""
    if sample.rgb.shape[1:] == size:
        return sample
    rgb = functional.interpolate(sample.rgb[None].float(), size, mode="bilinear", antialias=True)[0]
    return Sample(
        rgb.round().clamp(0, 255).to(torch.uint8),
        _nearest(sample.depth_m, size),
        _nearest(sample.valid.float(), size) > 0.5,
        sample.name,
    )


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(values[None], size, mode="nearest-exact")[0]
