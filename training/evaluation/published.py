"""What papers report for the same data sets and protocol, to stand beside our rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

E2E = "arXiv 2409.11355v2, tables 1 and 4"
REFERENCES = "arXiv 2409.11355v2, table 5"
V1_1 = "arXiv 2505.09358v1, tables I and II, from a second-hand copy"
DATASETS = ("nyu", "kitti", "eth3d", "scannet", "diode")


@dataclass(frozen=True)
class Published:
    """A row: (AbsRel %, delta1 %) for each data set it is known for; delta1 may be unknown."""

    method: str
    source: str
    figures: Mapping[str, tuple[float, float | None]]


def _row(method: str, source: str, *figures: tuple[float, float | None] | None) -> Published:
    return Published(method, source, {d: f for d, f in zip(DATASETS, figures, strict=False) if f is not None})


def _errors(method: str, source: str, *abs_rel: float | None) -> Published:
    return _row(method, source, *(None if value is None else (value, None) for value in abs_rel))


PUBLISHED: tuple[Published, ...] = (
    _row("Marigold v1-0, 50 steps, ensemble 10", E2E, (5.5, 96.4), (9.9, 91.6), (6.5, 96.0), (6.4, 95.1), (30.8, 77.3)),
    _row("Marigold v1-0, 50 steps", E2E, (6.0, 95.9), (10.5, 90.4), (7.1, 95.1), (6.9, 94.5), (31.0, 77.2)),
    _row("Marigold v1-0, trailing, 1 step", E2E, (5.7, 96.2), (10.8, 89.6), (6.9, 95.5), (6.6, 95.2), (31.1, 76.8)),
    _row("Marigold LCM, 4 steps, ensemble 5", E2E, (6.2, 95.6), (9.9, 91.7), (6.9, 95.5), (7.0, 94.5), (30.9, 77.6)),
    _row("Marigold LCM, 1 step", E2E, (6.5, 95.4), (10.7, 89.9), (7.5, 94.5), (7.6, 93.8), (31.5, 76.3)),
    _row("Marigold v1-1, 4 steps, ensemble 10", V1_1, (5.5, 96.4)),
    _row("Marigold v1-1, 1 step", V1_1, (5.9, 96.1)),
    _row("Marigold end to end, 1 step", E2E, (5.2, 96.6), (9.6, 91.9), (6.2, 95.9), (5.8, 96.2), (30.2, 77.9)),
    _row("SD 2 end to end, 1 step", E2E, (5.4, 96.5), (9.6, 92.1), (6.4, 95.9), (5.8, 96.5), (30.3, 77.6)),
    _errors("GeoWizard", REFERENCES, 5.2, 9.7, 6.4, 6.1, 29.7),
    _errors("Depth Anything V2", REFERENCES, 4.4, 7.5, 13.2, None, 6.5),
    _errors("Metric3D v2", REFERENCES, 4.3, 4.4, 4.2, None, 13.6),
)
"""In percent. Metric3D v2 and Depth Anything V2 report DIODE by another protocol: do not compare that column."""
