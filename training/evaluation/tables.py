"""Reports as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from training.evaluation.judging import METHODS
from training.evaluation.metrics import FIGURES
from training.evaluation.published import PUBLISHED
from training.evaluation.report import Report

PAPER_FIGURES = ("abs_rel", "delta1")
NO_VALUE = "-"


def paper_table(reports: Sequence[Report]) -> str:
    """The paper's table, in percent: published rows, then ours with their 95 % intervals; a pair of columns a set."""
    kinds = list(dict.fromkeys(report["dataset"] for report in reports))
    titles = {report["dataset"]: report["title"] for report in reports}
    head = ["method", *(f"{titles[kind]} {column}" for kind in kinds for column in ("AbsRel", "δ1")), "source"]
    lines = [head, ["---"] * len(head)]
    for row in PUBLISHED:
        if any(kind in row.figures for kind in kinds):
            cells = [_percent(value) for kind in kinds for value in row.figures.get(kind, (None, None))]
            lines.append([row.method, *cells, row.source])
    for label, found in _ours(reports).items():
        cells = [_with_interval(found.get(kind, {}).get(name, {})) for kind in kinds for name in PAPER_FIGURES]
        lines.append([label, *cells, "here"])
    return _markdown(lines)


def _ours(reports: Iterable[Report]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """{row: {data set: figures}}; what several reports say of one row stands in one line."""
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    ordered = list(reports)
    for method in METHODS:
        for report in ordered:
            label = f"**{label_of(report)}**" if method == "model" else method
            rows.setdefault(label, {})[report["dataset"]] = report["figures"][method]
    return rows


def label_of(report: Report) -> str:
    """The model and what is particular about how it looked."""
    settings = report["model"]
    parts = [settings.get("name") or settings.get("model", "model")]
    parts += [f"{settings['steps']} steps"] if "steps" in settings else []
    parts += [f"ensemble {settings['ensemble']}"] if settings.get("ensemble", "1") != "1" else []
    parts += ["flip"] if settings.get("flip") == "True" else []
    parts += [f"at {px} px"] if (px := settings.get("processing_resolution", "0")).replace(", ", "").strip("0") else []
    return ", ".join(parts)


def figure_table(report: Report) -> str:
    """Every figure of model and baselines, with intervals."""
    shown = _shown(report)
    lines = [["", *(_title(report, method) for method in shown)], ["---"] * (1 + len(shown))]
    for name, figure in FIGURES.items():
        arrow = "↓" if figure.better == "less" else "↑"
        unit = f" ({figure.unit})" if figure.unit else ""
        cells = [_interval(report["figures"][method][name], figure.decimals) for method in shown]
        lines.append([f"{figure.title}{unit} {arrow}", *cells])
    return _markdown(lines)


def set_table(report: Report) -> str:
    """AbsRel / delta1 of each set and their mean."""
    shown = [method for method in ("constant", "ramp", "model") if method in _shown(report)]
    lines = [["data", "frames", *(_title(report, m) for m in shown)], ["---"] * (2 + len(shown))]
    for name, one in report["sets"].items():
        lines.append([name, str(one["images"]), *(_pair(one["figures"][m]) for m in shown)])
    lines.append(["**mean of sets**", "", *(_pair(report["figures"][m]) for m in shown)])
    return _markdown(lines)


def image_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """AbsRel / delta1 of each image."""
    order = ("constant", "ramp", "model")
    lines = [["image", *order], ["---"] * 4]
    for row in rows:
        cells = [f"{row[m]['abs_rel']:.3f} / {row[m]['delta1']:.3f}" for m in order]
        lines.append([row["name"], *cells])
    return _markdown(lines)


def whole(report: Report) -> str:
    """All that is printed of one evaluation."""
    paper = paper_table([report]) if report["published_images"] else set_table(report)
    return "\n\n".join((_heading(report), paper, figure_table(report), _cost(report), *_remarks(report)))


def _heading(report: Report) -> str:
    wanted = report["published_images"]
    of = f" (the published rows: {wanted})" if wanted and wanted != report["images"] else ""
    return (
        f"{label_of(report)} on {report['title']}, {report['images']} images{of}; least squares in {report['fit']}, "
        "then clipped to the data set's range; means over images, [95 % bootstrap interval]"
    )


def _cost(report: Report) -> str:
    seconds, memory = report["seconds_an_image"], report["peak_memory_mb"]
    shown = "unknown" if memory is None else f"{memory:.0f} MB"
    return f"{seconds:.3f} s an image (median), peak memory {shown} ({report['device']})"


def _remarks(report: Report) -> list[str]:
    count = len(report["skipped"])
    return ["\n".join((f"{count} images skipped:", *(f"- {line}" for line in report["skipped"])))] if count else []


def _shown(report: Report) -> list[str]:
    """The methods, a baseline that is itself the model once."""
    return [method for method in METHODS if method != report["model"].get("name")]


def _title(report: Report, method: str) -> str:
    return label_of(report) if method == "model" else {"ramp": "row ramp"}.get(method, method)


def _pair(figures: Mapping[str, Mapping[str, Any]]) -> str:
    return f"{figures['abs_rel']['mean']:.3f} / {figures['delta1']['mean']:.3f}"


def _percent(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.1f}"


def _with_interval(estimate: Mapping[str, Any]) -> str:
    return _interval({key: _hundred(estimate.get(key)) for key in ("mean", "low", "high")}, 1)


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100.0 * value


def _interval(estimate: Mapping[str, Any], decimals: int) -> str:
    if estimate["mean"] is None:
        return NO_VALUE
    mean = f"{estimate['mean']:.{decimals}f}"
    if estimate["low"] is None:
        return mean
    return f"{mean} [{estimate['low']:.{decimals}f}, {estimate['high']:.{decimals}f}]"


def _markdown(lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("|  |", "| |")
