"""What a click in a finished run means: pixels of its frames, and points of its scene, carried over to each other.

Pixels are those of the clip's own frames. A marked point lies on the surface that its frame's depth map shows, so that
lengths between marked points are what `scale_from_measures` makes of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import floor

import numpy as np
from numpy.typing import NDArray

from .camera import on_image, project
from .cues import ClipFrames, Measurement, length_between, parse_measure, surface_point
from .errors import GeometryError, InputError, UsageError
from .exclusions import FARTHEST, SAME_SURFACE, SIGMAS
from .rigid import inverse, transform
from .store import Run
from .types import Array, BoolImage

MAPS_KEPT = 16  # depth maps in memory
FRAMES_TRIED = 40  # depth maps read to find one that sees a point, at the most: frames side by side see the same
PIXEL_DECIMALS = 2  # of a pixel in a measurement: far finer than anyone points


@dataclass(frozen=True, eq=False)
class SurfacePoint:
    """What a pixel of a frame shows.

    frame: source frame it was marked in; uv: px of the clip's own frames; point (3,): world, scene units; covariance
    (3, 3): scene units squared, from the depth's sigma along the ray and half a pixel of pointing across it.
    """

    frame: int
    uv: tuple[float, float]
    point: Array
    covariance: Array


class Surfaces:
    """The surfaces of a finished run as its frames see them; of a run that has changed since, make a new one."""

    def __init__(self, run: Run) -> None:
        """Raises InputError for a run without camera path, or whose products do not fit each other."""
        if not (run.path / "trajectory.txt").is_file():
            raise InputError(f"{run.path} has no camera path, so points of its frames have no place: run with poses")
        self._clip, self._T_world_camera = clip_frames(run), run.trajectory().T_world_camera
        self._depth = lru_cache(MAPS_KEPT)(run.depth)

    def at_pixel(self, frame: int, uv: tuple[float, float]) -> SurfacePoint:
        """What pixel uv of a source frame shows.

        Raises UsageError when the frame is not used, GeometryError where it has no depth.
        """
        row = self._row(frame)
        (on_map,) = self._clip.to_maps(np.array([uv], float))
        if self._clip.inside(on_map[None])[0]:
            try:
                point, covariance = surface_point(self._depth(frame), self._clip.camera, on_map, self._pose(row))
                return SurfacePoint(frame, (float(uv[0]), float(uv[1])), point, covariance)
            except GeometryError:
                pass
        raise GeometryError(
            f"frame {frame} has no depth at pixel ({uv[0]:.1f}, {uv[1]:.1f}): choose a point on a surface beside it"
        )

    def at_point(self, point: Array, frame: int | None = None) -> SurfacePoint:
        """The surface at a world point (3,), as `frame` sees it, or else the frame that sees it near and in the middle.

        Raises UsageError when `frame` is not used, GeometryError when no frame sees a surface there.
        """
        rows = [] if frame is None else [self._row(frame)]
        for row in (*rows, *self._rows_towards(np.asarray(point, float))):
            found = self._seen_at(np.asarray(point, float), row)
            if found is not None:
                return found
        x, y, z = np.asarray(point, float)
        raise GeometryError(f"no frame sees a surface at ({x:.4g}, {y:.4g}, {z:.4g}): choose a point that frames show")

    def visible(self, points: Array, frame: int) -> NDArray[np.bool_]:
        """(N,) which of the world points (N, 3) a used source frame sees: in its picture and on its surfaces."""
        in_camera = self._in_camera(np.asarray(points), self._row(frame))
        uv, seen = on_image(in_camera, self._clip.camera)
        column, row = uv[seen].astype(np.intp).T
        depth = self._depth(frame)
        z = depth.depth[row, column]
        sigma = None if depth.sigma is None else depth.sigma[row, column]
        on_surface = depth.valid[row, column] & _same(in_camera[seen, 2], z, sigma)
        seen[seen] = on_surface
        return seen

    def project(self, points: Array, frame: int) -> Array:
        """Pixels (N, 2) of a used source frame at which world points (N, 3) lie; NaN behind the camera."""
        uv = project(self._in_camera(np.asarray(points, float), self._row(frame)), self._clip.camera)
        return uv * self._px_per_map_px

    def length(self, a: SurfacePoint, b: SurfacePoint) -> tuple[float, float]:
        """Distance between two points and its standard deviation, scene units."""
        return length_between((a.point, a.covariance), (b.point, b.covariance))

    def measurement(
        self, a: SurfacePoint, b: SurfacePoint, length_m: float, sigma_m: float | None = None
    ) -> Measurement:
        """That distance as a known length; UsageError when it is none: not positive, or both ends the same pixel."""
        return parse_measure(
            str(Measurement(a.frame, _short(a.uv), _short(b.uv), length_m, sigma_m, b.frame)), self._clip
        )

    # -- frames -------------------------------------------------------------------------------------------------------

    @property
    def _px_per_map_px(self) -> Array:
        camera = self._clip.camera
        return np.divide(self._clip.source_size, (camera.width, camera.height))

    def _row(self, frame: int) -> int:
        row = int(self._clip.positions([frame])[0])
        if row < 0:
            near = int(self._clip.indices[np.abs(self._clip.indices - frame).argmin()])
            raise UsageError(f"frame {frame} has no depth ({self._clip.range_text()} are used); the nearest is {near}")
        return row

    def _pose(self, row: int) -> Array:
        return np.asarray(self._T_world_camera[row])

    def _in_camera(self, points: Array, row: int) -> Array:
        """Points (N, 3) in a camera's frame, at their own precision."""
        return transform(inverse(self._pose(row)).astype(points.dtype), points)

    def _rows_towards(self, point: Array) -> Iterator[int]:
        """Rows of frames with a world point (3,) in their picture, best first: near, and not at the picture's edge."""
        T, camera = inverse(self._T_world_camera), self._clip.camera
        in_cameras = T[:, :3, :3] @ point + T[:, :3, 3]  # (F, 3)
        uv, inside = on_image(in_cameras, camera)
        half = np.array([camera.width / 2, camera.height / 2])
        from_middle = ((uv / half - 1) ** 2).sum(1)
        rows = np.flatnonzero(inside)
        best = rows[np.argsort((in_cameras[:, 2] * (1 + from_middle))[rows], kind="stable")]
        yield from best[:: -(-len(best) // FRAMES_TRIED) or 1].tolist()

    def _seen_at(self, point: Array, row: int) -> SurfacePoint | None:
        """The surface that a frame shows where a world point (3,) is; None when that is another one."""
        frame = int(self._clip.indices[row])
        (uv,) = self.project(point[None], frame)
        if not np.isfinite(uv).all():
            return None
        try:
            found = self.at_pixel(frame, (float(uv[0]), float(uv[1])))
        except GeometryError:
            return None
        wanted, there = self._in_camera(np.stack([point, found.point]), row)
        variance = found.covariance @ (axis := self._pose(row)[:3, 2]) @ axis
        return found if _same(wanted[2], there[2], np.sqrt(variance)) else None


def clip_frames(run: Run) -> ClipFrames:
    """The used frames of a finished run; their times are NaN where it has no camera path.

    Raises InputError when its products do not fit each other.
    """
    frames, camera = np.array(run.frame_indices, np.int64), run.camera()
    posed = (run.path / "trajectory.txt").is_file()
    times = run.posed_frames().timestamps_s if posed else np.full(len(frames), np.nan)
    entry = json.loads((run.path / "camera.json").read_text()).get("source_frames", {})
    size = int(entry.get("width", camera.width)), int(entry.get("height", camera.height))
    return ClipFrames(frames, times, size, camera)


def _same(z: Array, surface: Array, sigma: Array | None) -> BoolImage:
    """Whether depths z are on a surface at depths `surface` that are known to `sigma`: all of one shape."""
    near = SAME_SURFACE * surface
    if sigma is not None:
        near = np.maximum(near, np.minimum(SIGMAS * sigma, FARTHEST * surface))
    return np.asarray(np.abs(z - surface) <= near)


def _short(uv: tuple[float, float]) -> tuple[float, float]:
    """A pixel with few decimals, rounded down so that it stays in the picture."""
    u, v = (floor(x * 10**PIXEL_DECIMALS) / 10**PIXEL_DECIMALS for x in uv)
    return u, v
