"""Commands that read a finished run: look at it, and report it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .options import Quiet, RunFolder, print_json

if TYPE_CHECKING:
    from ..cloud_colors import ColorBy


def view(
    run: RunFolder,
    screenshot: Annotated[Path | None, typer.Option(help="Write a picture instead; needs no display.")] = None,
    orbit: Annotated[
        Path | None, typer.Option(help="Write a video that goes round the scene instead (.mp4); needs no display.")
    ] = None,
    color: Annotated[
        str, typer.Option(help="What colours say: rgb, depth, sigma, observations, time or height (key C).")
    ] = "rgb",
    mesh: Annotated[bool, typer.Option("--mesh", help="The mesh instead of the cloud.")] = False,
    from_frame: Annotated[
        int | None, typer.Option(help="Look from where this source frame was taken (--screenshot).")
    ] = None,
    cameras: Annotated[bool, typer.Option(help="Draw the cameras and their path.")] = True,
    seconds: Annotated[float, typer.Option(help="Length of --orbit.")] = 8.0,
    width: Annotated[int, typer.Option(help="Picture width, px.")] = 1280,
    height: Annotated[int, typer.Option(help="Picture height, px.")] = 960,
    quiet: Quiet = False,
) -> None:
    """Open a run's cloud and camera path in Open3D's viewer, or draw it."""
    from .. import view as viewer
    from ..progress import run as drive
    from ..store import Run
    from ..terminal import progress_bars

    opened, by = Run.open(run), _color(color)
    if screenshot is not None and orbit is not None:
        raise UsageError("--screenshot and --orbit are two pictures: ask for one after the other")
    if not seconds > 0:
        raise UsageError(f"--seconds must be positive, got {seconds:g}")
    if min(width, height) < 16:
        raise UsageError(f"a picture needs 16 px each way at least, got {width}x{height}")
    if screenshot is None and orbit is None:
        viewer.show(opened, by, mesh=mesh)
        return
    if screenshot is not None:
        viewer.screenshot(
            opened, screenshot, width=width, height=height, from_frame=from_frame, cameras=cameras, color=by, mesh=mesh
        )
    elif orbit is not None:
        steps = viewer.orbit(
            opened, orbit, width=width, height=height, seconds=seconds, cameras=cameras, color=by, mesh=mesh
        )
        with progress_bars(quiet) as on_progress:
            drive(steps, on_progress)
    if by != "rgb" and not mesh and not quiet:
        print(viewer.coloring(opened, by).legend, file=sys.stderr)


def _color(name: str) -> ColorBy:
    from ..cloud_colors import COLORINGS

    if name not in COLORINGS:
        raise UsageError(f"--color is one of {', '.join(COLORINGS)}, got {name!r}")
    return name  # type: ignore[return-value]  # one of them


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
