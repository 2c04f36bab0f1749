"""Depth maps as files: 16-bit PNG with one encoding for a whole run, float EXR, NPZ."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .. import __version__
from ..atomic import atomic_path
from ..errors import InputError, OutputError
from ..types import DepthMap, FloatImage, Units
from .preview import colorize, depth_range

__all__ = [
    "DepthEncoding",
    "colorize",
    "depth_range",
    "read_depth_npz",
    "read_depth_png",
    "read_encoding",
    "write_depth_exr",
    "write_depth_npz",
    "write_depth_png",
    "write_encoding",
    "write_sigma_png",
]

MAX_VALUE = 65535  # of a 16-bit PNG; 0 means no depth
NO_OPENEXR = "EXR files need OpenEXR: pip install 'marigold3d[export]'"
SIGMA_STEP = 1e-4  # of the scene's typical depth, between two values of an encoded sigma


@dataclass(frozen=True)
class DepthEncoding:
    """depth = scale * value + offset, in `units`, for the 16-bit values 1..65535; 0 means no depth."""

    scale: float
    offset: float = 0.0
    units: Units = "arbitrary"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0 and np.isfinite(self.offset)):
            raise InputError(f"a depth encoding needs a positive scale, got scale={self.scale}, offset={self.offset}")
        if self.units not in get_args(Units):
            raise InputError(f"unknown depth units {self.units!r}: use one of {get_args(Units)}")

    @classmethod
    def for_range(cls, near: float, far: float, units: Units) -> DepthEncoding:
        """The finest encoding that holds every depth from `near` to `far`, in `units`."""
        if not 0 < near < far < np.inf:
            raise InputError(f"a depth range needs 0 < near < far, got {near} to {far}")
        scale = (far - near) / (MAX_VALUE - 1)
        return cls(scale, near - scale, units)

    @classmethod
    def millimetres(cls) -> DepthEncoding:
        """What RGB-D sensors write: millimetres, up to 65.535 m."""
        return cls(0.001, 0.0, "m")

    @classmethod
    def for_sigma(cls, typical_depth: float, units: Units) -> DepthEncoding:
        """For standard deviations in a scene of that typical depth: 1 % of it is exact to 0.5 %."""
        return cls(SIGMA_STEP * typical_depth, 0.0, units)

    def encode(self, depth: DepthMap) -> NDArray[np.uint16]:
        """(H, W) uint16; invalid depth, and depth the 16 bits cannot hold, becomes 0."""
        with np.errstate(invalid="ignore"):
            values = np.rint((depth.depth.astype(np.float64) - self.offset) / self.scale)
            keep = depth.valid & (values >= 1) & (values <= MAX_VALUE)
        return np.where(keep, values, 0).astype(np.uint16)

    def decode(self, values: NDArray[np.uint16]) -> DepthMap:
        """Depth of (H, W) uint16 values, exact to half a step of `scale`; without sigma."""
        depth = (values * self.scale + self.offset).astype(np.float32)
        valid = (values > 0) & (depth > 0)
        return DepthMap(np.where(valid, depth, np.float32(0)), valid)


def write_encoding(path: str | Path, encoding: DepthEncoding, what: Literal["depth", "sigma"] = "depth") -> None:
    """Write the encoding of a folder of depth PNGs, or of PNGs of its standard deviation, as JSON."""
    note = {what: "scale * value + offset", "invalid": 0, "axis": "z", "generator": f"marigold3d {__version__}"}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({**asdict(encoding), **note}, indent=2) + "\n")


def read_encoding(path: str | Path) -> DepthEncoding:
    """Read `write_encoding`'s JSON; InputError when it is missing or damaged."""
    try:
        entry = json.loads(Path(path).read_text())
        return DepthEncoding(float(entry["scale"]), float(entry["offset"]), entry["units"])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it must stand beside the depth maps") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a depth encoding ({error!r}); it needs scale, offset and units") from error


def write_depth_png(path: str | Path, depth: DepthMap, encoding: DepthEncoding) -> None:
    """Write a depth map as 16-bit grey PNG under `encoding`."""
    with atomic_path(path) as temporary:
        Image.fromarray(encoding.encode(depth)).save(temporary, format="PNG", compress_level=3)


def write_sigma_png(path: str | Path, depth: DepthMap, encoding: DepthEncoding) -> None:
    """Write a depth map's standard deviation likewise; what the 16 bits cannot hold becomes the nearest they can."""
    held = np.clip(depth.sigma_or_typical, encoding.scale, MAX_VALUE * encoding.scale)
    sigma = np.nan_to_num(held, nan=MAX_VALUE * encoding.scale).astype(np.float32)
    write_depth_png(path, DepthMap(np.where(depth.valid, sigma, np.float32(0)), depth.valid), encoding)


def read_depth_png(path: str | Path, encoding: DepthEncoding) -> DepthMap:
    """Read a 16-bit grey PNG; InputError when it is missing, damaged or of another kind."""
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.asarray(image)
    except FileNotFoundError:
        raise InputError(f"{path}: no such depth map") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: not a readable depth map ({str(error).splitlines()[0]}); write it again") from error
    if not mode.startswith("I"):
        raise InputError(f"{path}: depth must be 16-bit grey, this image is {mode}")
    return encoding.decode(values.astype(np.uint16))


def write_depth_npz(path: str | Path, depth: DepthMap, units: Units) -> None:
    """Write depth, valid, units and, where there is one, sigma; exact."""
    arrays: dict[str, Any] = {"depth": depth.depth, "valid": depth.valid, "units": np.array(units)}
    if depth.sigma is not None:
        arrays["sigma"] = depth.sigma
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_depth_npz(path: str | Path) -> DepthMap:
    """Read what `write_depth_npz` wrote; InputError when it is something else."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return DepthMap(arrays["depth"], arrays["valid"], arrays.get("sigma"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such depth map") from None
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{path}: not a depth map of marigold3d ({error}); it needs depth and valid") from error


def write_depth_exr(path: str | Path, depth: DepthMap, units: Units) -> None:
    """Write channel Z (float32, 0 where invalid) and, where there is one, sigma. Needs marigold3d[export]."""
    channels = {"Z": np.where(depth.valid, depth.depth, np.float32(0))}
    if depth.sigma is not None:
        channels["sigma"] = np.ascontiguousarray(depth.sigma, np.float32)
    write_exr(path, channels, f"z-depth, units {units}", compress=True)


def write_exr(path: str | Path, channels: dict[str, FloatImage], comment: str, *, compress: bool) -> None:
    """Write float32 channels (H, W) by name as a scan-line EXR. OutputError without OpenEXR, or on a full disk."""
    try:
        import OpenEXR
    except ImportError as error:
        raise OutputError(NO_OPENEXR) from error
    header = {
        "compression": OpenEXR.ZIP_COMPRESSION if compress else OpenEXR.NO_COMPRESSION,
        "type": OpenEXR.scanlineimage,
        "comments": comment,
    }
    with atomic_path(path) as temporary:
        try:
            OpenEXR.File(header, channels).write(str(temporary))
        except RuntimeError as error:  # what OpenEXR makes of any failure of the system
            raise OutputError(
                f"cannot write {path} ({str(error).splitlines()[0]}): check the disk and the folder"
            ) from error
