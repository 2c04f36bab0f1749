"""Lenses that k1, k2, p1, p2 cannot describe: frames are undistorted to a pinhole of the same size as they are read.

Everything after the frame source sees pinhole frames, so depth, colours and matches need not know of the lens. The
models are COLMAP's, and so is their projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .camera import normalised, pixel_grid
from .errors import InputError
from .frames import VideoSource
from .types import Array, Frame, Intrinsics

WIDEST_DEG = 110.0  # field of view of an undistorted frame: beyond it, a pinhole stretches its border out of all shape
LARGEST_FOCAL = 8.0  # times the lens's own, tried before a lens counts as unusable
BISECTIONS = 30
RETURNS_PX = 0.01  # a pixel is in the lens's picture if its ray leads back to it: polynomials fold over outside


@dataclass(frozen=True)
class Lens:
    """One camera of any of COLMAP's models: its name, the size in px that it was calibrated at, COLMAP's parameters."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.model == "EQUIRECTANGULAR":
            raise InputError("a panorama (EQUIRECTANGULAR) is no single view: cut pinhole views from it first")
        if self._colmap is None or not self._colmap.verify_params():
            raise InputError(f"camera model {self.model} with {len(self.params)} parameters is unknown to COLMAP")
        if not all(np.isfinite(self.params)) or min(self.width, self.height) < 1 or self._focal.min() <= 0:
            raise InputError(f"the parameters of its {self.model} camera are not those of a lens: {self}")

    @classmethod
    def parse(cls, line: str) -> Lens:
        """From what `str` gives, which is a line of cameras.txt without its id: MODEL WIDTH HEIGHT PARAMS..."""
        model, width, height, *params = line.split()
        return cls(model, int(width), int(height), tuple(map(float, params)))

    def __str__(self) -> str:
        return " ".join([self.model, str(self.width), str(self.height), *map(repr, map(float, self.params))])

    def scaled_to(self, width: int, height: int) -> Lens:
        """The same lens after the picture is resized to width x height."""
        colmap = self._fresh()
        colmap.rescale(width, height)
        return Lens(self.model, width, height, tuple(colmap.params.tolist()))

    @cached_property
    def pinhole(self) -> Intrinsics:
        """The camera of the undistorted frames: same size and principal point, the widest view without empty pixels.

        No wider than WIDEST_DEG. Raises InputError when no pinhole view fits into the lens's picture.
        """
        (fx, fy), (cx, cy) = self._focal, self._centre
        reach = max(max(cx, self.width - cx) / fx, max(cy, self.height - cy) / fy)  # tan of the angle, at the lens's f
        low, high = reach / np.tan(np.radians(WIDEST_DEG) / 2), LARGEST_FOCAL

        def zoomed(factor: float) -> Intrinsics:
            return Intrinsics(factor * fx, factor * fy, cx, cy, self.width, self.height)

        if self._shows(zoomed(low)):
            return zoomed(low)
        if low > high or not self._shows(zoomed(high)):
            raise InputError(f"no pinhole view fits into the picture of its {self.model} camera: calibrate again")
        for _ in range(BISECTIONS):
            middle = np.sqrt(low * high)
            low, high = (low, middle) if self._shows(zoomed(middle)) else (middle, high)
        return zoomed(high)

    def pixels(self, xy: Array) -> Array:
        """Pixels (N, 2) of image-plane coordinates x/z, y/z (N, 2); NaN outside the lens's picture."""
        uv: Array = np.asarray(self._colmap.img_from_cam(np.concatenate([xy, np.ones_like(xy[:, :1])], 1)))
        return uv

    def normalised(self, uv: Array) -> Array:
        """Image-plane coordinates (N, 2) of pixels (N, 2) of the lens's picture; NaN where there are none."""
        xy: Array = np.asarray(self._colmap.cam_from_img(uv))[:, :2]
        return xy

    def _shows(self, camera: Intrinsics) -> bool:
        """Whether the border of a pinhole's picture lies inside the lens's."""
        across, down = np.arange(camera.width + 1.0), np.arange(camera.height + 1.0)
        sides = [np.stack(np.broadcast_arrays(across, y), -1) for y in (0.0, camera.height)]
        sides += [np.stack(np.broadcast_arrays(x, down), -1) for x in (0.0, camera.width)]
        xy = normalised(np.concatenate(sides), camera)
        uv = self.pixels(xy)
        with np.errstate(invalid="ignore"):
            inside = bool(np.all((uv >= 0) & (uv <= (self.width, self.height))))
            return inside and bool(np.all(np.abs(self.normalised(uv) - xy) * self._focal < RETURNS_PX))

    @property
    def _focal(self) -> Array:
        return np.array([self._colmap.focal_length_x, self._colmap.focal_length_y])

    @property
    def _centre(self) -> tuple[float, float]:
        return self._colmap.principal_point_x, self._colmap.principal_point_y

    @cached_property
    def _colmap(self) -> Any:
        return self._fresh()

    def _fresh(self) -> Any:
        import pycolmap

        try:
            return pycolmap.Camera(model=self.model, width=self.width, height=self.height, params=list(self.params))
        except (ValueError, RuntimeError, TypeError):  # each for another kind of nonsense
            return None


class UndistortedVideo(VideoSource):
    """The frames of another source as the lens's pinhole would have seen them."""

    def __init__(self, source: VideoSource, lens: Lens) -> None:
        info = source.info
        if abs(lens.width * info.height / (lens.height * info.width) - 1) > 0.01:  # the same aspect, but for rounding
            raise InputError(
                f"{info.path}: its lens was calibrated at {lens.width}x{lens.height}, the clip is "
                f"{info.width}x{info.height}: calibrate at the clip's aspect ratio and orientation"
            )
        super().__init__(info, source.config)
        self.warnings = source.warnings  # one list: reading adds to it
        self._source, self._lens = source, lens

    @property
    def names(self) -> tuple[str, ...] | None:
        return self._source.names

    def frames(self, *, max_side: int | None = None) -> Iterator[Frame]:
        for frame in self._source.frames(max_side=max_side):
            yield replace(frame, rgb=undistorted(frame.rgb, self._lens))


def undistorted(rgb: NDArray[np.uint8], lens: Lens) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of a picture taken through `lens`, resized or not, as `lens.pinhole` would have taken it."""
    import cv2

    column, row = _sources(lens, rgb.shape[1], rgb.shape[0])
    return np.asarray(cv2.remap(rgb, column, row, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE), np.uint8)


@lru_cache(maxsize=2)
def _sources(lens: Lens, width: int, height: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(column, row), each (H, W), whole at pixel centres: where in the lens's picture each undistorted pixel lies."""
    xy = normalised(pixel_grid(width, height), lens.pinhole.scaled_to(width, height))
    uv = lens.scaled_to(width, height).pixels(xy.reshape(-1, 2)).reshape(xy.shape).astype(np.float32)
    return uv[..., 0] - np.float32(0.5), uv[..., 1] - np.float32(0.5)
