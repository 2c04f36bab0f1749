"""`marigold3d models`: depth models by name, and what a checkpoint is."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import print_json

HERE = {"yes": "here", "no": "not here", "in part": "here in part"}


def models(
    model: Annotated[
        str | None, typer.Argument(help="Describe this one: a name, a folder, or a hub name that was downloaded.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Depth models by name: what they predict, licence, size, whether they are on this computer. Needs no connection.

    Names go into --model. The first use downloads what is missing, and says so.
    """
    from ..depth.describe import describe_model, named_models

    if model is not None:
        found = describe_model(model)
        if as_json:
            print_json(found)
        else:
            print("\n".join(f"{key:23s}{_text(value)}" for key, value in found.items() if value not in (None, {}, "")))
        return
    listed = named_models()
    if as_json:
        print_json(listed)
        return
    for name, entry in listed.items():
        terms = "" if entry["commercial_use"] else "; no commercial use"
        size = f"{entry['size_mb']} MB" if entry["size_mb"] else "-"
        about = f"{name:26s}{entry['domain']:11s}{entry['licence']:15s}{size:>8s}"
        print(f"{about}  {HERE[entry['cached']]:17s}{entry['note']}{terms}")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    return str(value)
