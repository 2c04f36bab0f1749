"""Points of the world, as a laser scanner or a survey gives them, seen through each frame's camera."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import minimum_filter

from ..camera import project
from ..errors import InputError
from ..export.ply import read_ply
from ..rigid import inverse, transform
from ..types import Array, BoolImage, Intrinsics, SparseCues, Units
from .clip_frames import ClipFrames
from .framed import default_sigma
from .table import Table
from .tally import Tally

CLOUD_SUFFIXES = (".ply", ".las", ".laz")
SEEN_THROUGH = 1.15  # a point this much farther than another close by in the image is behind that one's surface
CELL = 0.008  # of the image's width: "close by" is the same or a neighbouring cell of this size
MAX_CUES = 5000  # of a frame; more are thinned to one a cell of a regular grid
LAS_COUNTS = struct.Struct("<96xII")  # of a LAS header: offset of the points, number of the records before them
LAS_RECORD_BYTES = 54  # of the shortest such record


@dataclass(frozen=True, eq=False)
class WorldPoints:
    """A `CueSource` of points (P, 3) in the world of the camera poses, in `units`; sigma (P,), NaN where unknown.

    camera: of the depth maps. `share`: see `framed.default_sigma`. `read`: what the file held that is not here.
    """

    units: Units
    points: Array
    sigma: Array
    camera: Intrinsics
    share: float | None
    read: Tally
    name: str = "points"
    of_single_frames: bool = False
    _seen: dict[int, Tally] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.points)

    @property
    def tally(self) -> Tally:
        """Of the points inside the image, over all frames asked for so far; before that, of the file."""
        return sum(self._seen.values(), Tally(0)) if self._seen else self.read

    def cues(self, position: int, T_world_camera: Array) -> tuple[SparseCues, NDArray[np.int64]]:
        """See `align.sources.CueSource`: the points in front, inside the image, and not behind others."""
        in_camera = transform(inverse(T_world_camera), self.points)
        uv, z = project(in_camera, self.camera), in_camera[:, 2]
        with np.errstate(invalid="ignore"):
            inside = (z > 0) & (uv >= 0).all(1) & (uv < (self.camera.width, self.camera.height)).all(1)
        ids = np.flatnonzero(inside & self._on_the_sensor(in_camera))
        uv, z = uv[ids], z[ids]
        hidden = behind_others(uv, z, self.camera)
        thinned = _surplus(uv, ~hidden, self.camera)
        keep, self._seen[position] = Tally.sift(
            len(ids), (("seen through a surface", hidden), ("thinned to a regular grid", thinned))
        )
        uv, z, ids = uv[keep], z[keep], ids[keep]
        sigma = np.where(np.isfinite(self.sigma[ids]), self.sigma[ids], default_sigma(z, self.units, self.share))
        return SparseCues(uv, z, sigma, self.name), ids

    def _on_the_sensor(self, in_camera: Array) -> BoolImage:
        """(N,) False for points so far off the axis that the lens model folds them back into the image."""
        if self.camera.distortion is None:
            return np.ones(len(in_camera), bool)
        corner = np.hypot(self.camera.width / self.camera.fx, self.camera.height / self.camera.fy)
        with np.errstate(divide="ignore", invalid="ignore"):
            off_axis = np.linalg.norm(in_camera[:, :2], axis=1) / in_camera[:, 2]
        return np.asarray(off_axis < corner)  # twice the half diagonal of the view


def behind_others(uv: Array, z: Array, camera: Intrinsics) -> BoolImage:
    """(N,) which points at pixels uv (N, 2) and depth z (N,) are probably hidden: another close by is much nearer.

    Conservative: it drops some visible points beside an edge, and finds no hidden one where the nearer surface has no
    points.
    """
    cell = max(1.0, CELL * camera.width)
    at = np.floor(uv / cell).astype(int)
    nearest = np.full((int(camera.height / cell) + 1, int(camera.width / cell) + 1), np.inf)
    np.minimum.at(nearest, (at[:, 1], at[:, 0]), z)
    return np.asarray(z > SEEN_THROUGH * minimum_filter(nearest, 3, mode="nearest")[at[:, 1], at[:, 0]])


def _surplus(uv: Array, wanted: BoolImage, camera: Intrinsics) -> BoolImage:
    """(N,) which wanted points to leave out so that at most MAX_CUES remain: all but the first of each cell."""
    surplus = np.zeros(len(uv), bool)
    if wanted.sum() <= MAX_CUES:
        return surplus
    cell = np.sqrt(camera.width * camera.height / MAX_CUES)  # at most about MAX_CUES of these fit
    columns, rows = int(camera.width / cell), int(camera.height / cell)
    at = np.floor(uv[wanted] / (camera.width / columns, camera.height / rows)).astype(int)
    surplus[np.flatnonzero(wanted)] = True
    surplus[np.flatnonzero(wanted)[np.unique(at[:, 1] * columns + at[:, 0], return_index=True)[1]]] = False
    return surplus


def table_points(table: Table, clip: ClipFrames, units: Units, share: float | None) -> WorldPoints:
    """Points of a table with columns x, y, z and, where there is one, sigma."""
    return _points(table.path, table.matrix("x y z"), table.optional("sigma"), clip, units, share)


def cloud_points(path: Path, clip: ClipFrames, units: Units | None, share: float | None) -> WorldPoints:
    """Points of a PLY, LAS or LAZ file, in metres unless it or `units` says otherwise."""
    if path.suffix.lower() != ".ply":
        xyz = _read_las(path)
        return _points(path, xyz, np.full(len(xyz), np.nan), clip, units or "m", share)
    cloud = read_ply(path)
    with path.open("rb") as file:
        says_arbitrary = b"comment units arbitrary" in file.read(2048)
    units = units or ("arbitrary" if says_arbitrary else "m")
    return _points(path, cloud.points.astype(float), cloud.sigma.astype(float), clip, units, share)


def _points(path: Path, xyz: Array, sigma: Array, clip: ClipFrames, units: Units, share: float | None) -> WorldPoints:
    keep, tally = Tally.sift(len(xyz), (("not a number", ~np.isfinite(xyz).all(1)),))
    if not keep.any():
        raise InputError(f"{path}: it holds no points with finite coordinates; export it again")
    sigma = np.where(np.isfinite(sigma) & (sigma > 0), sigma, np.nan)
    return WorldPoints(units, xyz[keep], sigma[keep], clip.camera, share, tally)


def _read_las(path: Path) -> Array:
    try:
        import laspy
    except ImportError as error:
        raise InputError(f"{path}: LAS files need laspy: pip install 'marigold3d[export]'") from error
    try:
        _check_las_header(path)
        xyz: Any = laspy.read(path).xyz
    except Exception as error:  # laspy and its decompressors raise errors of many kinds
        raise InputError(f"{path}: not a readable LAS file ({error}); export it again") from error
    return np.asarray(xyz, np.float64)


def _check_las_header(path: Path) -> None:
    """ValueError where the header counts more records than the file can hold, which laspy would go on looking for."""
    with path.open("rb") as file:
        to_points, records = LAS_COUNTS.unpack(file.read(LAS_COUNTS.size))
    if not LAS_RECORD_BYTES * records <= to_points <= path.stat().st_size:
        raise ValueError("its header is damaged")
