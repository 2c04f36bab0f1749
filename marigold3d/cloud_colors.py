"""What a cloud's colours can say: its pictures, or how deep, how sure, how often and when each point was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .export.preview import SPECTRAL
from .types import Array, PointCloud

ColorBy = Literal["rgb", "depth", "sigma", "observations", "time", "height"]
COLORINGS: tuple[ColorBy, ...] = get_args(ColorBy)
UNKNOWN = (128, 128, 128)  # colour of points that lack the quantity
RATIOS = ("depth", "sigma")  # coloured in equal ratios, the others in equal steps


@dataclass(frozen=True, eq=False)
class Coloring:
    """`colors` (N, 3) uint8 of a cloud's points, and the values at both ends of the scale; NaN for RGB."""

    colors: NDArray[np.uint8]
    low: float
    high: float
    label: str

    @property
    def legend(self) -> str:
        """What the colours say, in a line."""
        return f"{self.label}: red {self.low:.3g} to blue {self.high:.3g}" if np.isfinite(self.low) else self.label


def color_cloud(cloud: PointCloud, by: ColorBy, T_world_camera: Mapping[int, Array] | None = None) -> Coloring:
    """Colours of the points by one of their properties, red low and blue high, between its 2nd and 98th percentile.

    depth: distance from the camera that saw the point best; sigma: one standard deviation; observations: frames that
    saw it; time: source frame that saw it best; height: above the lowest points, against the world's y axis.
    T_world_camera: poses by source frame, for depth. UsageError for any other property, or depth without poses.
    """
    if by == "rgb":
        return Coloring(cloud.colors, float("nan"), float("nan"), "colours of the clip")
    values, label = _values(cloud, by, T_world_camera)
    known = np.isfinite(values)
    if by in RATIOS:
        known &= values > 0
    if not known.any():
        return Coloring(np.full((len(cloud), 3), UNKNOWN, np.uint8), float("nan"), float("nan"), f"{label}: unknown")
    low, high = (float(v) for v in np.percentile(values[known], [2, 98]))
    scale = np.log if by in RATIOS else np.asarray
    span = max(float(scale(high) - scale(low)), 1e-9)
    position = (scale(np.where(known, values, low)) - scale(low)) / span
    colors = _ramp(position)
    colors[~known] = UNKNOWN
    return Coloring(colors, low, high, label)


def _values(cloud: PointCloud, by: ColorBy, T_world_camera: Mapping[int, Array] | None) -> tuple[Array, str]:
    """The property (N,), and what it is called."""
    units = "m" if cloud.units == "m" else "units"
    if by == "sigma":
        return cloud.sigma, f"sigma [{units}]"
    if by == "observations":
        return cloud.observations.astype(np.float32), "frames that saw it"
    if by == "time":
        return np.where(cloud.frame_index >= 0, cloud.frame_index, np.nan).astype(np.float32), "frame"
    if by == "height":
        return -cloud.points[:, 1], f"height [{units}]"
    if by == "depth":
        if T_world_camera is None:
            raise UsageError("colours by depth need the camera path: open the run folder, not its cloud alone")
        return _depth(cloud, T_world_camera), f"distance [{units}]"
    raise UsageError(f"colours by {by!r} are not known: use one of {', '.join(COLORINGS)}")


def _depth(cloud: PointCloud, T_world_camera: Mapping[int, Array]) -> Array:
    """(N,) distance of each point from the camera that saw it best, NaN where that has no pose."""
    frames, row = np.unique(cloud.frame_index, return_inverse=True)
    nowhere = np.full(3, np.nan)
    centres = np.array([T_world_camera[f][:3, 3] if f in T_world_camera else nowhere for f in frames.tolist()])
    return np.linalg.norm(cloud.points - centres.reshape(-1, 3)[row].astype(np.float32), axis=1)


def _ramp(position: Array) -> NDArray[np.uint8]:
    """(N, 3) colours of positions between 0 and 1 on ColorBrewer's Spectral."""
    table = np.stack([np.interp(np.linspace(0, 10, 256), np.arange(11), SPECTRAL[:, c]) for c in range(3)], 1)
    return np.round(table).astype(np.uint8)[np.clip(position * 255, 0, 255).astype(np.uint8)]
