"""`marigold3d align`: a finished run is aligned anew, or its report drawn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..atomic import atomic_path, writable_folder
from ..errors import UsageError
from .options import METRES, Cues, Guide, Json, Measures, Quiet, RunFolder, print_json

PICTURES = (".png", ".pdf", ".svg")


def align(
    run: RunFolder,
    cues: Cues = None,
    cue_sigma: Annotated[
        float | None, typer.Option(help="Standard deviation of the cues, share of depth.", rich_help_panel=METRES)
    ] = None,
    metric_cues: Annotated[
        bool, typer.Option("--metric-cues", help="A foreign model's units are metres.", rich_help_panel=METRES)
    ] = False,
    measure: Measures = None,
    guide: Guide = False,
    field: Annotated[bool, typer.Option("--field/--no-field", help="Bend each frame by a smooth field.")] = True,
    plot: Annotated[Path | None, typer.Option(help="Picture of the alignment: PNG, PDF or SVG.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Align a finished run anew, to known depths and lengths, without estimating depth again; or draw its report.

    Cues given before stay unless others are given. Lengths are added to those given before; one between the same ends
    replaces it. Lengths alone take a second. With only --plot or --json the run stays as it is.
    """
    from ..config import AlignConfig
    from ..cues import parse_measure
    from ..rescale import known_lengths, rescale
    from ..store import Run
    from ..terminal import alignment_table, progress_bars

    opened, said = Run.open(run), ""
    if plot is not None:
        _check_plot(plot)
    lengths = [parse_measure(text) for text in measure or ()]
    if lengths and not (cues or guide or not field):
        said = "\n".join(rescale(opened, lengths).lines)
    elif cues or measure or guide or not field or (plot is None and not as_json):
        from ..realign import realign

        units = "m" if metric_cues else None
        before = opened.manifest["settings"].get("align", {})
        settings = AlignConfig(
            field=field,
            cues=tuple(cues or before.get("cues", ())),
            cue_sigma=cue_sigma if cues else before.get("cue_sigma"),
            cue_units=units if cues else before.get("cue_units"),  # type: ignore[arg-type]
            measures=tuple(map(str, known_lengths(opened, lengths))),
            guide=guide,
        )
        with progress_bars(quiet) as on_progress:
            opened = realign(opened, settings, on_progress=on_progress)
    if plot is not None:
        from ..align.plot import plot_alignment

        with atomic_path(plot) as temporary:
            plot_alignment(opened.alignment(), temporary)
    if as_json:
        print_json({"run": str(run), "units": opened.manifest["units"], **opened.manifest["report"]})
    else:
        print(said or alignment_table(opened), file=sys.stderr)


def _check_plot(file: Path) -> None:
    """Whether a picture can be written there, before the work that it shows."""
    if file.suffix.lower() not in PICTURES:
        raise UsageError(f"--plot {file}: choose a name that ends in {', '.join(PICTURES)}")
    writable_folder(file.parent)
