"""Control points from files: a CSV with one observation a row, and OpenSfM's ground_control_points.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..poses.opensfm_files import pixels_of
from ..types import Array
from .clip_frames import ClipFrames
from .control_points import ControlPoints, Observations, control_points
from .geodesy import to_enu
from .table import Table

CONTROL_COLUMNS = "name frame u v"
PLACES = ("x y z", "latitude longitude altitude")  # either of these columns beside them
SAME_PLACE_M = 1e-3  # within which the rows of one point must agree

Places = dict[str, Array]


def table_control_points(table: Table, clip: ClipFrames, share: float | None) -> ControlPoints:
    """Rows of name, frame, u, v and either x, y, z (metres) or latitude, longitude, altitude (degrees, metres).

    u, v: pixels of the clip's own frames. Raises InputError when rows of one name differ in their coordinates.
    """
    names = table.labels("name")
    geographic = PLACES[1] in table
    rows = table.matrix(PLACES[1] if geographic else PLACES[0])
    places: Places = {}
    for name, row in zip(names, rows, strict=True):
        places.setdefault(name, row)
    origin_lla = None
    if geographic:
        places, origin_lla = _to_local(table.path, places)
        rows = np.stack([to_enu(row, np.array(origin_lla)) for row in rows])
    for name, row in zip(names, rows, strict=True):
        if np.abs(row - places[name]).max() > SAME_PLACE_M:
            raise InputError(f"{table.path}: point {name} is given at two places; give every row of it the same one")
    seen = Observations(table.labels("frame"), names, clip.to_maps(table.matrix("u v")))
    return control_points(str(table.path), places, seen, clip, share, origin_lla)


def json_control_points(path: Path, content: dict[str, Any], clip: ClipFrames, share: float | None) -> ControlPoints:
    """OpenSfM's format: points with a position (degrees, or x, y, z in metres) and observations in its coordinates."""
    try:
        rows = [
            (str(seen["shot_id"]), str(point["id"]), float(seen["projection"][0]), float(seen["projection"][1]))
            for point in content["points"]
            for seen in point.get("observations", ())
        ]
        places = {str(p["id"]): _place(p) for p in content["points"]}
        geographic = any("latitude" in (p.get("position") or {}) for p in content["points"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not control points of OpenSfM ({error!r}); see its ground_control_points.json"
        ) from error
    if not rows:
        raise InputError(f"{path}: no control point is observed; add observations with shot_id and projection")
    origin_lla = None
    if geographic:
        places, origin_lla = _to_local(path, places)
    frames, names, x, y = (list(column) for column in zip(*rows, strict=True))
    uv = pixels_of(np.array([x, y], np.float64).T, np.array(clip.source_size, np.float64))
    return control_points(str(path), places, Observations(frames, names, clip.to_maps(uv)), clip, share, origin_lla)


def _place(point: dict[str, Any]) -> Array:
    """(3,) latitude, longitude, altitude or x, y, z of an entry; NaN where it is not surveyed, or not in height."""
    position = point.get("position") or {}
    order = ("latitude", "longitude", "altitude") if "latitude" in position else ("x", "y", "z")
    return np.array([float(position.get(key, np.nan)) for key in order])


def _to_local(path: Path, places: Places) -> tuple[Places, tuple[float, float, float]]:
    """East, north, up in metres of geographic places, about their mean, and that place."""
    known = np.array([lla for lla in places.values() if np.all(np.isfinite(lla))])
    origin = known.mean(0) if len(known) else np.zeros(3)
    latitude, longitude, altitude = origin.tolist()
    try:
        return {name: to_enu(lla, origin) for name, lla in places.items()}, (latitude, longitude, altitude)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
