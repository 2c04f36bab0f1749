"""The figures of every image judged so far, one JSON object a line: an interrupted evaluation goes on where it was."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marigold3d.atomic import output_error
from marigold3d.errors import OutputError

Row = dict[str, Any]


class Journal:
    """Rows by image name, kept in `path` (None: only in memory). The first line says for which settings they are.

    Raises OutputError where the file holds rows of other settings or cannot be written.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.rows: dict[str, Row] = {}
        if path is None:
            return
        if path.exists():
            self._read(path)
        else:
            self._write({"settings": self.settings})

    def add(self, row: Row) -> None:
        """Keep a row, on disk before this returns."""
        self.rows[row["name"]] = row
        if self.path is not None:
            self._write(row)

    def _read(self, path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        rest = lines.pop()  # cut off in the middle, unless empty
        if rest:
            os.truncate(path, path.stat().st_size - len(rest))
        try:
            objects = [json.loads(line) for line in lines]
        except ValueError:
            raise OutputError(f"{path} is no journal of an evaluation: choose another --json or --work") from None
        if not objects:
            self._write({"settings": self.settings})
        elif "settings" not in objects[0]:
            raise OutputError(f"{path} is no journal of an evaluation: choose another --json or --work")
        elif differs := _differences(objects[0]["settings"], self.settings):
            raise OutputError(f"{path} holds figures of other settings ({differs}): delete it or choose another --json")
        self.rows = {row["name"]: _with_nan(row) for row in objects[1:]}

    def _write(self, row: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(json.dumps(_without_nan(row), ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise output_error(self.path, error) from error


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)} there, {new.get(key)} now" for key in keys)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(v) for key, v in value.items()}
    return float("nan") if value is None else value
