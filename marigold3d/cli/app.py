"""The Typer app: its commands in the order of the help, and how their errors end."""

from __future__ import annotations

import errno
import logging
import sys
from typing import Annotated, NoReturn

import typer

from .. import __version__
from ..atomic import output_error
from ..errors import Marigold3DError, OutputError
from .align import align
from .batch import batch
from .depth import depth
from .export import export
from .fuse import fuse
from .machine import doctor, gui
from .models import models
from .runs import info, view
from .video import video

EXIT_CODES = """Exit codes: 0 finished, 1 defect of marigold3d, 2 usage, 3 unusable input, 4 model missing or damaged,
5 out of memory, 6 the clip does not determine the geometry, 7 output exists or cannot be written,
130 interrupted (the same command resumes)."""

INTERRUPTED = 130

app = typer.Typer(
    name="marigold3d",
    help=f"Turn a video into a metric, consistent, explorable 3D scene.\n\n"
    f"marigold3d video clip.mp4 --fuse          a coloured point cloud in clip_3d/\n\n"
    f"marigold3d view clip_3d                   look at it\n\n"
    f"marigold3d depth photo.jpg -o out         depth of images and clips\n\n"
    f"marigold3d doctor                         what this machine lacks\n\n{EXIT_CODES}",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (video, depth, align, fuse, view, info, export, batch, models, doctor, gui):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"marigold3d {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Entry point: known errors are one line and their exit code, an interrupt is 130, all else keeps its traceback."""
    try:
        code = app(standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer has caught the interrupt and returns its code
            raise KeyboardInterrupt
        sys.exit(code)
    except typer.TyperException as error:
        print(f"marigold3d: {error.format_message()} (marigold3d --help lists what there is)", file=sys.stderr)
        sys.exit(error.exit_code)
    except Marigold3DError as error:
        print(f"marigold3d: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except MemoryError:
        print("marigold3d: out of memory: use --max-side 480, --max-frames or a larger --voxel", file=sys.stderr)
        sys.exit(5)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        print(f"marigold3d: {output_error(error.filename or 'the output', error)}", file=sys.stderr)
        sys.exit(OutputError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # zarr's half-done writes: atomic, and made anew
        print("marigold3d: interrupted; finished frames are kept, the same command resumes", file=sys.stderr)
        sys.exit(INTERRUPTED)
