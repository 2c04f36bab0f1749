"""What an evaluation found, as a JSON-ready mapping: means over images, intervals, time and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from marigold3d.types import Array
from training.evaluation.bootstrap import interval, mean_of_groups
from training.evaluation.journal import Row
from training.evaluation.judging import METHODS
from training.evaluation.metrics import FIGURES

Report = dict[str, Any]


def summarise(rows: Sequence[Row], skipped: Sequence[str], settings: Mapping[str, Any], seed: int = 0) -> Report:
    """The report of judged images: `figures[method][figure] = {mean, low, high, images}`, and the same for each set.

    Means are over images, then over sets; [low, high] is the 95 % bootstrap interval.
    """
    groups = list(dict.fromkeys(row["group"] for row in rows))
    by_group = {group: [row for row in rows if row["group"] == group] for group in groups}
    return {
        **settings,
        "images": len(rows),
        "skipped": list(skipped),
        "figures": _figures(list(by_group.values()), seed),
        "sets": {g: {"images": len(r), "figures": _figures([r], seed)} for g, r in by_group.items()},
        "seconds_an_image": _number(float(np.median([row["seconds"] for row in rows]))),
        "peak_memory_mb": _number(max(row["peak_memory_mb"] for row in rows)),
    }


def _figures(groups: Sequence[Sequence[Row]], seed: int) -> dict[str, dict[str, dict[str, float | int | None]]]:
    return {method: {name: _estimate(_values(groups, method, name), seed) for name in FIGURES} for method in METHODS}


def _values(groups: Sequence[Sequence[Row]], method: str, name: str) -> list[Array]:
    return [np.array([row[method][name] for row in rows]) for rows in groups]


def _estimate(values: Sequence[Array], seed: int) -> dict[str, float | int | None]:
    low, high = interval(values, seed)
    images = sum(int((~np.isnan(group)).sum()) for group in values)
    return {"mean": _number(mean_of_groups(values)), "low": _number(low), "high": _number(high), "images": images}


def _number(x: float) -> float | None:
    """JSON has no NaN: null."""
    return x if math.isfinite(x) else None
