"""What the user set in napari's Preferences > marigold3d, which the manifest's `configurations` declare."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from marigold3d.config import DepthConfig

PLUGIN = "marigold3d"
DEVICES = ("auto", "cpu", "cuda", "mps")
MOST_PREVIEWS_PER_S = 5.0  # more take the time that turning the view needs


@dataclass(frozen=True)
class Preferences:
    """How panels start and layers look. What cannot be meant becomes the default."""

    model: str = DepthConfig.model
    device: str = DepthConfig.device
    output: str = ""  # folder that run folders are made in; "" is beside the clip
    points: int = 200_000  # of a cloud, shown at once
    previews_per_s: float = 5.0
    path_color: str = "#ffb020"  # of the camera path

    def __post_init__(self) -> None:
        for field in fields(self):
            if not _CHECKS[field.name](getattr(self, field.name)):
                object.__setattr__(self, field.name, field.default)

    @property
    def interval_s(self) -> float:
        """Least time between two previews, seconds."""
        return 1 / self.previews_per_s


def preferences() -> Preferences:
    """As they are now; the defaults under napari < 0.9, and where the plugin is not registered."""
    try:
        from napari.settings import get_plugin_settings

        settings = get_plugin_settings(PLUGIN)
    except (ImportError, KeyError):
        return Preferences()
    return Preferences(**settings.reconstruction.model_dump(), **settings.display.model_dump())


def _is_model(value: Any) -> bool:
    from marigold3d.depth.registry import MODELS

    return value in MODELS


def _is_color(value: Any) -> bool:
    from napari.utils.colormaps.standardize_color import transform_color

    try:
        return isinstance(value, str) and len(transform_color(value)) == 1
    except (ValueError, KeyError, AttributeError, TypeError):
        return False


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and low <= value <= high


_CHECKS = {
    "model": _is_model,
    "device": lambda value: value in DEVICES,
    "output": lambda value: isinstance(value, str),
    "points": lambda value: isinstance(value, int) and _is_number(value, 1_000, 10_000_000),
    "previews_per_s": lambda value: _is_number(value, 0.1, MOST_PREVIEWS_PER_S),
    "path_color": _is_color,
}
