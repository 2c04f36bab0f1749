"""Every numbered example runs as it stands, offline, and says what it promises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marigold3d.store import Run
from tests.gui import require_window

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NUMBERED = sorted(EXAMPLES.glob("[0-9]*.py"))


def example(folder: Path, name: str, *options: str) -> str:
    """Standard output of an example, run in `folder`."""
    command = [sys.executable, str(EXAMPLES / name), *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr
    return done.stdout


def percentages(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+)%", line)]


@pytest.mark.parametrize("file", NUMBERED, ids=lambda file: file.stem)
def test_an_example_explains_itself_and_has_one_main(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documentation = ast.get_docstring(tree) or ""
    assert f"python examples/{file.name}" in documentation
    assert [node.name for node in tree.body if isinstance(node, ast.FunctionDef)].count("main") == 1
    assert file.name in (EXAMPLES / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_01_a_clip_becomes_a_cloud(tmp_path: Path) -> None:
    said = example(tmp_path, "01_clip_to_cloud.py", "--max-frames", "24", "--max-side", "240", "--no-refine")
    run = Run.open(tmp_path / "runs" / "01_clip_to_cloud")
    assert run.finished
    assert f"{len(run.cloud())} points" in said
    assert "marigold3d view" in said


def test_02_the_field_takes_out_what_scale_and_shift_leave(tmp_path: Path) -> None:
    lines = example(tmp_path, "02_align_your_own_depth.py").splitlines()
    affine, field = (percentages(next(line for line in lines if line.startswith(name))) for name in ("scale", "with"))
    assert field[0] < 0.5 * affine[0]
    assert field[0] < 2.0, "mean error in percent"


def test_03_a_photo_becomes_a_coloured_map_of_its_size(tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    said = example(tmp_path, "03_depth_of_a_photo.py", "photo.png")
    assert "domain log_depth" in said
    with Image.open(tmp_path / "photo_depth.png") as picture:
        assert (picture.size, picture.mode) == ((90, 60), "RGB")


@pytest.mark.gui
@pytest.mark.slow
def test_04_the_panels_show_the_sample_run(tmp_path: Path) -> None:
    require_window()
    example(tmp_path, "04_napari_picture.py", "-o", "panels.png", "--measure", "50", "100", "425", "100")
    picture = np.asarray(Image.open(tmp_path / "panels.png").convert("RGB")).astype(int)
    assert picture.shape[0] > 600
    assert (np.ptp(picture, axis=2) > 60).mean() > 0.02, "the coloured cloud is not in the picture"
