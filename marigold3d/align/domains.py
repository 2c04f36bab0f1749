"""The domains a network may work in: z-depth z, disparity 1/z, log depth log z."""

from __future__ import annotations

import numpy as np

from ..types import Array, Domain, FloatImage


def to_domain(z: Array, domain: Domain) -> Array:
    """y(z): z-depth expressed in a network's domain."""
    return 1 / z if domain == "disparity" else np.log(z) if domain == "log_depth" else z


def from_domain(y: Array, domain: Domain) -> Array:
    """z(y), the inverse of `to_domain`; non-positive disparities give inf or negative depth."""
    return 1 / y if domain == "disparity" else np.exp(y) if domain == "log_depth" else y


def dy_dz(z: Array | FloatImage, domain: Domain) -> Array | FloatImage:
    """Derivative of `to_domain`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -1 / (z * z) if domain == "disparity" else 1 / z if domain == "log_depth" else np.ones_like(z)
