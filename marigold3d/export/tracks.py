"""Which image sees which point, for the tracks of a COLMAP model: multi-view stereo chooses neighbours by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..camera import on_image
from ..rigid import inverse, transform
from ..types import Array, DepthMap, Intrinsics

AGREEMENT = 0.03  # of the depth: a point that lies as near to an image's depth map is seen by it


@dataclass(frozen=True, eq=False)
class Tracks:
    """O observations, by image and then by point: `image` (O,) and `point` (O,) are rows, `uv` (O, 2) pixels.

    Where a point is seen is where its pose and camera put it, not where a feature was found.
    """

    image: NDArray[np.int64]
    point: NDArray[np.int64]
    uv: Array

    @classmethod
    def none(cls) -> Tracks:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2)))

    def in_image(self, row: int) -> Tracks:
        """What one image sees."""
        first, last = np.searchsorted(self.image, [row, row + 1])
        return Tracks(self.image[first:last], self.point[first:last], self.uv[first:last])

    def by_point(self) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """(row of a seen point, [(row of an image, the observation's place among that image's)]), by point."""
        place = np.arange(len(self.image)) - np.searchsorted(self.image, self.image)
        order = np.argsort(self.point, kind="stable")
        rows, lengths = np.unique(self.point, return_counts=True)
        ends = np.cumsum(lengths)
        for row, end, length in zip(rows.tolist(), ends, lengths, strict=True):
            part = order[end - length : end]
            yield row, list(zip(self.image[part].tolist(), place[part].tolist(), strict=True))


def seen_in(
    depth: DepthMap, points: Array, T_world_camera: Array, camera: Intrinsics
) -> tuple[NDArray[np.int64], Array]:
    """(rows, uv) of the points (N, 3) that this image shows: inside it, and as far away as its depth map says."""
    in_camera = transform(inverse(T_world_camera), points.astype(np.float64))
    uv, inside = on_image(in_camera, camera)
    rows = np.flatnonzero(inside)
    column, row = uv[rows].astype(np.intp).T
    z = in_camera[rows, 2]
    agrees = depth.valid[row, column] & (np.abs(depth.depth[row, column] - z) < AGREEMENT * z)
    return rows[agrees], uv[rows[agrees]]


def joined(rows: NDArray[np.int64], seen: Iterable[tuple[NDArray[np.int64], Array]]) -> Tracks:
    """Tracks of what `seen_in` found image by image among points of these rows; those seen once are left out."""
    found = list(seen)
    image = np.repeat(np.arange(len(found)), [len(which) for which, _ in found])
    point = np.concatenate([np.zeros(0, np.int64), *(rows[which] for which, _ in found)])
    uv = np.concatenate([np.zeros((0, 2)), *(uv for _, uv in found)])
    often = (np.bincount(point) > 1)[point] if len(point) else np.zeros(0, bool)
    return Tracks(image[often], point[often], uv[often])
