"""One measured depth map as a file: PNG in millimetres; NPY, NPZ and EXR in metres."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import InputError

DEPTH_SUFFIXES = (".png", ".npy", ".npz", ".exr")
MILLIMETRE = 0.001


def read_depth_m(path: Path) -> NDArray[np.float64]:
    """z-depth (H, W), NaN where nothing was measured: 0, negative, infinite or NaN in the file.

    Raises InputError when the file is damaged, no depth map, or an 8-bit image.
    """
    readers = {".png": _from_png, ".npy": _from_npy, ".npz": _from_npz, ".exr": _from_exr}
    try:
        values = readers[path.suffix.lower()](path)
    except InputError:
        raise
    except Exception as error:  # numpy's, Pillow's and OpenEXR's readers raise errors of many kinds
        reason = (
            "no image" if isinstance(error, UnidentifiedImageError) else (str(error).splitlines() or ["it ends"])[0]
        )
        raise InputError(f"{path}: not a readable depth map ({reason}); write or copy it again") from error
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
        raise InputError(f"{path}: a depth map is (height, width) numbers, this is {values.shape} {values.dtype}")
    depth = values.astype(np.float64)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.nan)


def _from_png(path: Path) -> NDArray[np.float64]:
    with Image.open(path) as image:
        mode, values = image.mode, np.asarray(image)
    if not mode.startswith("I"):
        raise InputError(
            f"{path}: 8-bit pixels ({mode}) hold no millimetres: write depth as 16-bit grey PNG, or as NPY in metres"
        )
    return values * MILLIMETRE


def _from_npy(path: Path) -> NDArray[np.float64]:
    return _in_metres(path, np.load(path, allow_pickle=False))


def _from_npz(path: Path) -> NDArray[np.float64]:
    with np.load(path, allow_pickle=False) as arrays:
        if "depth" not in arrays:
            raise InputError(
                f"{path}: needs an array named depth, in metres; it holds {', '.join(arrays) or 'nothing'}"
            )
        depth = _in_metres(path, arrays["depth"])
        return np.where(arrays["valid"], depth, np.nan) if "valid" in arrays else depth


def _in_metres(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind in "iu":
        raise InputError(
            f"{path}: whole numbers ({values.dtype}) where metres are expected: divide by 1000 if they are mm"
        )
    return values


def _from_exr(path: Path) -> NDArray[np.float64]:
    try:
        import OpenEXR
    except ImportError as error:
        raise InputError(f"{path}: EXR files need OpenEXR: pip install 'marigold3d[export]'") from error
    channels = OpenEXR.File(str(path)).channels()
    if "Z" not in channels:
        raise InputError(f"{path}: needs a channel Z, in metres; it has {', '.join(channels) or 'none'}")
    return channels["Z"].pixels
