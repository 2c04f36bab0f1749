"""Latitude, longitude and height on WGS84 to a local frame in metres: x east, y north, z up."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..types import Array

SEMI_MAJOR_M = 6378137.0  # WGS84: of the ellipsoid ...
FLATTENING = 1 / 298.257223563  # ... and how much shorter its axis is
ECCENTRICITY_2 = FLATTENING * (2 - FLATTENING)


def to_ecef(lla: Array) -> Array:
    """Earth-centred, earth-fixed metres (..., 3) of degrees latitude, degrees longitude, metres above the ellipsoid."""
    latitude, longitude, height = np.radians(lla[..., 0]), np.radians(lla[..., 1]), lla[..., 2]
    # The prime vertical radius: from the surface along the normal to the earth's axis.
    radius = SEMI_MAJOR_M / np.sqrt(1 - ECCENTRICITY_2 * np.sin(latitude) ** 2)
    from_axis = (radius + height) * np.cos(latitude)
    north = (radius * (1 - ECCENTRICITY_2) + height) * np.sin(latitude)
    return np.stack([from_axis * np.cos(longitude), from_axis * np.sin(longitude), north], -1)


def to_enu(lla: Array, origin_lla: Array) -> Array:
    """East, north, up in metres (..., 3) on the tangent plane at `origin_lla` (3,). InputError off the globe."""
    if np.any(np.abs(lla[..., 0]) > 90) or np.any(np.abs(lla[..., 1]) > 360):
        raise InputError("latitudes lie within 90 degrees, longitudes within 360: are the columns swapped?")
    latitude, longitude = np.radians(origin_lla[:2])
    east = [-np.sin(longitude), np.cos(longitude), 0.0]
    north = [-np.sin(latitude) * np.cos(longitude), -np.sin(latitude) * np.sin(longitude), np.cos(latitude)]
    up = [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)]
    return (to_ecef(lla) - to_ecef(origin_lla)) @ np.array([east, north, up]).T
