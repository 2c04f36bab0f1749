"""A network's own numbers as files, with the domain that says what they mean: NPY, NPZ, 16-bit PNG, EXR.

Nothing is converted: disparity stays disparity, log depth stays log depth. "near" tells which way the numbers run.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..atomic import atomic_path
from ..errors import InputError
from ..types import Domain, FloatImage, RelativeDepth
from .depth_maps import MAX_VALUE, write_exr

PNG_LEVEL = 1  # of zlib: a fifth of the time of level 6, files 5 % larger (tests/benchmarks/depth_to_disk.py)
MEANINGS: Mapping[Domain, str] = {
    "depth": "z-depth up to a scale and a shift",
    "disparity": "1 / z-depth up to a scale and a shift",
    "log_depth": "natural logarithm of z-depth up to a scale and a shift",
    "metric": "z-depth in metres",
}


def near_is(domain: Domain) -> Literal["small", "large"]:
    """Whether near pixels have small or large numbers in `domain`."""
    return "large" if domain == "disparity" else "small"


@dataclass(frozen=True)
class ValueEncoding:
    """number = scale * value + offset for the 16-bit values 1..65535; 0 means no estimate."""

    scale: float
    offset: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0 and np.isfinite(self.offset)):
            raise InputError(f"an encoding needs a positive scale, got scale={self.scale}, offset={self.offset}")

    @classmethod
    def for_range(cls, low: float, high: float) -> ValueEncoding:
        """The finest encoding that holds all numbers from `low` to `high`."""
        if not -np.inf < low <= high < np.inf:
            raise InputError(f"a range of numbers needs low <= high, got {low} to {high}")
        least = max(abs(low), abs(high), 1e-30) * 2.0**-23  # float32 tells no finer numbers apart
        scale = max(high - low, least) / (MAX_VALUE - 1)
        return cls(scale, low - scale)

    def encode(self, numbers: FloatImage) -> NDArray[np.uint16]:
        """(H, W) uint16; NaN, and what the 16 bits cannot hold, becomes 0."""
        with np.errstate(invalid="ignore", over="ignore"):
            values = np.rint((numbers - np.float64(self.offset)) / self.scale)
            return np.where((values >= 1) & (values <= MAX_VALUE), values, 0).astype(np.uint16)

    def decode(self, values: NDArray[np.uint16]) -> FloatImage:
        """(H, W) float32, exact to half a step of `scale`; NaN where nothing was estimated."""
        return np.where(values > 0, values * self.scale + self.offset, np.nan).astype(np.float32)


def write_npy(path: Path, numbers: FloatImage) -> None:
    """Write (H, W) float32 as they are."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, numbers)


def write_npz(path: Path, depth: RelativeDepth) -> None:
    """Write `depth`, `domain`, `near` and, where there is one, `uncertainty`; exact, and not compressed.

    zlib would make the files a seventh smaller and take a quarter of the network's own time.
    """
    arrays: dict[str, Any] = {"depth": depth.values, "domain": np.array(depth.domain)}
    arrays["near"] = np.array(near_is(depth.domain))
    if depth.uncertainty is not None:
        arrays["uncertainty"] = depth.uncertainty
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def write_png16(path: Path, numbers: FloatImage, encoding: ValueEncoding) -> None:
    """Write (H, W) as 16-bit grey PNG; whoever reads it needs the encoding."""
    write_png(path, encoding.encode(numbers))


def write_png(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Write a picture (H, W) or (H, W, 3)."""
    content = io.BytesIO()  # many small writes to a slow disk would hold up the network
    Image.fromarray(pixels).save(content, format="PNG", compress_level=PNG_LEVEL)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def write_relative_exr(path: Path, depth: RelativeDepth) -> None:
    """Write channel Z and, where there is one, sigma: float32, exact. Needs marigold3d[export]."""
    channels = {"Z": np.ascontiguousarray(depth.values)}
    if depth.uncertainty is not None:
        channels["sigma"] = np.ascontiguousarray(depth.uncertainty, np.float32)
    comment = f"{depth.domain}: {MEANINGS[depth.domain]}; near is {near_is(depth.domain)}"
    write_exr(path, channels, comment, compress=False)  # ZIP would save 3 %


def read_npz(path: Path) -> RelativeDepth:
    """Read what `write_npz` wrote. InputError when it is missing, damaged or something else."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return RelativeDepth(arrays["depth"], str(arrays["domain"]), arrays.get("uncertainty"))  # type: ignore[arg-type]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # numpy and zipfile raise many kinds
        raise InputError(f"{path}: not a depth file of marigold3d ({error}): remove it and run again") from error


def read_npy(path: Path) -> FloatImage:
    """Read (H, W) float32. InputError when it is missing, damaged or something else."""
    try:
        numbers = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # numpy and zipfile raise many kinds
        raise InputError(f"{path}: not a depth file of marigold3d ({error}): remove it and run again") from error
    if getattr(numbers, "ndim", 0) != 2 or numbers.dtype != np.float32:
        raise InputError(f"{path}: not a depth map (H, W) of float32: remove it and run again")
    return numbers


def read_png16(path: Path, encoding: ValueEncoding) -> FloatImage:
    """Read what `write_png16` wrote. InputError when it is missing, damaged or of another kind."""
    try:
        with Image.open(path) as image:
            if not image.mode.startswith("I"):
                raise InputError(f"{path}: depth must be 16-bit grey, this image is {image.mode}")
            return encoding.decode(np.asarray(image).astype(np.uint16))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: not a readable depth map ({str(error).splitlines()[0]})") from error
