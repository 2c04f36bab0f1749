"""A foreign sparse model with what each image saw of it: the depths it gives, and how much they are worth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..camera import project
from ..rigid import inverse
from ..types import Array, Intrinsics
from .sparse import widest_sine


@dataclass(frozen=True, eq=False)
class ObservedModel:
    """M images, P points and O observations in the model's own world and scale.

    names: of the images; T_world_camera (M, 4, 4); cameras: one an image, at the size its pixels are given in; points
    (P, 3); seen_image (O,) in 0..M-1, seen_point (O,) in 0..P-1 and uv (O, 2) px: which image saw which point where.
    """

    names: tuple[str, ...]
    T_world_camera: Array
    cameras: tuple[Intrinsics, ...]
    points: Array
    seen_image: NDArray[np.int64]
    seen_point: NDArray[np.int64]
    uv: Array

    @cached_property
    def depth(self) -> Array:
        """(O,) z-depth of every observed point in the camera that saw it; not positive behind it."""
        return self._in_cameras[:, 2]

    @cached_property
    def reprojection_px(self) -> Array:
        """(O,) distance between an observation and the projection of its point; NaN behind the camera."""
        projected = np.full(self.uv.shape, np.nan)
        with np.errstate(over="ignore", invalid="ignore"):  # a damaged model has any numbers
            for i, camera in enumerate(self.cameras):
                of_image = self.seen_image == i
                projected[of_image] = project(self._in_cameras[of_image], camera)
            return np.linalg.norm(projected - self.uv, axis=1)

    @cached_property
    def sin_angle(self) -> Array:
        """(P,) sine of the widest angle under which a point was seen."""
        with np.errstate(over="ignore", invalid="ignore"):
            return widest_sine(self.T_world_camera[:, :3, 3], self.points, self.seen_image, self.seen_point)

    @cached_property
    def _in_cameras(self) -> Array:
        """(O, 3) the observed points in the frames of the cameras that saw them."""
        T = inverse(self.T_world_camera)[self.seen_image]  # (O, 4, 4)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.einsum("oij,oj->oi", T[:, :3, :3], self.points[self.seen_point]) + T[:, :3, 3]
