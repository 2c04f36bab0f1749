"""One picture of how a clip was aligned: scale, shift, cues and flicker over its frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

Report = Mapping[str, Any]

INK, ACCENT, MUTED, WARN = "#2b2f36", "#2a6f97", "#9aa5b1", "#d1603d"
SIZE_INCHES, DPI = (12.0, 8.0), 120
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def plot_alignment(report: Report, file: Path) -> None:
    """Write the picture of `report`, run.json's report["alignment"], to `file` (PNG, PDF, SVG by its suffix).

    What the report lacks stays empty in the picture. Raises UsageError when matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as missing:
        raise UsageError("plotting needs matplotlib: pip install 'marigold3d[plot]'") from missing
    frames = report.get("frames") or {}
    position = _numbers(frames, "position")
    with matplotlib.rc_context(STYLE):
        spacing = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12, wspace=0.03, hspace=0.03)
        figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout=spacing)
        FigureCanvasAgg(figure)  # no window, and no state shared with a caller's own figures
        scale, shift, cues, flicker = figure.subplots(2, 2, sharex=True).ravel()
        _band(scale, frames, position, "scale", "Scale")
        _band(shift, frames, position, "shift", "Shift")
        _cues(cues, frames, position)
        _flicker(flicker, report, position)
        for axes in (scale, shift, cues, flicker):
            _borders(axes, frames, position)
        for axes in (cues, flicker):
            axes.set_xlabel("frame")
        figure.suptitle(_headline(report), x=0.015, ha="left", fontsize=12)
        figure.savefig(file)


def _numbers(group: object, key: str, count: int | None = None) -> NDArray[np.float64]:
    """(N,) floats under a key, NaN for null and for what is missing up to `count`."""
    found = group.get(key) if isinstance(group, Mapping) else None
    values = np.array([np.nan if v is None else float(v) for v in found or []], float)
    if count is None or len(values) == count:
        return values
    padded = np.full(count, np.nan)
    padded[: min(count, len(values))] = values[:count]
    return padded


def _band(axes: Any, frames: Report, position: NDArray[np.float64], key: str, title: str) -> None:
    """A line a segment with its two-sigma band; frames whose shift is not determined are hollow."""
    value, sigma = (_numbers(frames, name, len(position)) for name in (key, f"{key}_sigma"))
    axes.set_title(title)
    for piece in _segments(frames, len(position)):
        x, y, s = position[piece], value[piece], np.nan_to_num(sigma[piece])
        label = "two sigma" if piece[0] == 0 and np.any(s > 0) else None
        axes.fill_between(x, y - 2 * s, y + 2 * s, color=ACCENT, alpha=0.2, lw=0, label=label)
        axes.plot(x, y, color=ACCENT, lw=1.4, marker="o", ms=2.6)
    open_shift = np.array([str(d) != "scale and shift" and d is not True for d in frames.get("determined") or []])
    hollow = np.flatnonzero(open_shift[: len(position)])
    if len(hollow):
        axes.plot(position[hollow], value[hollow], "o", mfc="white", mec=WARN, ms=5, label="scale only")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="best", ncols=2)
    _limit(axes, value, sigma)
    _or_empty(axes, value)


def _limit(axes: Any, value: NDArray[np.float64], sigma: NDArray[np.float64]) -> None:
    """Show the values, and of the bands what does not make the values a flat line."""
    known = value[np.isfinite(value)]
    if len(known) == 0:
        return
    reach = float(np.ptp(known))
    typical = 2 * float(np.nanmedian(sigma)) if np.isfinite(sigma).any() else 0.0
    margin = max(0.15 * reach, 2 * typical, 1e-3 * float(np.abs(known).max()), 1e-9)
    axes.set_ylim(known.min() - margin, known.max() + margin)


def _cues(axes: Any, frames: Report, position: NDArray[np.float64]) -> None:
    """Bars of the cues a frame was fitted to, the rejected ones on top."""
    total, rejected = (np.nan_to_num(_numbers(frames, key, len(position))) for key in ("cues", "rejected"))
    width = float(np.min(np.diff(np.unique(position)))) if len(np.unique(position)) > 1 else 1.0
    axes.set_title("Cues a frame")
    axes.bar(position, total - rejected, width, color=ACCENT, alpha=0.75, label="used")
    axes.bar(position, rejected, width, bottom=total - rejected, color=WARN, alpha=0.85, label="rejected")
    axes.set_ylim(0, max(1.0, 1.18 * float(total.max(initial=0))))
    axes.legend(loc="upper right", ncols=2)
    _or_empty(axes, _numbers(frames, "cues"))


def _flicker(axes: Any, report: Report, position: NDArray[np.float64]) -> None:
    """Change of depth from frame to frame that no motion explains, before and after."""
    flicker = report.get("flicker") or {}
    axes.set_title("Flicker from frame to frame")
    axes.set_ylabel("share of depth")
    drawn = []
    for when, colour in (("before", MUTED), ("after", ACCENT)):
        series = _numbers(flicker, f"series_{when}")
        mean = flicker.get(when)
        label = when if mean is None or not np.isfinite(mean) else f"{when}: {mean:.1%}"
        x = position[1 : len(series) + 1] if len(series) + 1 == len(position) else position[: len(series)]
        axes.plot(x, series[: len(x)], color=colour, lw=1.4, label=label)
        drawn.append(series)
    values = np.concatenate(drawn)
    if np.isfinite(values).any():
        axes.set_ylim(0, 1.18 * max(float(np.nanmax(values)), 1e-9))
        axes.legend(loc="upper right", ncols=2)
    _or_empty(axes, values)


def _segments(frames: Report, count: int) -> list[NDArray[np.intp]]:
    """Indices of the frames of each run of one segment."""
    segment = _numbers(frames, "segment", count)
    breaks = np.flatnonzero(np.nan_to_num(np.diff(segment)) != 0) + 1
    return [piece for piece in np.split(np.arange(count), breaks) if len(piece)]


def _borders(axes: Any, frames: Report, position: NDArray[np.float64]) -> None:
    """A vertical line between the frames of neighbouring segments."""
    for piece in _segments(frames, len(position))[1:]:
        border = (position[piece[0]] + position[piece[0] - 1]) / 2
        axes.axvline(border, color=INK, lw=0.9, ls=(0, (4, 3)), alpha=0.6)


def _or_empty(axes: Any, values: NDArray[np.float64]) -> None:
    if not np.isfinite(values).any():
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=MUTED)
        axes.set_yticks([])


def _headline(report: Report) -> str:
    """Held-out error of the affine fits and of the whole, in a line."""
    parts, count = [], 0
    for key, name in (("held_out_affine", "affine fits alone"), ("held_out", "with everything")):
        held = report.get(key) or {}
        error, within = held.get("abs_rel"), held.get("delta1")
        if held.get("n") and error is not None and np.isfinite(error):
            close = f", δ1 {within:.3f}" if within is not None and np.isfinite(within) else ""
            parts.append(f"{name} AbsRel {error:.3f}{close}")
            count = held["n"]
    what = f"Alignment on {count} held-out cues: " if parts else "Alignment: no cues were held out"
    units = {"m": "metres", "arbitrary": "arbitrary units"}.get(str(report.get("units")), "")
    return what + "; ".join(parts) + (f"  ({units})" if units else "")
