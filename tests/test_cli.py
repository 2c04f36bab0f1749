"""The command line as a user runs it: in processes of their own, with the network that comes with the package."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marigold3d import __version__
from marigold3d.cli.options import stem_of
from marigold3d.store import Run
from tests import synthetic

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
COMMAND = [sys.executable, "-m", "marigold3d.cli"]
ROOT = Path(__file__).resolve().parents[1]


def marigold3d(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, timeout=300
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "clip.mp4"
    return synthetic.Clip(synthetic.camera(), synthetic.walk(40, length=0.3)).write(path)


@pytest.fixture(scope="module")
def run_folder(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few frames, with the report it printed as JSON beside it."""
    folder = tmp_path_factory.mktemp("run") / "clip_3d"
    done = marigold3d("video", clip, "-o", folder, "--static", "--fov", "65", "--max-frames", "4", "--json")
    assert done.returncode == 0, done.stderr
    (folder.parent / "stdout.json").write_text(done.stdout)
    (folder.parent / "stderr.txt").write_text(done.stderr)
    return folder


# -- what needs no clip -----------------------------------------------------------------------------------------------


def test_help_names_the_commands_and_the_exit_codes() -> None:
    done = marigold3d("--help")
    assert done.returncode == 0
    for word in ("video", "depth", "view", "info", "export", "batch", "models", "doctor", "gui", "Exit codes"):
        assert word in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["video", "depth", "view", "info", "export", "batch", "models", "doctor", "gui"])
def test_every_command_explains_itself(command: str) -> None:
    done = marigold3d(command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_version() -> None:
    assert marigold3d("--version").stdout.strip() == f"marigold3d {__version__}"


def test_models() -> None:
    lines = marigold3d("models").stdout.splitlines()
    listed = json.loads(marigold3d("models", "--json").stdout)
    assert [line.split()[0] for line in lines] == list(listed)
    assert listed["compact"]["licence"] == "Apache-2.0"
    assert all(entry["licence"] for entry in listed.values())


@pytest.mark.parametrize(
    "args", [("--nonsense",), ("video",), ("nonsense",), ("video", "x.mp4", "--stride", "two"), ("depth", "x.png")]
)
def test_usage_errors_are_one_line(args: tuple[str, ...]) -> None:
    done = marigold3d(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("marigold3d: ")


def test_runs_are_named_after_their_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "walk.v2").mkdir()
    monkeypatch.chdir(tmp_path / "walk.v2")
    names = {"a/clip.mp4": "clip", "clip.final.mov": "clip.final", ".": "walk.v2", "../walk.v2/": "walk.v2"}
    patterns = {"photos/img*.png": "photos", "*.jpg": "walk.v2"}
    assert {clip: stem_of(clip) for clip in {**names, **patterns}} == {**names, **patterns}


# -- depth alone -----------------------------------------------------------------------------------------------------


def test_depth_of_images(tmp_path: Path) -> None:
    """STEM_depth.npy is float32, and what it means stands beside it; the picture has its size."""
    ramp = np.tile(np.linspace(40, 220, 120, dtype=np.uint8)[:, None, None], (1, 160, 3))
    for name in ("one", "two"):
        Image.fromarray(ramp).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("no image")
    done = marigold3d("depth", tmp_path, "-o", tmp_path / "out", "--json", "-q")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "text.png: cannot be read" in done.stderr
    said = json.loads(done.stdout)
    assert [Path(entry["input"]).name for entry in said["results"]] == ["one.png", "two.png"]
    assert list(said["failed"]) == [str(tmp_path / "text.png")]
    written = {name for entry in said["results"] for name in (*entry["files"], entry["record"])}
    assert written == {str(file) for file in (tmp_path / "out").iterdir()}
    depth = np.load(tmp_path / "out" / "one_depth.npy")
    assert (depth.dtype, depth.shape) == (np.float32, (120, 160))
    assert np.isfinite(depth).all()
    record = json.loads((tmp_path / "out" / "one_depth.json").read_text())
    assert (record["domain"], record["near"]) == ("log_depth", "small")
    with Image.open(tmp_path / "out" / "one_depth_preview.png") as picture:
        assert picture.size == (160, 120)


def test_depth_of_a_clip_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    """Ctrl-C is exit 130 in one line; the same command estimates the rest only, and the result is whole."""
    example, folder = ROOT / "examples" / "clip.mp4", tmp_path / "out" / "clip"
    args = [*COMMAND, "depth", str(example), "-o", str(tmp_path / "out"), "--max-frames", "24", "--max-side", "96"]
    with subprocess.Popen(
        args,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 120
        while len(list(folder.glob("*.npz"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stderr.splitlines()[-1].startswith("marigold3d: interrupted")
    assert "Traceback" not in stderr
    kept = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.npz")}
    assert 2 <= len(kept) < 24
    done = subprocess.run([*args, "--json", "-q"], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["frames_estimated"] == 24 - len(kept)
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    names = [f"{i:06d}.npz" for i in range(24)]
    assert sorted(f.name for f in folder.iterdir()) == [*names, "depth.json", "preview.mp4"]


# -- runs -------------------------------------------------------------------------------------------------------------


def test_json_is_one_object_and_progress_stays_off_stdout(run_folder: Path) -> None:
    said = json.loads((run_folder.parent / "stdout.json").read_text())
    assert Path(said["run"]) == run_folder
    assert said["units"] == "arbitrary"
    assert said["cameras"]["frames_posed"] == 4
    progress = (run_folder.parent / "stderr.txt").read_text()
    assert "Estimating depth ..." in progress
    assert "Traceback" not in progress


def test_info(run_folder: Path) -> None:
    text = marigold3d("info", run_folder)
    assert text.returncode == 0
    assert "4 of 4 frames posed" in text.stdout
    assert json.loads(marigold3d("info", run_folder, "--json").stdout)["status"] == "finished"


@pytest.mark.parametrize(
    ("form", "name", "product"),
    [
        ("ply", "c.ply", "c.ply"),
        ("colmap", "model", "model/cameras.txt"),
        ("nerfstudio", "transforms.json", "transforms.json"),
        ("npy", "poses.npy", "poses.npy"),
        ("npz", "maps", "maps/000000.npz"),
    ],
)
def test_exports(run_folder: Path, tmp_path: Path, form: str, name: str, product: str) -> None:
    before = (run_folder / "run.json").read_bytes()
    done = marigold3d("export", run_folder, "--format", form, "-o", tmp_path / name, "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / product).stat().st_size > 0
    assert (run_folder / "run.json").read_bytes() == before
    again = marigold3d("export", run_folder, "--format", form, "-o", tmp_path / name)
    assert again.returncode == 7


def test_a_finished_run_is_refused_then_replaced(run_folder: Path, clip: Path) -> None:
    args = ("video", clip, "-o", run_folder, "--static", "--fov", "65", "--max-frames", "4", "-q")
    refused = marigold3d(*args)
    assert refused.returncode == 7
    assert refused.stderr.count("\n") == 1
    assert marigold3d(*args, "--overwrite").returncode == 0


@pytest.mark.slow
def test_batch_goes_on_after_a_failure(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    done = marigold3d("batch", tmp_path / "broken.mp4", clip, "-o", tmp_path / "out")
    lines = done.stderr.splitlines()
    assert any("broken.mp4" in line for line in lines)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "broken_3d").exists()


# -- interrupts -------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_the_middle_of_the_depth(clip: Path, tmp_path: Path) -> None:
    """Exit 130 in one line, finished frames are kept, and the same command resumes."""
    folder = tmp_path / "run"
    args = [*COMMAND, "video", str(clip), "-o", str(folder), "--static", "--fov", "65", "--no-fuse"]
    with subprocess.Popen(
        args,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs inherit that it is ignored
    ) as process:
        chunks = folder / "cache" / "arrays.zarr" / "relative" / "c"
        deadline = time.monotonic() + 120
        while (not chunks.is_dir() or len(list(chunks.iterdir())) < 2) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("marigold3d: interrupted")
    assert Run.open(folder).manifest["status"] == "interrupted"
    kept = {f.name: (f / "0" / "0").stat().st_mtime_ns for f in chunks.iterdir() if (f / "0" / "0").is_file()}
    assert 2 <= len(kept) < 40
    done = marigold3d(*args[3:])
    assert done.returncode == 0, done.stderr
    assert Run.open(folder).finished
    assert {n: (chunks / n / "0" / "0").stat().st_mtime_ns for n in kept} == kept, (
        "finished frames were estimated again"
    )
    assert len(Run.open(folder).frame_indices) == 40
