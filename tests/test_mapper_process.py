"""COLMAP's process: it is killed when a generator is closed or its owner dies, and says clearly why it ended."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from marigold3d.errors import OutOfMemoryError, OutputError
from marigold3d.poses import mapper_process
from marigold3d.poses.mapper_process import MapperProcess
from marigold3d.poses.sfm import reconstruct_sparse
from marigold3d.progress import Steps, run
from marigold3d.video import open_video
from tests import synthetic

SIZE = (160, 120)
STAND_IN = """
import errno, os, signal, sys, time
from pathlib import Path
from marigold3d.poses import mapper

def features(workspace, names, lens, first):
    pass

def match(workspace, names):
    print("native code prints this where it likes", flush=True)
    os.write(1, b"and this")

def forever(workspace, fixed_camera):
    (Path(__file__).parent / "pid").write_text(str(os.getpid()))
    time.sleep(1000)

def killed(workspace):
    os.kill(os.getpid(), signal.SIGKILL)

def crashed(workspace):
    print("a library is missing", file=sys.stderr, flush=True)
    os._exit(7)

def full(workspace):
    raise OSError(errno.ENOSPC, "No space left on device")

def database_full(workspace):
    raise RuntimeError("SQLite error: database or disk is full")

def memory(workspace):
    raise MemoryError

def echo(workspace, value):
    return [str(workspace), value]

def defect(workspace):
    raise ValueError("no such thing")

mapper.STEPS = {"global": forever, **{f.__name__: f for f in (
    features, match, killed, crashed, full, database_full, memory, echo, defect)}}
mapper.main()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of COLMAP, whose global mapper never ends; where it notes its process id."""
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)
    monkeypatch.setattr(mapper_process, "COMMAND", (sys.executable, str(program)))
    return tmp_path / "pid"


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not asked for its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    began = time.monotonic()
    while not condition() and time.monotonic() - began < seconds:
        time.sleep(0.02)
    return condition()


def solve(clip: Path, workspace: Path) -> Steps[object]:
    return reconstruct_sparse(open_video(clip), np.arange(8), None, SIZE, workspace)


on_linux = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks into /proc")


@on_linux
@pytest.mark.slow
def test_closing_in_the_mapper_kills_it_and_the_next_run_works(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = synthetic.Clip(synthetic.camera(*SIZE), synthetic.walk(8, length=0.6)).write(tmp_path / "clip.mp4")
    steps = solve(clip, tmp_path / "work")
    while not stand_in.exists() or not stand_in.read_text():
        next(steps)
    pid = int(stand_in.read_text())
    assert alive(pid)
    steps.close()
    assert not alive(pid), "closing has waited for the process to be gone"
    assert not (tmp_path / "work").exists()
    monkeypatch.undo()
    model = run(solve(clip, tmp_path / "work"))
    assert len(model.frames) >= 3  # type: ignore[attr-defined]


@on_linux
def test_it_does_not_outlive_the_process_that_started_it(stand_in: Path, tmp_path: Path) -> None:
    """Not even one that is killed and can clear nothing away."""
    (tmp_path / "work").mkdir()
    owner = f"""
import sys
from pathlib import Path
from marigold3d.poses import mapper_process
mapper_process.COMMAND = {mapper_process.COMMAND!r}
with mapper_process.MapperProcess(Path({str(tmp_path / "work")!r})) as mapper:
    for _ in mapper.call("global", fixed_camera=True):
        pass
"""
    process = subprocess.Popen([sys.executable, "-c", owner])
    assert until(lambda: stand_in.exists() and bool(stand_in.read_text()))
    pid = int(stand_in.read_text())
    assert alive(pid)
    process.kill()
    process.wait()
    assert until(lambda: not alive(pid))


def test_it_loads_nothing_that_colmap_does_not_need() -> None:
    code = "import sys, marigold3d.poses.mapper; print(*{m.split('.')[0] for m in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "av", "zarr", "cv2", "diffusers", "transformers", "open3d", "napari"} & set(found)


def test_answers_come_back_whatever_native_code_prints(stand_in: Path, tmp_path: Path) -> None:
    with MapperProcess(tmp_path) as mapper:
        run(mapper.call("match", names=[]))
        assert run(mapper.call("echo", value="\N{SNOWMAN} 1.5")) == [str(tmp_path), "\N{SNOWMAN} 1.5"]


@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        pytest.param("killed", OutOfMemoryError, "--stride", marks=on_linux),
        ("memory", OutOfMemoryError, "--stride"),
        ("full", OutputError, "disk is full"),
        ("database_full", OutputError, "disk is full"),
        ("crashed", RuntimeError, "exit code 7: a library is missing"),
        ("defect", RuntimeError, "no such thing"),
    ],
)
def test_every_end_has_its_reason(
    stand_in: Path, tmp_path: Path, step: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught, MapperProcess(tmp_path) as mapper:
        run(mapper.call(step))
    if error is not RuntimeError:
        assert "\n" not in str(caught.value)


def test_after_its_end_it_says_so_again(stand_in: Path, tmp_path: Path) -> None:
    with MapperProcess(tmp_path) as mapper:
        with pytest.raises(RuntimeError, match="exit code 7"):
            run(mapper.call("crashed"))
        with pytest.raises(RuntimeError, match="exit code 7"):
            run(mapper.call("echo", value=1))
