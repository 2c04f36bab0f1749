"""The plugin as it is installed: a wheel alone, away from the checkout, is found by napari and has all it names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("napari", reason="napari is not installed: pip install 'marigold3d[napari]'")
pytest.importorskip("setuptools", minversion="77", reason="no setuptools >= 77 to build with")

ROOT = Path(__file__).parents[1]
PARTS = ("marigold3d", "napari_plugin", "examples", "pyproject.toml", "README.md", "LICENSE")
QT_BINDINGS = ("pyqt", "pyside")

LOOK = """
import json, sys
from importlib import import_module, metadata
from pathlib import Path

from npe2 import PluginManager

manager = PluginManager.instance()
manager.discover()
manifest = manager.get_manifest("marigold3d")
commands = {}
for command in manifest.contributions.commands:
    module, name = command.python_name.split(":")
    commands[command.id] = str(getattr(import_module(module), name, None))
from marigold3d.napari_plugin import _sample
from marigold3d.store import Run

run = Run.open(_sample._example(_sample.RUN))
distribution = metadata.distribution("marigold3d")
print(json.dumps({
    "plugin": import_module("marigold3d.napari_plugin").__file__,
    "clip": str(_sample._example(_sample.CLIP)),
    "frames": run.frame_indices,
    "poses": len(run.trajectory()),
    "points": len(run.cloud()),
    "layers": [layer[2] for layer in _sample.reconstructed_clip()],
    "commands": commands,
    "requirements": distribution.requires,
    "classifiers": distribution.metadata.get_all("Classifier"),
    "files": [str(file) for file in distribution.files],
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel unpacked by pip, and nothing else."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "tree").mkdir()
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "tree" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *options, ".", "-w", str(folder / "dist")], cwd=folder / "tree", check=True)
    (wheel,) = (folder / "dist").glob("marigold3d-*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    shutil.rmtree(folder / "tree")
    return folder / "site"


def in_it(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter outside the checkout, which finds the wheel's package before any other marigold3d."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "QT_QPA_PLATFORM": "offscreen"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=installed.parent, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def seen(installed: Path) -> dict:
    done = in_it(installed, "-c", LOOK)
    assert done.returncode == 0, done.stderr
    found: dict = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["plugin"]).is_relative_to(installed), "another marigold3d was looked at"
    return found


@pytest.mark.slow
def test_the_manifest_is_valid(installed: Path) -> None:
    done = in_it(installed, "-m", "npe2", "validate", str(installed / "marigold3d" / "napari_plugin" / "napari.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "valid" in done.stdout


@pytest.mark.slow
def test_every_command_is_there(seen: dict) -> None:
    assert seen["commands"]
    assert "None" not in seen["commands"].values()


@pytest.mark.slow
def test_the_samples_are_in_it(installed: Path, seen: dict) -> None:
    assert Path(seen["clip"]).is_relative_to(installed)
    assert len(seen["frames"]) == seen["poses"] > 1
    assert seen["points"] > 10_000
    assert {"image", "points", "vectors"} <= set(seen["layers"])


@pytest.mark.slow
def test_the_wheel_has_no_truth_and_no_paths_of_a_machine(installed: Path, seen: dict) -> None:
    assert "marigold3d/napari_plugin/napari.yaml" in seen["files"]
    assert not [file for file in seen["files"] if "clip_truth" in file]
    sample = installed / "marigold3d" / "examples" / "clip_sample_3d"
    for file in ("run.json", "camera.json", "trajectory.txt"):
        assert str(ROOT) not in (sample / file).read_text()
    assert json.loads((sample / "run.json").read_text())["clip"] == "../clip.mp4"


@pytest.mark.slow
def test_napari_s_rules_for_plugins(seen: dict) -> None:
    for requirement in seen["requirements"]:
        always = "extra ==" not in requirement
        assert not (always and requirement.lower().startswith((*QT_BINDINGS, "napari"))), requirement
        in_napari_extra = 'extra == "napari"' in requirement
        assert not (in_napari_extra and requirement.lower().startswith(QT_BINDINGS)), requirement
    assert "Framework :: napari" in seen["classifiers"]
