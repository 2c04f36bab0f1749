"""`marigold3d batch`: many clips."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Model, stem_of


def batch(
    clips: Annotated[list[str], typer.Argument(help="Clips, each into its own run folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the run folders.")],
    workers: Annotated[int, typer.Option(help="Clips at the same time, through Ray (marigold3d[scale]).")] = 1,
    model: Model = "compact",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace finished runs.")] = False,
) -> None:
    """Reconstruct many clips; one that fails does not stop the others."""
    from ..batch import reconstruct_all
    from ..config import DepthConfig, RunConfig

    jobs = {clip: output / f"{stem_of(clip)}_3d" for clip in clips}
    failures = reconstruct_all(jobs, RunConfig(depth=DepthConfig(model)), workers=workers, overwrite=overwrite)
    for clip, error in failures.items():
        print(f"marigold3d: {clip}: {error}", file=sys.stderr)
    if failures:
        raise typer.Exit(next(iter(failures.values())).exit_code)
