"""The picture of an alignment report: drawn from full, sparse and empty reports, and refused in words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from marigold3d.align.plot import plot_alignment
from marigold3d.errors import UsageError


def report(count: int = 120) -> dict[str, Any]:
    """A clip of two segments whose middle sees few cues."""
    rng = np.random.default_rng(3)
    t = np.arange(count)
    cues = (320 + 120 * np.sin(t / 15) + rng.normal(0, 15, count)).round()
    cues[50:58] = 14
    sigma = 0.3 / np.sqrt(cues)
    before = np.abs(0.05 + 0.02 * rng.normal(size=count - 1))
    determined = ["scale only" if 50 <= k < 58 else "scale and shift" for k in t]
    return {
        "frames": {
            "position": (2 * t).tolist(),
            "scale": (0.8 + 0.05 * np.sin(t / 20) + 0.2 * (t >= 70) + sigma * rng.normal(size=count)).tolist(),
            "scale_sigma": sigma.tolist(),
            "shift": (0.1 + 0.3 * sigma * rng.normal(size=count)).tolist(),
            "shift_sigma": (0.3 * sigma).tolist(),
            "determined": determined,
            "cues": cues.tolist(),
            "rejected": (0.12 * cues).round().tolist(),
            "segment": (t >= 70).astype(int).tolist(),
        },
        "flicker": {
            "before": float(before.mean()),
            "after": float(0.3 * before.mean()),
            "series_before": before.tolist(),
            "series_after": (0.3 * before).tolist(),
        },
        "held_out_affine": {"n": 8123, "mae": 0.21, "abs_rel": 0.093, "delta1": 0.91},
        "held_out": {"n": 8123, "mae": 0.12, "abs_rel": 0.052, "delta1": 0.973},
        "units": "m",
    }


def ink(file: Path) -> float:
    """Share of the picture that is not white."""
    return float((np.asarray(Image.open(file).convert("L")) < 250).mean())


def test_a_full_report(tmp_path: Path) -> None:
    plot_alignment(report(), tmp_path / "alignment.png")
    picture = Image.open(tmp_path / "alignment.png")
    assert picture.width > 1000
    assert picture.height > 700
    assert ink(tmp_path / "alignment.png") > 0.08


@pytest.mark.parametrize("key", ["frames", "flicker", "held_out", "held_out_affine", "units"])
def test_what_is_missing_stays_empty(tmp_path: Path, key: str) -> None:
    partial = report()
    del partial[key]
    plot_alignment(partial, tmp_path / "alignment.png")
    assert ink(tmp_path / "alignment.png") > 0.01


@pytest.mark.parametrize("key", list(report()["frames"]))
def test_missing_columns_and_nulls_are_borne(tmp_path: Path, key: str) -> None:
    partial = report(20)
    partial["frames"][key] = [None if key != "determined" else "scale only", *partial["frames"][key][1:]]
    plot_alignment(partial, tmp_path / "null.png")
    del partial["frames"][key]
    plot_alignment(partial, tmp_path / "missing.png")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_clips_of_hardly_any_frame(tmp_path: Path, count: int) -> None:
    short = report()
    short["frames"] = {key: values[:count] for key, values in short["frames"].items()}
    short["flicker"] = {"before": float("nan"), "after": None, "series_before": [], "series_after": []}
    plot_alignment(short, tmp_path / "alignment.svg")
    assert (tmp_path / "alignment.svg").stat().st_size > 1000
    plot_alignment({}, tmp_path / "empty.png")


def test_without_matplotlib_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'marigold3d\[plot\]'"):
        plot_alignment(report(), tmp_path / "alignment.png")
    assert not (tmp_path / "alignment.png").exists()
