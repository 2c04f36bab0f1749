"""Known lengths: two pixels, of one frame or of two, and the distance between what they show."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..align.robust import mad
from ..camera import normalised
from ..errors import GeometryError, UsageError
from ..rigid import transform
from ..types import Array, DepthMap, Intrinsics
from .clip_frames import NOT_USED, ClipFrames
from .scale import weighted_median

FORM = (
    "write x1,y1,x2,y2,frame=LENGTH in pixels of the clip's own frames and metres, as in 410,220,415,655,120=2.03, or "
    "x1,y1@frame1,x2,y2@frame2=LENGTH where its ends are in two frames"
)
TWO_FRAMES = re.compile(",".join([r"([^,@]+),([^,@]+)@([^,@]+)"] * 2))
LENGTH_SIGMA = 0.005  # of a length given without one, as a share ...
LENGTH_SIGMA_M = 0.002  # ... and metres beside it: a tape measure and where its ends are held
DEPTH_SIGMA = 0.02  # of depth maps without a sigma, as a share
POINTING_PX = 0.5  # standard deviation of a marked pixel, px of the depth map
WINDOWS = (1, 2)  # half sizes of the 3x3 and, where that has no valid depth, the 5x5 pixels around an end
OUTLIER = 3.0  # standard deviations


@dataclass(frozen=True)
class Measurement:
    """`length_m` between what pixels uv_a and uv_b of source frame `frame` show; pixels of the clip's own frames.

    frame_b: the source frame of uv_b, None where it is `frame`. `str` writes what `parse_measure` reads.
    """

    frame: int
    uv_a: tuple[float, float]
    uv_b: tuple[float, float]
    length_m: float
    sigma_m: float | None = None
    frame_b: int | None = None

    def __post_init__(self) -> None:
        if self.frame_b == self.frame:
            object.__setattr__(self, "frame_b", None)  # so that equal measurements are equal

    def __str__(self) -> str:
        a, b = (f"{_text(u)},{_text(v)}" for u, v in (self.uv_a, self.uv_b))
        where = f"{a},{b},{self.frame}" if self.frame_b is None else f"{a}@{self.frame},{b}@{self.frame_b}"
        return f"{where}={_text(self.length_m)}" + ("" if self.sigma_m is None else f"+-{_text(self.sigma_m)}")

    @property
    def ends(self) -> tuple[tuple[int, tuple[float, float]], tuple[int, tuple[float, float]]]:
        """(source frame, uv) of either end."""
        return (self.frame, self.uv_a), (self.frame if self.frame_b is None else self.frame_b, self.uv_b)

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
    """A measurement from "x1,y1,x2,y2,frame=LENGTH" or, with its ends in two frames, "x1,y1@f1,x2,y2@f2=LENGTH".

    LENGTH in metres, as 2.03 or 2.03+-0.01 with a standard deviation. Raises UsageError when it is not of that form or
    makes no sense, and, with `clip`, when it is not of that clip.
    """
    where, equals, length = text.partition("=")
    try:
        x1, y1, frame_a, x2, y2, frame_b = _ends_of(where)
        length_m, *sigma_m = map(float, re.split(r"\+-|\+/-|±", length.strip().removesuffix("m")))
    except ValueError:
        raise UsageError(f"{text!r} is no measurement: {FORM}") from None
    numbers = (x1, y1, x2, y2, frame_a, frame_b, length_m, *sigma_m)
    whole = all(float(frame).is_integer() for frame in (frame_a, frame_b))
    if not equals or len(sigma_m) > 1 or not np.all(np.isfinite(numbers)) or not whole:
        raise UsageError(f"{text!r} is no measurement: {FORM}")
    if length_m <= 0 or any(s <= 0 for s in sigma_m):
        raise UsageError(f"{text!r}: the length must be positive, in metres")
    if (x1, y1, frame_a) == (x2, y2, frame_b):
        raise UsageError(f"{text!r}: both ends are the same pixel; give the two ends of the length")
    sigma = sigma_m[0] if sigma_m else None
    measurement = Measurement(int(frame_a), (x1, y1), (x2, y2), length_m, sigma, int(frame_b))
    if clip is not None:
        _positions(measurement, clip)
    return measurement


def _ends_of(where: str) -> tuple[float, float, float, float, float, float]:
    """x, y, frame of both ends as `Measurement` writes them; ValueError when they are not."""
    if found := TWO_FRAMES.fullmatch(where):
        x1, y1, frame_a, x2, y2, frame_b = map(float, found.groups())
        return x1, y1, frame_a, x2, y2, frame_b
    x1, y1, x2, y2, frame = map(float, where.split(","))
    return x1, y1, frame, x2, y2, frame


def _text(number: float) -> str:
    """As short as it can be read back exactly."""
    return repr(float(number)).removesuffix(".0")


def scale_from_measures(
    measures: Sequence[Measurement],
    depth_of: Callable[[int], DepthMap],
    clip: ClipFrames,
    T_world_camera: Array | None = None,
) -> ScaleEstimate:
    """The factor that brings scene units to metres, by least squares over the logarithms of all lengths.

    depth_of: aligned depth of the used frame at a position; T_world_camera (T, 4, 4): its pose, None where there are no
    poses. Of three or more, those that lie beyond three standard deviations of the rest are rejected. Raises UsageError
    when a measurement is not of the clip, or in two frames without poses, GeometryError when there is no depth at an
    end of one.
    """
    if not measures:
        raise UsageError(f"no length is given: {FORM}")
    found = [(m, *_measured(m, depth_of, clip, T_world_camera)) for m in measures]
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
    return length_between(surface_point(depth, camera, uv_a), surface_point(depth, camera, uv_b))


def surface_point(
    depth: DepthMap, camera: Intrinsics, uv: Array, T_world_camera: Array | None = None
) -> tuple[Array, Array]:
    """The point (3,) that pixel uv (2,) of a depth map shows, and its covariance (3, 3); of the camera without a pose.

    The map's sigma moves it along its ray, half a pixel of pointing parallel to the image. GeometryError where there is
    no valid depth around the pixel.
    """
    z, sigma = _depth_at(depth, uv)
    ray = np.append(normalised(np.asarray(uv, float), camera), 1.0)
    pointing = np.array([POINTING_PX * z / camera.fx, POINTING_PX * z / camera.fy, 0.0])
    point, covariance = ray * z, sigma**2 * np.outer(ray, ray) + np.diag(pointing**2)
    if T_world_camera is None:
        return point, covariance
    R = T_world_camera[:3, :3]
    return transform(T_world_camera, point), R @ covariance @ R.T


def length_between(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[float, float]:
    """Length between two points (3,), and its standard deviation, from their covariances (3, 3); independent ones."""
    step, covariance = b[0] - a[0], a[1] + b[1]
    length = float(np.linalg.norm(step))
    if length == 0:
        return 0.0, float(np.sqrt(np.trace(covariance) / 3))  # of no direction: of the average one
    along = step / length
    return length, float(np.sqrt(along @ covariance @ along))


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


def _measured(
    measurement: Measurement, depth_of: Callable[[int], DepthMap], clip: ClipFrames, T_world_camera: Array | None
) -> tuple[float, float]:
    """Its length in scene units and the standard deviation of that."""
    if T_world_camera is None:
        require_one_frame(measurement)
    points = []
    for position, (frame, end) in zip(_positions(measurement, clip), measurement.ends, strict=True):
        T = None if T_world_camera is None else T_world_camera[position]
        (uv,) = clip.to_maps(np.array([end], float))
        try:
            points.append(surface_point(depth_of(position), clip.camera, uv, T))
        except GeometryError:
            raise GeometryError(
                f"measurement {measurement}: no valid depth at its end ({end[0]:g}, {end[1]:g}) in frame {frame}: mark "
                "a point on a surface beside it, or use another frame"
            ) from None
    length, sigma = length_between(*points)
    if length == 0:
        raise GeometryError(f"measurement {measurement}: both ends fall on one point; measure something longer")
    return length, sigma


def require_one_frame(measurement: Measurement) -> None:
    """UsageError for a measurement in two frames: where there are no camera poses."""
    if measurement.frame_b is not None:
        raise UsageError(
            f"measurement {measurement}: its ends are in two frames, which --no-poses leaves apart; mark both in one "
            "frame, or run with poses"
        )


def _positions(measurement: Measurement, clip: ClipFrames) -> list[int]:
    """The positions of its ends' frames; UsageError when one is not in use, or an end is outside the picture."""
    positions: list[int] = clip.positions([frame for frame, _ in measurement.ends]).tolist()
    width, height = clip.source_size
    for position, (frame, (u, v)) in zip(positions, measurement.ends, strict=True):
        if position == NOT_USED:
            near = int(clip.indices[np.abs(clip.indices - frame).argmin()])
            raise UsageError(
                f"measurement {measurement}: frame {frame} is not in use ({clip.range_text()}); the nearest one is "
                f"{near}"
            )
        if not (0 <= u < width and 0 <= v < height):
            raise UsageError(f"measurement {measurement}: ({u:g}, {v:g}) is outside the {width}x{height} frames")
    return positions
