"""A run that is killed at any moment, the way a crash or a power cut does, ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from marigold3d.store import Run
from tests import synthetic

KILLS = 6


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("clip")
    camera = synthetic.camera(160, 120)
    clip = synthetic.Clip(camera, synthetic.walk(12, length=0.6))
    clip.write(folder / "clip.mp4")
    np.save(folder / "poses.npy", clip.T_world_camera)
    options = ["--poses", str(folder / "poses.npy"), "--metric-poses", "--focal-px", str(camera.fx), "--fuse", "-q"]
    return [sys.executable, "-W", "ignore", "-m", "marigold3d.cli", "video", str(folder / "clip.mp4"), *options, "-o"]


def start(command: list[str], run: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, str(run)], stderr=subprocess.PIPE, text=True, env=environment)


def finished(command: list[str], run: Path) -> None:
    process = start(command, run)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr


def products(run: Path) -> dict[str, bytes]:
    """Every file a person keeps, byte for byte, and what the report says but for times and memory."""
    files = {
        f.relative_to(run).as_posix(): f.read_bytes()
        for f in sorted(run.rglob("*"))
        if f.is_file() and f.name != "run.json" and "cache" not in f.relative_to(run).parts
    }
    report = json.loads((run / "run.json").read_text())["report"]
    kept = {k: v for k, v in report.items() if k not in ("seconds", "peak_memory_mb", "disk")}
    return files | {"report": json.dumps(kept, sort_keys=True).encode()}


@pytest.mark.slow
def test_killed_again_and_again_a_run_ends_the_same(command: list[str], tmp_path: Path) -> None:
    began = time.monotonic()
    finished(command, tmp_path / "whole")
    whole_s = time.monotonic() - began
    rng = np.random.default_rng(int(os.environ.get("MARIGOLD3D_KILL_SEED", "0")))
    killed, seen = 0, set()
    for _ in range(3 * KILLS):
        process = start(command, tmp_path / "killed")
        try:
            process.wait(timeout=rng.uniform(0.2, 1.0) * whole_s)
            if killed >= KILLS // 2:
                break
            shutil.rmtree(tmp_path / "killed")  # it finished too early: the first run was slowed by other work
            whole_s *= 0.7
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
            if (tmp_path / "killed" / "run.json").is_file():  # the manifest can be read, whenever the end came
                manifest = Run.open(tmp_path / "killed").manifest
                seen.add((manifest["status"], *(s for s, entry in manifest["stages"].items() if entry.get("done"))))
        if killed == KILLS:
            break
    assert seen, f"no run was there after {killed} kills"
    if not Run.open(tmp_path / "killed").finished:
        finished(command, tmp_path / "killed")
    expected, found = products(tmp_path / "whole"), products(tmp_path / "killed")
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
