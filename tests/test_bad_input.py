"""Whatever is given to the command line: one line that helps, the documented exit code, and nothing half-written."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marigold3d import cli
from marigold3d.errors import GeometryError, ModelError, OutOfMemoryError
from marigold3d.types import SparseCues
from marigold3d.video import write_video
from tests import synthetic
from tests.data_paths import data_path

PROGRESS = re.compile(r"^[A-Z].*( \.\.\.| s left)$")


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: exit code, stdout, the lines on stderr that are not progress."""

    code: int
    stdout: str
    lines: list[str]


@pytest.fixture(scope="module")
def clip() -> synthetic.Clip:
    return synthetic.Clip(synthetic.camera(), synthetic.walk(8, length=0.3))


@pytest.fixture(scope="module")
def inputs(clip: synthetic.Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips, images, poses and cameras, most of them useless."""
    folder = tmp_path_factory.mktemp("inputs")
    good = clip.write(folder / "good.mp4")
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "truncated.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    (folder / "no_images").mkdir()
    rgb = clip.frames[0][0]
    write_video(folder / "one.mp4", [rgb], 10)
    write_video(folder / "black.mp4", [0 * rgb] * 5, 10)
    scenes = [np.full_like(rgb, color) for color in ((200, 40, 30), (30, 180, 50), (40, 60, 200)) for _ in range(10)]
    write_video(folder / "cuts.mp4", scenes, 10)
    np.save(folder / "five.npy", np.tile(np.eye(4), (5, 1, 1)))
    np.save(folder / "nan.npy", np.full((8, 4, 4), np.nan))
    np.save(folder / "scaled.npy", np.tile(2 * np.eye(4), (8, 1, 1)))
    (folder / "late.txt").write_text("".join(f"{100 + i} 0 0 {i} 0 0 0 1\n" for i in range(8)))
    (folder / "words.txt").write_text("a trajectory in words\n")
    (folder / "nan_K.txt").write_text("nan 0 48\n0 80 36\n0 0 1\n")
    (folder / "two_rows_K.txt").write_text("80 0 48\n0 80 36\n")
    return folder


@pytest.fixture
def marigold3d(
    clip: synthetic.Clip, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run a command in this process; clips get their depth from an oracle."""
    oracle = synthetic.Oracle(clip)
    monkeypatch.setattr("marigold3d.pipeline.load_estimator", lambda _: oracle)

    def run(*args: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["marigold3d", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), out, [line for line in err.splitlines() if not PROGRESS.match(line)])

    return run


def refused(outcome: Outcome, code: int, words: str) -> None:
    """One line that holds `words` (a regular expression), and that code."""
    assert outcome.code == code, outcome.lines
    assert len(outcome.lines) == 1, outcome.lines
    assert outcome.lines[0].startswith("marigold3d: ")
    assert re.search(words, outcome.lines[0]), outcome.lines[0]
    assert outcome.stdout == ""


VIDEO = [
    # arguments (names of the inputs are replaced by their paths), exit code, words
    (["nowhere.mp4"], 3, "no such file"),
    (["text.mp4"], 3, "not a readable video"),
    (["empty.mp4"], 3, "not a readable video"),
    (["truncated.mp4"], 3, "not a readable video|no frame can be decoded"),
    (["no_images"], 3, "no images there"),
    (["broken.png"], 3, "cannot be read"),
    (["one.mp4"], 3, "one frame.*marigold3d depth"),
    (["black.mp4"], 3, "every frame is black"),
    (["cuts.mp4"], 3, r"3 scenes \(cuts at 1.00, 2.00 s\).*--start"),
    (["good.mp4", "--start", "99"], 3, "nothing is left"),
    (["good.mp4", "--start", "0.5", "--end", "0.1"], 2, "before the start"),
    (["good.mp4", "--stride", "0"], 2, "stride must be positive"),
    (["good.mp4", "--max-frames", "0"], 2, "max_frames must be positive"),
    (["good.mp4", "--max-frames", "1"], 3, "one frame"),
    (["good.mp4", "--fps", "-1"], 2, "fps must be positive"),
    (["good.mp4", "--static", "--fov", "500"], 3, "field of view"),
    (["good.mp4", "--static", "--fov", "60", "--focal-px", "80"], 2, "only one of --fov and --focal-px"),
    (["good.mp4", "--static", "--focal-px", "-80"], 3, "focal length"),
    (["good.mp4", "--static", "--intrinsics", "nan,80,48,36"], 3, "finite"),
    (["good.mp4", "--static", "--intrinsics", "80,80,48"], 2, "fx,fy,cx,cy"),
    (["good.mp4", "--static", "--intrinsics", "80,80,999,36"], 3, "principal point"),
    (["good.mp4", "--static", "--intrinsics", "nan_K.txt"], 3, "nan_K.txt.*finite"),
    (["good.mp4", "--static", "--intrinsics", "two_rows_K.txt"], 3, "9 numbers"),
    (["good.mp4", "--static", "--intrinsics", "nowhere.txt"], 3, "no such camera file"),
    (["good.mp4", "--poses", "nowhere.txt"], 3, "no such pose file"),
    (["good.mp4", "--poses", "five.npy"], 3, "5 poses for 8 frames"),
    (["good.mp4", "--poses", "nan.npy"], 3, "NaN"),
    (["good.mp4", "--poses", "scaled.npy"], 3, "scaled by 2"),
    (["good.mp4", "--poses", "late.txt"], 3, "subtract the time of the first frame"),
    (["good.mp4", "--poses", "words.txt"], 3, "not a TUM trajectory"),
    (["good.mp4", "--poses", "five.npy", "--static"], 2, "exclude each other"),
    (["good.mp4", "--metric-poses"], 2, "--poses FILE"),
]


@pytest.mark.parametrize(("args", "code", "words"), VIDEO, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_unusable_clips_cameras_and_poses(
    marigold3d: Callable[..., Outcome], inputs: Path, tmp_path: Path, args: list[str], code: int, words: str
) -> None:
    placed = [inputs / a if re.search(r"\.(mp4|png|txt|npy)$|^no_images$", a) else a for a in args]
    refused(marigold3d("video", *placed, "-o", tmp_path / "run"), code, words)
    assert list(tmp_path.iterdir()) == [], "no folder is left behind"


@pytest.mark.parametrize(
    ("option", "value"),
    [("--voxel", "-1"), ("--voxel", "nan"), ("--max-depth", "-1"), ("--consistency", "-1"), ("--consistency", "1"),
     ("--min-observations", "0"),
     ("--max-side", "0"), ("--max-side", "3")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_no_defects(
    marigold3d: Callable[..., Outcome], inputs: Path, tmp_path: Path, option: str, value: str
) -> None:
    """Each is refused in one line before any work is done."""
    outcome = marigold3d("video", inputs / "good.mp4", "-o", tmp_path / "run", "--static", "--fov", "65", option, value)
    refused(outcome, 2, option.removeprefix("--").replace("-", "."))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.data
def test_a_recording_with_cuts(marigold3d: Callable[..., Outcome], tmp_path: Path) -> None:
    refused(marigold3d("video", data_path("clips/bikes.mp4"), "-o", tmp_path / "run"), 3, "6 scenes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_clip_without_parallax(marigold3d: Callable[..., Outcome], tmp_path: Path) -> None:
    camera = synthetic.camera(320, 240)
    synthetic.Clip(camera, np.tile(np.eye(4), (6, 1, 1))).write(tmp_path / "still.mp4")
    refused(marigold3d("video", tmp_path / "still.mp4", "-o", tmp_path / "run"), 6, "--static")
    assert not (tmp_path / "run").exists()


def test_unknown_models(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for command in ("video", "depth"):
        monkeypatch.setattr(
            sys, "argv", ["x", command, str(inputs / "good.mp4"), "-o", str(tmp_path / "o"), "--model", "nonsense"]
        )
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == ModelError.exit_code
        assert "unknown model 'nonsense'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# -- outputs ----------------------------------------------------------------------------------------------------------


def test_an_output_below_a_file(marigold3d: Callable[..., Outcome], inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    outcome = marigold3d("video", inputs / "good.mp4", "-o", tmp_path / "file" / "run", "--static")
    refused(outcome, 7, "part of the path is a file")
    refused(marigold3d("video", inputs / "good.mp4", "-o", tmp_path / "file", "--static"), 7, "not a run folder")
    assert (tmp_path / "file").read_text() == "x"


def test_a_foreign_folder(marigold3d: Callable[..., Outcome], inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "dear.txt").write_text("x")
    outcome = marigold3d("video", inputs / "good.mp4", "-o", tmp_path, "--static", "--overwrite")
    refused(outcome, 7, "not a run folder")
    assert [f.name for f in tmp_path.iterdir()] == ["dear.txt"]


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_from_the_start(
    marigold3d: Callable[..., Outcome], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", full_disk)
    outcome = marigold3d("video", inputs / "good.mp4", "-o", tmp_path / "run", "--static", "--fov", "65")
    refused(outcome, 7, "disk is full")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "product", ["cloud.ply", "trajectory.txt", "depth/encoding.json", "depth/000003.png", "sigma/000003.png"]
)
def test_a_disk_that_fills_up_while_products_are_written(
    marigold3d: Callable[..., Outcome],
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    product: str,
) -> None:
    """No half-written product is left, and after some room is made the same command finishes."""
    replace_file = os.replace

    def full_for_it(source: Any, target: Any) -> None:
        if Path(target).as_posix().endswith(product):
            full_disk()
        replace_file(source, target)

    args = ("video", inputs / "good.mp4", "-o", tmp_path / "run", "--static", "--fov", "65")
    monkeypatch.setattr(os, "replace", full_for_it)
    refused(marigold3d(*args), 7, "disk is full")
    assert not list((tmp_path / "run").rglob("*.partial*"))
    assert not list((tmp_path / "run").rglob(Path(product).name))
    monkeypatch.setattr(os, "replace", replace_file)
    assert marigold3d(*args).code == 0
    assert (tmp_path / "run" / product).is_file()


@pytest.mark.parametrize("product", ["cloud.ply", "trajectory.txt", "000003.png"])
def test_a_disk_that_fills_up_while_a_run_is_replaced(
    marigold3d: Callable[..., Outcome], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, product: str
) -> None:
    """The old run stays as it was, whichever file was too much."""
    args = ("video", inputs / "good.mp4", "-o", tmp_path / "run", "--static", "--overwrite")
    assert marigold3d(*args, "--fov", "65").code == 0
    before = {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if "cache" not in f.parts and f.is_file()}
    replace_file = os.replace

    def full_for_it(source: Any, target: Any) -> None:
        if Path(target).name == product:
            full_disk()
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", full_for_it)
    refused(marigold3d(*args, "--fov", "40"), 7, "disk is full")
    after = {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if "cache" not in f.parts and f.is_file()}
    assert before.keys() == after.keys()
    changed = {f.name for f in before if before[f] != after[f]}
    assert changed <= {"run.json"}, "only what the cache holds is noted anew"


def test_a_disk_that_fills_up_while_depth_is_stored(
    marigold3d: Callable[..., Outcome], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("video", inputs / "good.mp4", "-o", tmp_path / "run", "--static", "--fov", "65")
    real, written = Path.replace, []

    def full_later(self: Path, target: Any) -> Path:
        written.append(target)
        if len(written) > 6:
            full_disk()
        return real(self, target)

    monkeypatch.setattr(Path, "replace", full_later)
    refused(marigold3d(*args), 7, "disk is full")
    monkeypatch.setattr(Path, "replace", real)
    assert marigold3d(*args).code == 0


# -- other commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["depth", "IN/nowhere.png", "-o", "OUT"], "no such file"),
        (["depth", "IN/broken.png", "-o", "OUT"], "cannot be read"),
        (["depth", "IN/text.mp4", "-o", "OUT"], "not a readable video"),
        (["depth", "IN/no_images", "-o", "OUT"], "neither images nor clips"),
        (["info", "IN"], "not a run folder"),
        (["info", "IN/nowhere"], "not a run folder"),
        (["view", "IN"], "not a run folder"),
        (["export", "IN", "--format", "ply", "-o", "OUT/x.ply"], "not a run folder"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_other_commands(
    marigold3d: Callable[..., Outcome],
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    words: str,
) -> None:
    monkeypatch.setattr("marigold3d.depth_files.run.load_estimator", lambda _: None)
    placed = [a.replace("IN", str(inputs)).replace("OUT", str(tmp_path / "out")) for a in args]
    refused(marigold3d(*placed), 3, words)
    assert not list(tmp_path.rglob("*.*"))


def test_exports_that_cannot_be(marigold3d: Callable[..., Outcome], inputs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = ("video", inputs / "good.mp4", "-o", run, "--static", "--fov", "65", "--no-fuse", "-q")
    assert marigold3d(*args).code == 0
    refused(marigold3d("export", run, "--format", "ply", "-o", tmp_path / "c.ply"), 3, "cloud.ply")
    refused(marigold3d("export", run, "--format", "dwg", "-o", tmp_path / "c.dwg"), 2, "unknown format 'dwg'")
    (tmp_path / "there.npy").write_text("dear")
    refused(marigold3d("export", run, "--format", "npy", "-o", tmp_path / "there.npy"), 7, "--overwrite")
    assert (tmp_path / "there.npy").read_text() == "dear"
    assert not (tmp_path / "c.ply").exists()


def test_batch_refuses_clips_that_would_share_a_folder(
    marigold3d: Callable[..., Outcome], inputs: Path, tmp_path: Path
) -> None:
    """Two clips of the same name, from two folders."""
    (tmp_path / "b").mkdir()
    other = tmp_path / "b" / "good.mp4"
    other.write_bytes((inputs / "good.mp4").read_bytes())
    outcome = marigold3d("batch", inputs / "good.mp4", other, "-o", tmp_path / "out", "--overwrite")
    refused(outcome, 2, "good_3d")
    assert not (tmp_path / "out").exists()


def test_batch_takes_a_damaged_run_for_a_failure_of_that_clip(
    marigold3d: Callable[..., Outcome], inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "black_3d").mkdir()
    (tmp_path / "black_3d" / "run.json").write_text("{")
    outcome = marigold3d("batch", inputs / "black.mp4", inputs / "one.mp4", "-o", tmp_path)
    assert outcome.code == 3
    assert [re.search(r"(black|one)\.mp4: .*(damaged|one frame)", line) is not None for line in outcome.lines] == [
        True
    ] * 2


# -- cues, memory, interrupts -----------------------------------------------------------------------------------------


def test_cues_that_are_not_there() -> None:
    from marigold3d.align import align_frame

    with pytest.raises(GeometryError, match="no cue falls on a valid pixel") as caught:
        align_frame(synthetic.corrupted(np.ones((8, 8)), "depth", 0), SparseCues.empty())
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OutOfMemoryError("too large: use --max-side 480"), 5, "--max-side"),
        (MemoryError(), 5, "out of memory"),
        (KeyboardInterrupt(), 130, "the same command resumes"),
    ],
)
def test_what_can_happen_to_any_run(
    marigold3d: Callable[..., Outcome],
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    words: str,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(synthetic.Oracle, "estimate", fail)
    outcome = marigold3d("video", inputs / "good.mp4", "-o", tmp_path / "run", "--static", "--fov", "65")
    refused(outcome, code, words)
    monkeypatch.undo()


def test_a_defect_keeps_its_traceback(
    marigold3d: Callable[..., Outcome], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(synthetic.Oracle, "estimate", fail)
    monkeypatch.setattr(sys, "argv", ["x", "video", str(inputs / "good.mp4"), "-o", str(tmp_path / "run"), "--static"])
    with pytest.raises(ZeroDivisionError):
        cli.main()
