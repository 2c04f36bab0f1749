"""`marigold3d export`: a finished run in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..export.formats import FORMATS
from .options import Quiet, RunFolder


def export(
    run: RunFolder,
    form: Annotated[str, typer.Option("--format", help=", ".join(FORMATS) + ".")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File, or folder for formats of many files.")],
    images: Annotated[
        bool,
        typer.Option("--images", help="The clip's frames too: " + ", ".join(n for n in FORMATS if FORMATS[n].images)),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write a run in another format; the run itself is never changed."""
    from ..export_run import export_run
    from ..store import Run
    from ..terminal import progress_bars

    with progress_bars(quiet) as on_progress:
        export_run(Run.open(run), form, output, overwrite=overwrite, images=images, on_progress=on_progress)
