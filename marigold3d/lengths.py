"""What a run says of the known lengths that set its scale, and its report in the units they give it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .cues import Measurement, ScaleEstimate
from .types import Units

AT_ODDS = 3.0  # standard deviations, of at least 1 %, by which lengths may differ from cues in metres without a warning
LEFT_OUT, OTHER_SCALE = "known length", "the known lengths make the scene"  # how warnings about lengths begin


def lengths_report(found: ScaleEstimate, units_before: Units, before: float = 1.0) -> dict[str, Any]:
    """What run.json says of known lengths: `factor` from the scene as aligned, in `units_before`, to metres.

    before: what earlier known lengths had multiplied that scene by when `found` was.
    """
    return {
        "factor": found.factor * before,
        "sigma": found.sigma * before,
        "units_before": units_before,
        "lengths": [
            {
                "measure": str(m.measurement),
                "scene_before": m.before / before,
                "sigma": m.sigma / before,
                "metres_after": m.after,
            }
            for m in found.lengths
        ],
        "rejected": [str(m.measurement) for m in found.rejected],
    }


def length_warnings(found: ScaleEstimate, units_before: Units, before: float = 1.0) -> list[str]:
    """Lines for the user: lengths that contradict each other, or what else is known in metres."""
    lines = [f"{LEFT_OUT} {m.measurement} disagrees with the others and is left out" for m in found.rejected]
    factor = found.factor * before
    if units_before == "m" and abs(np.log(factor)) > AT_ODDS * max(found.sigma / found.factor, 0.01):
        lines.insert(
            0, f"{OTHER_SCALE} {factor:.3g} times as large as the cues in metres say; the lengths are followed"
        )
    return lines


def without_length_warnings(warnings: Iterable[str]) -> list[str]:
    """The warnings of a run but those of `length_warnings`."""
    return [line for line in warnings if not line.startswith((f"{LEFT_OUT} ", OTHER_SCALE))]


def merged(before: Sequence[Measurement], new: Sequence[Measurement]) -> list[Measurement]:
    """All known lengths; a new one replaces that between the same ends."""
    by_ends = {frozenset(m.ends): m for m in before}
    return list({**by_ends, **{frozenset(m.ends): m for m in new}}.values())


# -- a report in other units ------------------------------------------------------------------------------------------


def report_in_metres(report: Mapping[str, Any], factor: float, since_alignment: float = 1.0) -> dict[str, Any]:
    """A run's report after its scene was multiplied by `factor`, to metres: the figures in scene units follow.

    since_alignment: what the scene had been multiplied by after it was aligned, where the figures of the alignment and
    of refinement did not follow: runs of older versions.
    """
    out, total = dict(report), factor * since_alignment
    if alignment := report.get("alignment"):
        sources = {name: _held_out(s, "held_out", total) for name, s in alignment.get("sources", {}).items()}
        out["alignment"] = {
            **_held_out(_held_out(alignment, "held_out", total), "held_out_affine", total),
            "sources": sources,
            "frames": _frames_in_metres(alignment.get("frames", {}), alignment.get("domain"), total),
            "units": "m",
        }
    if refinement := report.get("refinement"):
        out["refinement"] = _held_out(refinement, "held_out", total)
    if fusion := report.get("fusion"):
        out["fusion"] = {**fusion, **{name: round(fusion[name] * factor, 6) for name in ("voxel", "max_depth")}}
    if mesh := report.get("mesh"):
        out["mesh"] = {**mesh, "voxel": round(mesh["voxel"] * factor, 6)}
    if (survey := report.get("georeference")) and survey.get("T_survey_scene"):
        T = np.array(survey["T_survey_scene"])
        out["georeference"] = {**survey, "T_survey_scene": (T / [factor, factor, factor, 1.0]).tolist()}
    return out


def _held_out(report: Mapping[str, Any], name: str, factor: float) -> dict[str, Any]:
    """A report with the errors on held-out points under `name` converted, where it has them."""
    errors = report.get(name)
    return dict(report) if not errors else {**report, name: {**errors, "mae": round(errors["mae"] * factor, 6)}}


def _frames_in_metres(frames: Mapping[str, Any], domain: str | None, factor: float) -> dict[str, Any]:
    """The rows of scales and shifts, which act in the network's domain; as they are where that is not known."""
    if domain is None:
        return dict(frames)
    names = ("scale", "scale_sigma", "shift", "shift_sigma")
    if domain == "log_depth":
        return {**frames, "shift": _each(frames["shift"], 1.0, float(np.log(factor)))}
    factor = 1 / factor if domain == "disparity" else factor
    return {**frames, **{name: _each(frames[name], factor, 0.0) for name in names}}


def _each(column: Sequence[float | None], factor: float, shift: float) -> list[float | None]:
    return [None if x is None else float(f"{x * factor + shift:.6g}") for x in column]
