"""Commands that read a finished run: look at it, and report it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import RunFolder, print_json


def view(
    run: RunFolder,
    screenshot: Annotated[Path | None, typer.Option(help="Write a picture instead; needs no display.")] = None,
    from_frame: Annotated[int | None, typer.Option(help="Look from where this source frame was taken.")] = None,
    width: Annotated[int, typer.Option(help="Picture width, px.")] = 1280,
    height: Annotated[int, typer.Option(help="Picture height, px.")] = 960,
) -> None:
    """Open a run's cloud and camera path in Open3D's viewer, or draw it."""
    from .. import view as viewer
    from ..store import Run

    opened = Run.open(run)
    if screenshot is None:
        viewer.show(opened)
    else:
        viewer.screenshot(opened, screenshot, width=width, height=height, from_frame=from_frame)


def info(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest as JSON.")] = False,
) -> None:
    """What a run holds and how good it is."""
    from ..store import Run
    from ..terminal import report_lines

    opened = Run.open(run)
    if as_json:
        print_json(opened.manifest)
    else:
        print(report_lines(opened))
