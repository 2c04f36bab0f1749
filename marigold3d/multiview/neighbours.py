"""Which views a keyframe is matched with: by overlap, by the angle under which two rays meet, and from several sides.

Small angles match surely and measure coarsely, large ones measure finely and see past other edges. So the chosen views
are spread over angles and over sides, since what is hidden from the left is often seen from the right, and each part
of the image is to be seen by several of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..camera import project, ray_grid
from ..errors import InputError
from ..rigid import inverse
from ..types import Array, BoolImage, DepthMap, Intrinsics
from .sizes import reduced

COLUMNS = 20  # of the coarse grid of scene points of a view
MIN_OVERLAP = 0.4  # share of the view's points that another must see
MIN_ANGLE_DEG, MAX_ANGLE_DEG = 1.0, 20.0  # between the rays of two views, median over the points that both see
MAX_ZOOM = 2.0  # median ratio of the depths of a point in two views: beyond it, windows show different detail
HIDDEN = 0.7  # a view whose own depth is less than this share of a point's does not see the point
BEST_ANGLE_DEG, ANGLE_WIDTH = 12.0, 1.0  # the angle that serves best alone; a factor e away costs a standard deviation
TWIN_DEG = 0.5  # views as near to each other, seen from the scene, tell the same
SPREAD = 0.5  # chosen views nearer to each other than this share of their angles tell partly the same
LIKE_ANGLE = 0.3  # log ratio at which angles differ
ANGLE_CROWDING, SIDE_CROWDING = 0.5, 0.5  # how much a chosen view of like angle, or on the same side, counts
CHUNK = 128  # candidates compared at a time, which bounds the memory
PROBED = 64  # keyframes, at the most, by which a clip's parallax is judged


@dataclass(frozen=True, eq=False)
class Pairing:
    """How N views go with one of them.

    seen (N, P): which of its P points they see. overlap (N,): the share. angle_deg (N,): between the rays, median over
    the seen points. towards (N, 3): unit vector to the other camera, zero if it stands in the same place.
    zoom (N,): median ratio of the points' depths, the larger over the smaller. Nothing seen: angle 0, zoom infinite.
    """

    seen: BoolImage
    overlap: Array
    angle_deg: Array
    towards: Array
    zoom: Array

    @cached_property
    def usable(self) -> NDArray[np.intp]:
        """Rows of the views within the limits."""
        angle_fits = (self.angle_deg >= MIN_ANGLE_DEG) & (self.angle_deg <= MAX_ANGLE_DEG)
        return np.flatnonzero((self.overlap >= MIN_OVERLAP) & angle_fits & (self.zoom <= MAX_ZOOM))


class MatchingViews:
    """The N keyframes of a clip, known by their poses and a coarse depth map each.

    T_world_camera (N, 4, 4); coarse_depth (N, h, w) z, NaN where there is none; `camera` at any size of that shape.
    The units of the world do not matter.
    """

    def __init__(self, T_world_camera: Array, coarse_depth: Array, camera: Intrinsics) -> None:
        if coarse_depth.ndim != 3 or T_world_camera.shape != (len(coarse_depth), 4, 4):
            raise InputError(
                f"views need poses (N, 4, 4) and coarse depth (N, h, w), got {T_world_camera.shape} and "
                f"{coarse_depth.shape}"
            )
        self._camera = camera.scaled_to(coarse_depth.shape[2], coarse_depth.shape[1])
        self._T_world_camera, self._depth = T_world_camera.astype(float), coarse_depth.astype(float)
        self._T_camera_world = inverse(self._T_world_camera)
        self._rays = ray_grid(self._camera).astype(float).reshape(-1, 3)

    @classmethod
    def of_depth_maps(
        cls, T_world_camera: Array, depths: Iterable[DepthMap], camera: Intrinsics, columns: int = COLUMNS
    ) -> MatchingViews:
        """From whole depth maps, read one at a time."""
        rows = max(1, round(columns * camera.height / camera.width))
        coarse = [coarse_depth(depth, columns, rows) for depth in depths]
        return cls(T_world_camera, np.array(coarse).reshape(-1, rows, columns), camera)

    def __len__(self) -> int:
        return len(self._depth)

    def of(self, index: int, count: int) -> list[int]:
        """At most `count` views to match view `index` with, the most useful first; [] where nothing has parallax."""
        return chosen(self.pairing(index), count)

    def parallax_share(self) -> float:
        """Share of the views that have at least two others to be matched with; of very many, only some are asked."""
        probed = np.unique(np.linspace(0, len(self) - 1, PROBED).round().astype(int)) if len(self) else np.zeros(0, int)
        return float(np.mean([len(self.of(i, 2)) == 2 for i in probed.tolist()])) if len(probed) else 0.0

    def pairing(self, index: int) -> Pairing:
        """View `index` with each of the N views; with itself it has no angle."""
        z = self._depth[index].reshape(-1)
        known = np.isfinite(z) & (z > 0)
        T = self._T_world_camera[index]
        points_world = (self._rays[known] * z[known, None]) @ T[:3, :3].T + T[:3, 3]  # (P, 3)
        parts = [
            self._compared(T[:3, 3], points_world, z[known], np.arange(start, min(start + CHUNK, len(self))))
            for start in range(0, len(self), CHUNK)
        ]
        return Pairing(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _compared(
        self, centre: Array, points_world: Array, z: Array, rows: NDArray[np.intp]
    ) -> tuple[BoolImage, Array, Array, Array, Array]:
        """The entries of `Pairing` for the candidates `rows` (n,), of points (P, 3) with depth z (P,) in the view."""
        T = self._T_camera_world[rows]
        points = points_world @ np.swapaxes(T[:, :3, :3], 1, 2) + T[:, None, :3, 3]  # (n, P, 3) in the candidates
        seen = self._visible(points, rows)
        to_view = centre - points_world  # (P, 3)
        centres = self._T_world_camera[rows, :3, 3]
        to_other = centres[:, None] - points_world  # (n, P, 3)
        across = np.linalg.norm(np.cross(to_view, to_other), axis=-1)
        angle = np.degrees(np.arctan2(across, (to_view * to_other).sum(-1)))  # (n, P), exact for small angles too
        with np.errstate(divide="ignore"):
            zoom = np.exp(np.abs(_median(np.log(np.maximum(points[..., 2], 1e-300) / z), seen, np.inf)))
        step = centres - centre
        length = np.linalg.norm(step, axis=1, keepdims=True)
        towards = np.divide(step, length, out=np.zeros_like(step), where=length > 0)
        return seen, seen.sum(1) / max(len(z), 1), _median(angle, seen, 0.0), towards, zoom

    def _visible(self, points: Array, rows: NDArray[np.intp]) -> BoolImage:
        """(n, P): before the candidates, on their images and not behind what they have there."""
        uv = project(points, self._camera)
        size = (self._camera.width, self._camera.height)
        with np.errstate(invalid="ignore"):
            inside: BoolImage = np.all((uv >= 0) & (uv < size), axis=-1)
        column, row = np.moveaxis(np.where(inside[..., None], uv, 0).astype(np.intp), -1, 0)
        own = self._depth[rows[:, None], row, column]
        with np.errstate(invalid="ignore"):  # where a candidate has no depth, nothing is known to be in the way
            visible: BoolImage = inside & ~(own < HIDDEN * points[..., 2])
        return visible


def chosen(pairing: Pairing, count: int) -> list[int]:
    """At most `count` usable views, one after the other, each the one that adds most to those already chosen."""
    rows = pairing.usable
    angle = pairing.angle_deg[rows]
    towards = pairing.towards[rows]
    place = angle[:, None] * towards  # (n, 3) degrees: where the other camera is, seen from the scene
    worth = np.exp(-0.5 * (np.log(angle / BEST_ANGLE_DEG) / ANGLE_WIDTH) ** 2)
    seen = pairing.seen[rows]
    times_seen = np.zeros(seen.shape[1])
    apart = np.full(len(rows), np.inf)  # degrees to the nearest chosen view
    novelty = np.ones(len(rows))
    alike, beside = np.zeros(len(rows)), np.zeros(len(rows))  # chosen views of about the same angle; on the same side
    picked: list[int] = []
    while len(picked) < count and (apart >= TWIN_DEG).any():
        share = (seen / (1 + times_seen)).mean(1)
        gain = worth * share * novelty / (1 + ANGLE_CROWDING * alike + SIDE_CROWDING * beside)
        best = int(np.where(apart >= TWIN_DEG, gain, -1.0).argmax())
        picked.append(best)
        times_seen += seen[best]
        distance = np.linalg.norm(place - place[best], axis=1)
        apart = np.minimum(apart, distance)
        beside += np.maximum(towards @ towards[best], 0)
        alike += np.exp(-0.5 * (np.log(angle / angle[best]) / LIKE_ANGLE) ** 2)
        novelty = np.minimum(novelty, distance / (SPREAD * np.maximum(angle, angle[best])))
    return rows[picked].tolist()  # type: ignore[no-any-return]


def coarse_depth(depth: DepthMap, columns: int, rows: int) -> Array:
    """(rows, columns) z at the pixels under the centres of the cells, NaN where they are invalid."""
    coarse = reduced(depth, columns, rows)
    return np.where(coarse.valid, coarse.depth, np.nan)


def _median(values: Array, where: BoolImage, otherwise: float) -> Array:
    """(n,) medians of the rows of values (n, P) where `where`; `otherwise` for rows without any."""
    if not values.shape[1]:
        return np.full(len(values), otherwise)
    ordered = np.sort(np.where(where, values, np.inf), axis=1)
    count = where.sum(1)
    middle = ordered[np.arange(len(values)), np.maximum(count - 1, 0) // 2]
    return np.where(count > 0, middle, otherwise)
