"""A folder or glob of images as a `VideoSource`. Images carry no clock: image i is taken at i / fps seconds.

`VideoConfig.fps` states that rate here (1 per second where it is not given) instead of thinning the images.
"""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .config import VideoConfig
from .errors import InputError
from .frames import VideoInfo, VideoSource, check_range, reduced_size, select
from .types import Frame

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm"})

MOST_MEGAPIXELS = 64  # of a picture that is used at full size: its depth alone takes half a gigabyte
EXIF_ORIENTATION = 274
EXIF_IFD = 0x8769
EXIF_FOCAL_35MM = 41989


def open_images(pattern: Path, config: VideoConfig) -> VideoSource:
    """The images of a folder, one image, or the images that match a glob, in natural order (img2 before img10)."""
    files = find_images(pattern)
    if not files:
        raise InputError(f"{pattern}: no images there; expected files named {', '.join(sorted(IMAGE_SUFFIXES))}")
    return ImageSequence(pattern, files, config)


def find_images(pattern: Path) -> list[Path]:
    """Image files of a folder (not of its subfolders), of a glob, or the file itself; InputError when it is missing."""
    if pattern.is_dir():
        found: Sequence[Path] = list(pattern.iterdir())
    elif pattern.is_file():
        found = [pattern]
    elif glob.has_magic(str(pattern)):
        found = [Path(name) for name in glob.glob(str(pattern))]
    else:
        raise InputError(f"{pattern}: no such file")
    images = [f for f in found if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith(".") and f.is_file()]
    return sorted(images, key=lambda f: natural_key(f.name))


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that compares digit runs as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"([0-9]+)", name) if part]


class ImageSequence(VideoSource):
    """Images of one size; every header is checked on opening, pixels are read one image at a time."""

    def __init__(self, pattern: Path, files: Sequence[Path], config: VideoConfig) -> None:
        self.files = tuple(files)
        fps = config.fps or 1.0
        (width, height), focal = _header(files[0])
        super().__init__(
            VideoInfo(pattern, width, height, fps, len(files), len(files) / fps, focal), replace(config, fps=None)
        )
        check_range(config, pattern, self.info.duration_s)
        for file in files[1:]:
            size, _ = _header(file)
            if size != (width, height):
                raise InputError(
                    f"{file}: {size[0]}x{size[1]}, but {files[0].name} is {width}x{height}; give images of one size"
                )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(file.name for file in self.files)

    def frames(self, *, max_side: int | None = None) -> Iterator[Frame]:
        timeline = ((i, i / self.info.fps, file) for i, file in enumerate(self.files))
        for index, time_s, file in select(timeline, self.config, self.info):
            yield Frame(index, time_s, _read_rgb(file, self.size(max_side)))


def image_size(file: Path) -> tuple[int, int]:
    """Upright (width, height) of an image, from its header. InputError when it is none."""
    return _header(file)[0]


def read_image(file: Path, max_side: int | None = None) -> NDArray[np.uint8]:
    """uint8 sRGB (H, W, 3) of an image, upright, its longest side at most `max_side` px (None: full size).

    InputError when it cannot be read, or has more than MOST_MEGAPIXELS at full size.
    """
    width, height = image_size(file)
    size = reduced_size(width, height, max_side)
    if size[0] * size[1] > MOST_MEGAPIXELS * 1_000_000:
        raise InputError(
            f"{file}: {width}x{height} px is more than {MOST_MEGAPIXELS} megapixels: reduce it with --max-side 8000"
        )
    return _read_rgb(file, size)


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Pillow's image; what it warns of goes to nobody, what it cannot read is an InputError."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            yield image
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(file, error) from error


def _header(file: Path) -> tuple[tuple[int, int], float | None]:
    """Upright (width, height), and the EXIF 35 mm equivalent focal length in mm, without reading the pixels."""
    with _opened(file) as image:
        exif = image.getexif()
        size = image.size[::-1] if exif.get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8) else image.size
        focal = exif.get_ifd(EXIF_IFD).get(EXIF_FOCAL_35MM)
        return size, float(focal) if focal else None


def _read_rgb(file: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 sRGB (H, W, 3), upright, reduced to `size` (width, height) by averaging."""
    with _opened(file) as opened:
        image = _as_rgb(ImageOps.exif_transpose(opened))  # first, since new images have no EXIF
        image = image if image.size == size else image.resize(size, Image.Resampling.BOX)
        return np.array(image, np.uint8)


def _as_rgb(image: Image.Image) -> Image.Image:
    """Eight-bit RGB; alpha is dropped, 16-bit grey (which Pillow would clip) is scaled down."""
    if image.mode == "F":
        raise ValueError("floating-point pixels; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        values = values if values.dtype == np.uint16 else values.clip(0, 65535).astype(np.uint16)
        image = Image.fromarray((values // 257).astype(np.uint8))
    return image.convert("RGB")


def _unreadable(file: Path, error: Exception) -> InputError:
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        return InputError(f"{file}: more than {most} megapixels, too large to be read: reduce it first")
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error).splitlines()[0]
    return InputError(f"{file}: cannot be read ({reason}); replace or remove it")
