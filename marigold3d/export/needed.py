"""What exports need besides the core: libraries of the extras, and something to write."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import InputError, OutputError


def needed(module: str, what: str, extra: str = "export") -> Any:
    """The library `module`. OutputError that names the extra when it is not installed; `what`: files in the plural."""
    try:
        return import_module(module)
    except ImportError as error:
        raise OutputError(f"{what} need {module}: pip install 'marigold3d[{extra}]'") from error


def require_points(count: int) -> None:
    """InputError when there are none."""
    if not count:
        raise InputError("the cloud is empty: there is nothing to export")
