"""What the small Marigold shows, as tables (Markdown and CSV) and plots: learning, noise, ensembles, steps."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from marigold3d.depth.marigold import MarigoldEstimator
from marigold3d.errors import InputError
from marigold3d.progress import Progress, Steps
from training.data.samples import Sample
from training.recipe.checkpoint import all_checkpoints
from training.recipe.monitor import read_rows
from training.recipe.validation import affine_fit, metrics
from training.small.scenes import PoolSource

ENSEMBLES = (1, 5, 10, 20)
STEPS = (1, 4, 10, 50)
Row = Mapping[str, Any]

BATCH = 16  # views estimated at once


def write_report(runs: Mapping[str, Path], held_out: PoolSource, scenes: int, out: Path) -> Steps[str]:
    """Judge the newest checkpoint of each run, an ensemble and a number of steps at a time; returns the Markdown.

    runs: names to folders of finished runs, the first of them the one that ensembles are judged with. `out` gets
    learning.csv, ensembles.csv, steps.csv, a plot of each, and report.md. Raises InputError for a run without
    checkpoints or with an empty validation.csv.
    """
    out.mkdir(parents=True, exist_ok=True)
    curves = {name: _curve(folder) for name, folder in runs.items()}
    newest = {name: _newest(folder) for name, folder in runs.items()}
    samples = [held_out[index] for index in range(min(scenes, len(held_out)))]
    samples = [sample for sample in samples if int(sample.valid.sum()) >= 2]
    first = next(iter(runs))
    jobs = [(first, 1, members) for members in ENSEMBLES] + [(name, steps, 1) for name in runs for steps in STEPS]
    results: list[Row] = []
    for done, (name, steps, ensemble) in enumerate(jobs):
        results.append(_judged(name, newest[name], steps, ensemble, samples))
        yield Progress("report", done + 1, len(jobs))
    ensembles, by_steps = results[: len(ENSEMBLES)], results[len(ENSEMBLES) :]
    learning: list[Row] = [{"run": name, **row} for name, rows in curves.items() for row in rows]
    for name, table in (("learning", learning), ("ensembles", ensembles), ("steps", by_steps)):
        _write_csv(out / f"{name}.csv", table)
    _plot(out / "learning.png", curves, "step", "training step", log=False)
    _plot(out / "ensembles.png", {first: ensembles}, "ensemble", "ensemble size", log=True)
    grouped = {name: [row for row in by_steps if row["run"] == name] for name in runs}
    _plot(out / "steps.png", grouped, "steps", "denoising steps", log=True)
    text = _markdown(learning, ensembles, by_steps, constant(samples), len(samples))
    (out / "report.md").write_text(text, encoding="utf-8")
    return text


def constant(samples: Sequence[Sample]) -> tuple[float, float]:
    """AbsRel and delta1 of the best constant by least squares: what knowing nothing gets."""
    fits = [affine_fit(torch.zeros_like(s.depth_m), s.depth_m, s.valid) for s in samples]
    found = [metrics(fit, s.depth_m, s.valid) for fit, s in zip(fits, samples, strict=True)]
    return float(np.mean([a for a, _ in found])), float(np.mean([d for _, d in found]))


def _curve(folder: Path) -> list[dict[str, float]]:
    table = folder / "validation.csv"
    rows = read_rows(table) if table.is_file() else []
    if not rows:
        raise InputError(f"{folder} has no validation.csv with rows: run it with validation.sources")
    return rows


def _newest(folder: Path) -> Path:
    checkpoints = all_checkpoints(folder)
    if not checkpoints:
        raise InputError(f"{folder} holds no checkpoint: run python -m training.marigold with out={folder}")
    return checkpoints[-1]


def _judged(name: str, checkpoint: Path, steps: int, ensemble: int, samples: Sequence[Sample]) -> Row:
    """AbsRel and delta1 of a checkpoint, their standard errors over views, how much two seeds differ, and its time."""
    estimator = MarigoldEstimator(
        checkpoint, steps=steps, ensemble=ensemble, processing_resolution=0, device="cpu", offline=True
    )
    rgb = np.stack([sample.rgb.permute(1, 2, 0).numpy() for sample in samples])
    began = time.monotonic()
    maps = [depth for i in range(0, len(rgb), BATCH) for depth in estimator.estimate(rgb[i : i + BATCH])]
    seconds = time.monotonic() - began
    fitted = [
        affine_fit(torch.from_numpy(m.values)[None], s.depth_m, s.valid) for m, s in zip(maps, samples, strict=True)
    ]
    found = np.array([metrics(fit, s.depth_m, s.valid) for fit, s in zip(fitted, samples, strict=True)])
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.zeros(2)
    return {
        "run": name,
        "training_steps": checkpoint.name,
        "steps": steps,
        "ensemble": ensemble,
        "abs_rel": float(found[:, 0].mean()),
        "abs_rel_error": float(error[0]),
        "delta1": float(found[:, 1].mean()),
        "delta1_error": float(error[1]),
        "seconds_a_view": seconds / len(samples),
    }


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _plot(path: Path, curves: Mapping[str, Sequence[Row]], x: str, label: str, log: bool) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, rows in curves.items():
        errors = [float(row.get("abs_rel_error", 0.0)) for row in rows]
        at, height = [float(row[x]) for row in rows], [float(row["abs_rel"]) for row in rows]
        axes.errorbar(at, height, yerr=errors, marker="o", markersize=3, capsize=2, label=name)
    if log:
        every = sorted({float(row[x]) for rows in curves.values() for row in rows})
        axes.set_xscale("log")
        axes.set_xticks(every, [f"{value:g}" for value in every])
        axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel("AbsRel on held-out scenes")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _markdown(
    learning: Sequence[Row],
    ensembles: Sequence[Row],
    by_steps: Sequence[Row],
    baseline: tuple[float, float],
    count: int,
) -> str:
    lines = [
        f"{count} held-out views, affine least squares in depth; +- is the standard error over views.",
        f"The best constant gets AbsRel {baseline[0]:.4f}, delta1 {baseline[1]:.1%}.",
        "",
        "| run | training step | AbsRel | delta1 |",
        "|---|---|---|---|",
    ]
    lines += [f"| {r['run']} | {int(r['step'])} | {r['abs_rel']:.4f} | {r['delta1']:.1%} |" for r in learning]
    for title, rows in (("ensemble", ensembles), ("steps", by_steps)):
        lines += ["", f"| run | {title} | AbsRel | delta1 | seconds a view |", "|---|---|---|---|---|"]
        lines += [
            f"| {r['run']} | {r[title]} | {r['abs_rel']:.4f} +- {r['abs_rel_error']:.4f} "
            f"| {r['delta1']:.1%} | {r['seconds_a_view']:.3f} |"
            for r in rows
        ]
    return "\n".join(lines) + "\n"
