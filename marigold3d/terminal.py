"""What a person sees in the terminal: progress on stderr while a run works, its report when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .progress import Progress
from .store import Run

PLAIN_INTERVAL_S = 10.0  # between two lines where stderr is no terminal
TITLES = {
    "scan": "Looking at the clip",
    "poses": "Finding cameras",
    "register": "Placing the frames between",
    "depth": "Estimating depth",
    "align": "Reading relative depth",
    "guide": "Guiding keyframes",
    "thumbnails": "Reading pictures for flow",
    "solve": "Aligning all frames",
    "sharpen": "Bending single frames",
    "apply": "Writing aligned depth",
    "match": "Comparing poses with the pictures",
    "sweep": "Matching views",
    "agree": "Comparing what views found",
    "refine": "Refining keyframes",
    "between": "Refining the rest",
    "fuse": "Fusing the cloud",
    "write": "Writing depth maps",
    "mesh": "Merging depth for the mesh",
    "surface": "Finding the surface",
    "files": "Writing files",
    "preview": "Encoding the preview",
    "orbit": "Drawing the turn",
}


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Callable[[Progress], None]]:
    """A callback that draws one bar a stage, with frames a second and ETA; plain lines where stderr is no terminal."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _rich_bars() as update:
            yield update
    else:
        yield _PlainLines()


@contextmanager
def _rich_bars() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f}/s" if speed else "", style="progress.data.speed")

    columns = (
        TextColumn("{task.description:22s}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def update(p: Progress) -> None:
            if p.stage not in tasks:
                for task in tasks.values():  # a stage starts when the one before is done, whatever its count was
                    bars.update(task, total=bars.tasks[task].completed or 1, completed=bars.tasks[task].completed or 1)
                tasks[p.stage] = bars.add_task(TITLES.get(p.stage, p.stage), total=p.total)
            if p.total is None:
                bars.update(tasks[p.stage], total=None)
            else:
                bars.update(tasks[p.stage], completed=p.done, total=p.total)

        yield update
        for task in tasks.values():
            bars.update(task, total=bars.tasks[task].completed or 1, completed=bars.tasks[task].completed or 1)


class _PlainLines:
    """A line a stage and another every ten seconds: for log files."""

    def __init__(self) -> None:
        self._stage, self._first = "", 0  # and how much of it was done when it began: a resumed run starts later
        self._began = self._printed = time.monotonic()

    def __call__(self, p: Progress) -> None:
        now = time.monotonic()
        if p.stage != self._stage:
            self._stage, self._first, self._began, self._printed = p.stage, p.done, now, now
            print(f"{TITLES.get(p.stage, p.stage)} ...", file=sys.stderr, flush=True)
        elif now - self._printed >= PLAIN_INTERVAL_S and p.total:
            self._printed = now
            rate = max(p.done - self._first, 1) / (now - self._began)
            print(
                f"{TITLES.get(p.stage, p.stage)} {p.done}/{p.total}, {rate:.1f}/s, "
                f"about {(p.total - p.done) / rate:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


def report_lines(run: Run) -> str:
    """The report of a run for people: where it is, what was found, how good it is, how long it took."""
    report, units = run.manifest.get("report", {}), run.manifest.get("units", "arbitrary")
    unit = "m" if units == "m" else "scene units"
    lines = [f"{run.path}: {run.manifest.get('status')}, units: {units}"]
    if c := report.get("cameras"):
        sigma = f" +- {s:.2g}" if (s := c.get("focal_sigma_px")) is not None else ""
        lines.append(
            f"  cameras   {c['frames_posed']} of {c['frames']} frames posed ({c['poses']}, {c['keyframes_registered']} "
            f"of {c['keyframes']} keyframes), focal length {c['focal_px']:.0f}{sigma} px, {c['fov_x_deg']:.0f} degrees "
            f"({c['intrinsics']})"
        )
    if a := report.get("alignment"):
        lines += _alignment(a, unit, _since_alignment(run))
    if m := report.get("lengths"):
        lines.append(
            f"  scale     {m['factor']:.4g} +- {m['sigma']:.2g} m a unit, from {len(m['lengths'])} known lengths"
        )
    if r := report.get("refinement"):
        agreed, decided = r.get("share_agreed", 0.0), r.get("share_from_views", 0.0)
        lines.append(
            f"  refined   {agreed:.0%} of the pixels seen alike by several views, {decided:.0%} decided by them"
        )
        if "held_out" in r:
            lines.append(_held_out("refined", r["held_out"], unit, _since_alignment(run)))
    if f := report.get("fusion"):
        lines.append(f"  cloud     {f['points']:,} points, voxel {f['voxel']:.4g} {unit}")
    if m := report.get("mesh"):
        lines.append(f"  mesh      {m['triangles']:,} triangles, voxel {m['voxel']:.4g} {unit}")
    if edits := run.manifest.get("edits"):
        lines.append(f"  edits     {len(edits)}: {sum(e['pixels'] for e in edits):,} painted pixels are left out")
    if d := report.get("disk"):
        lines.append(f"  disk      {d['used_mb']:.0f} MB ({d['estimated_mb']:.0f} MB expected); cache/ may be deleted")
    if s := report.get("seconds"):
        spent = ", ".join(f"{k} {v:.0f}" for k, v in s.items() if k != "total")
        lines.append(f"  time      {s['total']:.0f} s ({spent}), peak memory {report['peak_memory_mb']:.0f} MB")
    lines += [f"  warning   {w}" for w in report.get("warnings", [])]
    return "\n".join(line for line in lines if line)


def _since_alignment(run: Run) -> float:
    """What known lengths multiplied the scene by without its errors following; runs of older versions have such."""
    report = run.manifest.get("report", {})
    followed = report.get("alignment", {}).get("units") == run.manifest.get("units")
    return 1.0 if followed else float(report.get("lengths", {}).get("factor", 1.0))


def _alignment(a: dict[str, Any], unit: str, factor: float) -> list[str]:
    """What was aligned to what, how well, and what that did to flicker. `factor`: from its units to the run's."""
    verdicts = ", ".join(f"{n} {what}" for what, n in a["verdicts"].items())
    scenes = f" in {a['segments']} scenes" if a["segments"] > 1 else ""
    lines = [f"  aligned   frames{scenes}: {verdicts}"]
    for name, s in a["sources"].items():
        lines.append(f"            {name}: {s['used']:,} cues, {s['rejected']:,} of them rejected")
    flicker = a["flicker"]
    if flicker["before"] is not None and flicker["after"]:
        lines.append(f"            flicker from frame to frame {flicker['before']:.2%}, now {flicker['after']:.2%}")
    return [*lines, _held_out("alignment", a["held_out"], unit, factor)]


def alignment_table(run: Run, rows: int = 24) -> str:
    """The alignment of a run as a table: every frame's scale and shift with their deviations, evenly thinned."""
    a, unit = run.alignment(), "m" if run.manifest.get("units") == "m" else "scene units"
    f = a["frames"]
    count = len(f["position"])
    shown = sorted({round(k * (count - 1) / max(min(rows, count) - 1, 1)) for k in range(min(rows, count))})
    table = [f"{run.path}: {count} frames, units: {run.manifest.get('units')}"]
    table.append(f"{'frame':>7}{'scale':>12}{'+-':>10}{'shift':>12}{'+-':>10}{'cues':>8}{'rejected':>10}  determined")
    for k in shown:
        numbers = [f[name][k] for name in ("scale", "scale_sigma", "shift", "shift_sigma")]
        text = [
            f"{'-' if n is None else format(n, '.4g'):>{w}}" for n, w in zip(numbers, (12, 10, 12, 10), strict=True)
        ]
        table.append(
            f"{f['position'][k]:>7}{''.join(text)}{f['cues'][k]:>8}{f['rejected'][k]:>10}  {f['determined'][k]}"
        )
    table += _alignment(a, unit, factor := _since_alignment(run))
    if a["held_out_affine"]["n"]:
        table.append(_held_out("affine", a["held_out_affine"], unit, factor) + " (scale and shift alone)")
    return "\n".join(line for line in table if line)


def _held_out(title: str, errors: dict[str, Any], unit: str, factor: float) -> str:
    if not errors["n"]:
        return f"  {title:9s} not checked: there were no points to hold out"
    return (
        f"  {title:9s} on {errors['n']:,} held-out point sightings: AbsRel {errors['abs_rel']:.1%}, "
        f"mean error {factor * errors['mae']:.3g} {unit}, delta1 {errors['delta1']:.1%}"
    )
