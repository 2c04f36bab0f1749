"""What a user installs: the README's commands, run by CI to the letter, and what the wheel holds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIRST_USE = "pip install -c constraints.txt . && marigold3d video examples/clip.mp4 --fuse"
DEVELOPMENT = 'pip install -c constraints.txt -e ".[test]" && pytest'
MAX_WHEEL_MB = 30


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_readme_has_both_commands():
    readme = (ROOT / "README.md").read_text()
    assert FIRST_USE in readme
    assert DEVELOPMENT in readme


def test_ci_runs_what_the_readme_says():
    script = (ROOT / ".ci" / "run").read_text()
    assert f"\n{FIRST_USE}\n" in script
    install, tests = DEVELOPMENT.split(" && ")
    assert f"\n{install}\n" in script
    assert re.search(rf"CI=true .*xvfb-run .* {tests}\n", script), "the same pytest, under a virtual display"
    for linter in ("ruff check .", "ruff format --check .", "mypy"):
        assert f"\n{linter}\n" in script


def test_ci_is_a_valid_executable_script():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_every_subpackage_is_listed(project):
    found = {"marigold3d.examples", "marigold3d.napari_plugin"}
    found |= {".".join(f.parent.relative_to(ROOT).parts) for f in (ROOT / "marigold3d").rglob("__init__.py")}
    assert set(project["tool"]["setuptools"]["packages"]) == found


def test_constraints_cover_what_is_imported(project):
    pinned = {re.split("[=<>]", line)[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for dependency in project["project"]["dependencies"]:
        name = re.split(r"[\[>=<; ]", dependency)[0].lower()
        assert name in pinned or name == "open3d", f"{name} is not pinned in constraints.txt"


def test_the_licence_is_whole():
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert len(licence) == 11358


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of the tree, since building leaves droppings; only CI may fetch the build backend for it."""
    isolation = [] if os.environ.get("CI") else ["--no-build-isolation"]
    if isolation:
        pytest.importorskip("setuptools", minversion="77", reason="no setuptools >= 77 to build with")
    copy = tmp_path_factory.mktemp("tree")
    for name in ("marigold3d", "napari_plugin", "tests", "training", "examples"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "artefacts"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *isolation, ".", "-w", "dist"]
    subprocess.run(command, cwd=copy, check=True)
    (file,) = (copy / "dist").glob("marigold3d-*.whl")
    return zipfile.ZipFile(file)


@pytest.mark.slow
def test_the_wheel_holds_what_a_run_needs(wheel):
    names = wheel.namelist()
    for needed in ("marigold3d/py.typed", "marigold3d/napari_plugin/napari.yaml", "marigold3d/napari_plugin/_panel.py"):
        assert needed in names
    assert any(re.fullmatch(r"marigold3d/depth/weights/.+\.safetensors", name) for name in names)
    entry_points = wheel.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert "marigold3d = marigold3d.cli:main" in entry_points
    assert "marigold3d = marigold3d.napari_plugin:napari.yaml" in entry_points
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_wheel_holds_nothing_else(wheel):
    folders = {name.split("/")[0] for name in wheel.namelist()}
    assert all(folder == "marigold3d" or folder.endswith(".dist-info") for folder in folders), folders
    assert Path(wheel.filename or "").stat().st_size < MAX_WHEEL_MB * 2**20
