"""Commands about this machine: what it lacks, and the napari window."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import InputError
from .options import print_json


def doctor(as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False) -> None:
    """What works on this machine, and the line that installs what does not."""
    from .. import doctor as checks

    found = checks.run_checks()
    if as_json:
        print_json(checks.as_json(found))
    else:
        print(checks.format_report(found))
    raise typer.Exit(checks.exit_code(found))


def gui(path: Annotated[str | None, typer.Argument(help="Clip or run folder to open.")] = None) -> None:
    """Open napari with the marigold3d panel."""
    from importlib import import_module
    from importlib.util import find_spec

    if find_spec("napari") is None:
        raise InputError("napari is not installed: pip install 'marigold3d[napari]' 'PySide6_Essentials!=6.12.0'")
    import_module("..napari_plugin", __package__).launch(path)
