"""`marigold3d models`: depth models by name."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import print_json


def models(as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False) -> None:
    """Depth models by name, with their licences."""
    from dataclasses import asdict

    from ..depth import MODELS

    if as_json:
        print_json({name: {**asdict(m), "options": dict(m.options)} for name, m in MODELS.items()})
        return
    for name, m in MODELS.items():
        print(f"{name:28s}{m.domain:12s}{m.licence:16s}{m.size_mb:6d} MB  {m.note}")
