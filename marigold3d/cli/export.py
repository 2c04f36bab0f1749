"""`marigold3d export`: a finished run in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import RunFolder


def export(
    run: RunFolder,
    form: Annotated[str, typer.Option("--format", help="ply, glb, las, laz, colmap, nerfstudio, npy, exr or npz.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File, or folder for formats of many files.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a run in another format; the run itself is never changed."""
    from ..export_run import export_run
    from ..store import Run

    export_run(Run.open(run), form, output, overwrite=overwrite)
