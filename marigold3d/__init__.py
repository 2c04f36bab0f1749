"""marigold3d: video into metric, consistent, explorable 3D scenes.

`import marigold3d` loads nothing heavy; names below are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Marigold3DError": "errors",
    "Intrinsics": "types",
    "Frame": "types",
    "RelativeDepth": "types",
    "DepthMap": "types",
    "SparseCues": "types",
    "Trajectory": "types",
    "PointCloud": "types",
    "open_video": "video",
    "load_estimator": "depth",
    "fit_affine": "align",
    "align_frame": "align",
    "reconstruct": "pipeline",
    "RunConfig": "config",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
