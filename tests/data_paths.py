"""Where the real recordings are: MARIGOLD3D_DATA, or shared/data beside the checkout. Tests skip where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("MARIGOLD3D_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def data_path(relative: str) -> Path:
    """A file or folder of the recordings; skips the calling test, with the reason, where it is absent."""
    path = DATA / relative
    if not path.exists():
        pytest.skip(f"needs the recording {relative}: set MARIGOLD3D_DATA to the folder that holds it")
    return path
