r"""Figures of one depth map against its truth.

With z the depth and t the truth of the n valid pixels, both in metres and positive, and d = ln z - ln t:

| figure | definition | unit |
|---|---|---|
| abs_rel | mean \|z - t\| / t | |
| sq_rel | mean (z - t)^2 / t | m |
| rmse | sqrt mean (z - t)^2 | m |
| rmse_log | sqrt mean d^2 | |
| log10 | mean \|log10 z - log10 t\| | |
| silog | 100 sqrt(mean d^2 - (mean d)^2): blind to a common factor | |
| delta1, 2, 3 | share of pixels with max(z/t, t/z) < 1.25, 1.25^2, 1.25^3 | |
| irmse | sqrt mean (1/z - 1/t)^2 | 1/m |

Eigen et al. 2014 (arXiv 1406.2283) for all but the last, which is the KITTI benchmark's; the ten that Marigold's
evaluation reports (arXiv 2312.02145).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from marigold3d.types import Array, BoolImage

DELTA = 1.25


@dataclass(frozen=True)
class Figure:
    """How a figure is shown: its title, unit, decimals, and which direction is better."""

    title: str
    unit: str
    decimals: int
    better: str  # "less" or "more"


FIGURES: Mapping[str, Figure] = {
    "abs_rel": Figure("AbsRel", "", 3, "less"),
    "delta1": Figure("δ1", "", 3, "more"),
    "delta2": Figure("δ2", "", 3, "more"),
    "delta3": Figure("δ3", "", 3, "more"),
    "sq_rel": Figure("SqRel", "m", 3, "less"),
    "rmse": Figure("RMSE", "m", 3, "less"),
    "rmse_log": Figure("RMSE log", "", 3, "less"),
    "log10": Figure("log10", "", 3, "less"),
    "silog": Figure("SILog", "×100", 1, "less"),
    "irmse": Figure("iRMSE", "1/m", 3, "less"),
    "edge_precision": Figure("edge precision", "", 3, "more"),
    "edge_recall": Figure("edge recall", "", 3, "more"),
    "edge_f1": Figure("edge F1", "", 3, "more"),
    "coarse_edge_precision": Figure("coarse edge precision", "", 3, "more"),
    "coarse_edge_recall": Figure("coarse edge recall", "", 3, "more"),
    "coarse_edge_f1": Figure("coarse edge F1", "", 3, "more"),
}
"""Every figure of an image, in the order of the tables; those of edges are defined in `edges`."""


def depth_metrics(depth_m: Array, truth_m: Array, valid: BoolImage) -> dict[str, float]:
    """The ten figures of the module's table; depth_m, truth_m (H, W) in metres, positive where `valid` (H, W)."""
    z, t = depth_m[valid].astype(np.float64), truth_m[valid].astype(np.float64)
    error, log_ratio = z - t, np.log(z) - np.log(t)
    factor = np.maximum(z / t, t / z)
    return {
        "abs_rel": _mean(np.abs(error) / t),
        "sq_rel": _mean(error**2 / t),
        "rmse": _root_mean(error**2),
        "rmse_log": _root_mean(log_ratio**2),
        "log10": _mean(np.abs(log_ratio)) / float(np.log(10.0)),
        "silog": 100.0 * float(np.std(log_ratio)),
        **{f"delta{k}": _mean((factor < DELTA**k).astype(np.float64)) for k in (1, 2, 3)},
        "irmse": _root_mean((1.0 / z - 1.0 / t) ** 2),
    }


def _mean(x: Array) -> float:
    return float(np.mean(x))


def _root_mean(x: Array) -> float:
    return float(np.sqrt(np.mean(x)))
