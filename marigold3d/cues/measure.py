"""Known lengths: two pixels of a frame and the distance between what they show. And distances in a finished scene."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..align.robust import mad
from ..camera import normalised
from ..errors import GeometryError, UsageError
from ..types import Array, DepthMap, Intrinsics
from .clip_frames import NOT_USED, ClipFrames
from .scale import weighted_median

FORM = "write x1,y1,x2,y2,frame=LENGTH in pixels of the clip's own frames and metres, as in 410,220,415,655,120=2.03"
LENGTH_SIGMA = 0.005  # of a length given without one, as a share ...
LENGTH_SIGMA_M = 0.002  # ... and metres beside it: a tape measure and where its ends are held
DEPTH_SIGMA = 0.02  # of depth maps without a sigma, as a share
POINTING_PX = 0.5  # standard deviation of a marked pixel, px of the depth map
WINDOWS = (1, 2)  # half sizes of the 3x3 and, where that has no valid depth, the 5x5 pixels around an end
OUTLIER = 3.0  # standard deviations


@dataclass(frozen=True)
class Measurement:
    """`length_m` between what pixels uv_a and uv_b of source frame `frame` show; pixels of the clip's own frames."""

    frame: int
    uv_a: tuple[float, float]
    uv_b: tuple[float, float]
    length_m: float
    sigma_m: float | None = None

    def __str__(self) -> str:
        (ax, ay), (bx, by) = self.uv_a, self.uv_b
        return f"{ax:g},{ay:g},{bx:g},{by:g},{self.frame}={self.length_m:g}"

    @property
    def share(self) -> float:
        """Standard deviation of the length as a share of it."""
        stated = self.sigma_m
        return (np.hypot(LENGTH_SIGMA * self.length_m, LENGTH_SIGMA_M) if stated is None else stated) / self.length_m


@dataclass(frozen=True, eq=False)
class MeasuredLength:
    """A measurement and what the scene says of it: `before`, scene units, with its sigma; `after` scaling, metres."""

    measurement: Measurement
    before: float
    sigma: float
    after: float


@dataclass(frozen=True, eq=False)
class ScaleEstimate:
    """`factor` from scene units to metres and its standard deviation; the lengths used and those rejected."""

    factor: float
    sigma: float
    lengths: tuple[MeasuredLength, ...]
    rejected: tuple[MeasuredLength, ...]

    @property
    def n(self) -> int:
        """Lengths used."""
        return len(self.lengths)


def parse_measure(text: str, clip: ClipFrames | None = None) -> Measurement:
    """A measurement from "x1,y1,x2,y2,frame=LENGTH", LENGTH in metres, as 2.03 or 2.03+-0.01 with a standard deviation.

    Raises UsageError when it is not of that form or makes no sense, and, with `clip`, when it is not of that clip.
    """
    where, equals, length = text.partition("=")
    try:
        x1, y1, x2, y2, frame = map(float, where.split(","))
        length_m, *sigma_m = map(float, re.split(r"\+-|\+/-|±", length.strip().removesuffix("m")))
    except ValueError:
        raise UsageError(f"{text!r} is no measurement: {FORM}") from None
    numbers = (x1, y1, x2, y2, frame, length_m, *sigma_m)
    if not equals or len(sigma_m) > 1 or not np.all(np.isfinite(numbers)) or frame != int(frame):
        raise UsageError(f"{text!r} is no measurement: {FORM}")
    if length_m <= 0 or any(s <= 0 for s in sigma_m):
        raise UsageError(f"{text!r}: the length must be positive, in metres")
    if (x1, y1) == (x2, y2):
        raise UsageError(f"{text!r}: both ends are the same pixel; give the two ends of the length")
    measurement = Measurement(int(frame), (x1, y1), (x2, y2), length_m, *sigma_m)
    if clip is not None:
        _position(measurement, clip)
    return measurement


def scale_from_measures(
    measures: Sequence[Measurement], depth_of: Callable[[int], DepthMap], clip: ClipFrames
) -> ScaleEstimate:
    """The factor that brings scene units to metres, by least squares over the logarithms of all lengths.

    depth_of: aligned depth of the used frame at a position. Of three or more, those that lie beyond three standard
    deviations of the rest are rejected. Raises UsageError when a measurement is not of the clip, GeometryError when
    there is no depth at an end of one.
    """
    if not measures:
        raise UsageError(f"no length is given: {FORM}")
    found = [(m, *_measured(m, depth_of, clip)) for m in measures]
    logs = np.array([np.log(m.length_m / before) for m, before, _ in found])
    sigmas = np.array([np.hypot(m.share, sigma / before) for m, before, sigma in found])
    good = np.ones(len(found), bool)
    if len(found) >= 3:
        off = (logs - weighted_median(logs, 1 / sigmas**2)) / sigmas
        good = np.abs(off) <= OUTLIER * max(1.0, mad(off))
    weights = np.where(good, 1 / sigmas**2, 0.0)
    log_factor = float((weights * logs).sum() / weights.sum())
    chi2 = float((weights * (logs - log_factor) ** 2).sum()) / max(int(good.sum()) - 1, 1)
    factor = float(np.exp(log_factor))
    lengths = [MeasuredLength(m, before, sigma, before * factor) for m, before, sigma in found]
    return ScaleEstimate(
        factor,
        factor * float(np.sqrt(max(1.0, chi2) / weights.sum())),
        tuple(length for length, ok in zip(lengths, good, strict=True) if ok),
        tuple(length for length, ok in zip(lengths, good, strict=True) if not ok),
    )


def distance(depth: DepthMap, camera: Intrinsics, uv_a: Array, uv_b: Array) -> tuple[float, float]:
    """Length, and its standard deviation, between what two pixels (2,) of a depth map show; in the map's units.

    The deviation is from the map's sigma (2 % without one) and half a pixel of pointing, taken as independent at the
    two ends. Raises GeometryError when there is no valid depth around one of them.
    """
    point_a, sigma_a, turn_a = _end(depth, camera, uv_a)
    point_b, sigma_b, turn_b = _end(depth, camera, uv_b)
    step = point_b - point_a
    length = float(np.linalg.norm(step))
    if length == 0:
        return 0.0, float(np.hypot(turn_a, turn_b))
    along = step / length
    # A change of z moves an end along its ray, whose z is 1; only its share along the length counts.
    parts = ((along @ point_a / point_a[2]) * sigma_a, (along @ point_b / point_b[2]) * sigma_b, turn_a, turn_b)
    return length, float(np.linalg.norm(parts))


def _end(depth: DepthMap, camera: Intrinsics, uv: Array) -> tuple[Array, float, float]:
    """Camera-frame point (3,), standard deviation of its z, and of its place across the ray from pointing."""
    z, sigma = _depth_at(depth, uv)
    ray = np.append(normalised(np.asarray(uv, float), camera), 1.0)
    return ray * z, sigma, POINTING_PX * z / camera.fx


def _depth_at(depth: DepthMap, uv: Array) -> tuple[float, float]:
    """Median depth, and median sigma, of the valid pixels around uv (2,)."""
    column, row = int(np.floor(uv[0])), int(np.floor(uv[1]))
    for half in WINDOWS:
        window = np.s_[max(row - half, 0) : max(row + half + 1, 0), max(column - half, 0) : max(column + half + 1, 0)]
        valid = depth.valid[window]
        if valid.any():
            z = float(np.median(depth.depth[window][valid]))
            return z, DEPTH_SIGMA * z if depth.sigma is None else float(np.median(depth.sigma[window][valid]))
    raise GeometryError(
        f"no valid depth around pixel ({uv[0]:.1f}, {uv[1]:.1f}) of the depth map: choose a point beside it"
    )


def _measured(measurement: Measurement, depth_of: Callable[[int], DepthMap], clip: ClipFrames) -> tuple[float, float]:
    """Its length in scene units and the standard deviation of that."""
    depth = depth_of(_position(measurement, clip))
    uv_a, uv_b = clip.to_maps(np.array([measurement.uv_a, measurement.uv_b], float))
    for uv, end in ((uv_a, measurement.uv_a), (uv_b, measurement.uv_b)):
        try:
            _depth_at(depth, uv)
        except GeometryError:
            raise GeometryError(
                f"measurement {measurement}: no valid depth at its end ({end[0]:g}, {end[1]:g}) in frame "
                f"{measurement.frame}: mark a point on a surface beside it, or use another frame"
            ) from None
    length, sigma = distance(depth, clip.camera, uv_a, uv_b)
    if length == 0:
        raise GeometryError(f"measurement {measurement}: both ends fall on one point; measure something longer")
    return length, sigma


def _position(measurement: Measurement, clip: ClipFrames) -> int:
    """The position of its frame; UsageError when that is not in use, or an end is outside the picture."""
    (position,) = clip.positions([measurement.frame])
    if position == NOT_USED:
        near = int(clip.indices[np.abs(clip.indices - measurement.frame).argmin()])
        raise UsageError(
            f"measurement {measurement}: frame {measurement.frame} is not in use ({clip.range_text()}); the nearest "
            f"one is {near}"
        )
    width, height = clip.source_size
    for u, v in (measurement.uv_a, measurement.uv_b):
        if not (0 <= u < width and 0 <= v < height):
            raise UsageError(f"measurement {measurement}: ({u:g}, {v:g}) is outside the {width}x{height} frames")
    return int(position)
