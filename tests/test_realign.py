"""`marigold3d align RUN` and known depths in `marigold3d video`, as a user types them, on a walk through a room.

The poses are given in units of 0.4 m that nobody says are metres: what is known has to bring the scene to them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from marigold3d.camera import unproject
from marigold3d.cli import main
from marigold3d.rigid import quaternion_xyzw, umeyama
from marigold3d.store import Run
from tests import synthetic

UNIT_M = 0.4
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Said(NamedTuple):
    code: int
    stdout: str
    stderr: str


Cli = Callable[..., Said]


class Scene(NamedTuple):
    """A clip with its truth, and a finished run of it in `run`; depth/ holds a sensor's maps of every third frame."""

    clip: synthetic.Clip
    folder: Path
    options: list[str]

    @property
    def video(self) -> Path:
        return self.folder / "walk.mp4"

    @property
    def sensor(self) -> Path:
        return self.folder / "depth"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    clip = synthetic.Clip(synthetic.camera(240, 180), synthetic.walk(12))
    clip.write(folder / "walk.mp4")
    T, c = clip.T_world_camera, clip.camera
    rows = np.column_stack([clip.timestamps_s, T[:, :3, 3] / UNIT_M, quaternion_xyzw(T)])
    np.savetxt(folder / "poses.txt", rows)
    (folder / "depth").mkdir()
    for i in range(1, 12, 3):
        Image.fromarray((clip.frames[i][1] * 1000).round().astype(np.uint16)).save(folder / "depth" / f"{i:06d}.png")
    camera = ["--intrinsics", f"{c.fx},{c.fy},{c.cx},{c.cy}"]
    return Scene(clip, folder, ["--poses", str(folder / "poses.txt"), *camera, "--no-refine", "-q"])


@pytest.fixture
def oracle(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> synthetic.Oracle:
    oracle = synthetic.Oracle(scene.clip, bend=0.05)
    monkeypatch.setattr("marigold3d.pipeline.load_estimator", lambda _: oracle)
    return oracle


@pytest.fixture
def cli(oracle: synthetic.Oracle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    def run(*args: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["marigold3d", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            main()
        return Said(int(left.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def run(scene: Scene, cli: Cli, oracle: synthetic.Oracle, tmp_path: Path) -> Path:
    """A finished run of its own for every test; it is made once."""
    made = scene.folder / "run"
    if not made.exists():
        said = cli("video", scene.video, "-o", made, *scene.options)
        assert said.code == 0, said.stderr
    oracle.seen.clear()
    return shutil.copytree(made, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    """What a run holds for people."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and "cache" not in f.relative_to(folder).parts]
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def relative_times(run: Path) -> dict[str, int]:
    folder = run / "cache" / "arrays.zarr"
    files = [f for name in ("relative", "relative_sigma") for f in (folder / name).rglob("*") if f.is_file()]
    assert files
    return {str(f): f.stat().st_mtime_ns for f in files}


def depth_scale(run: Run, clip: synthetic.Clip) -> float:
    """Median over all frames of aligned over true depth."""
    ratios = [run.depth(i).depth[run.depth(i).valid] / clip.frames[i][1][run.depth(i).valid] for i in run.frame_indices]
    return float(np.median(np.concatenate(ratios)))


def cloud_scale(run: Run) -> float:
    """The factor at which the cloud lies nearest to the true surfaces: 1 in metres."""
    points = run.cloud().points.astype(float)[::5]
    factors = np.linspace(0.8, 1.25, 91)
    away = [np.median(synthetic.distance_to_surface(points * f)) for f in factors]
    return float(factors[int(np.argmin(away))])


def no_constants(name: str) -> None:
    pytest.fail(f"{name} is no JSON")


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=no_constants)


def length_between(scene: Scene, frame: int, a: tuple[int, int], b: tuple[int, int]) -> str:
    """--measure of what two pixels (column, row) of a frame show, from the truth."""
    z = scene.clip.frames[frame][1]
    ends = np.array([a, b]) + 0.5
    first, second = unproject(ends, np.array([z[a[1], a[0]], z[b[1], b[0]]], float), scene.clip.camera)
    ends_text = ",".join(f"{x:g}" for x in ends.ravel())
    return f"{ends_text},{frame}={np.linalg.norm(second - first):.4f}"


# -- known depths -----------------------------------------------------------------------------------------------------


def test_known_depths_bring_a_finished_run_to_metres(
    run: Path, scene: Scene, cli: Cli, oracle: synthetic.Oracle
) -> None:
    before, untouched = Run.open(run), relative_times(run)
    assert before.manifest["units"] == "arbitrary"
    assert depth_scale(before, scene.clip) == pytest.approx(1 / UNIT_M, rel=0.03)
    said = cli("align", run, "--cues", scene.sensor)
    assert said.code == 0, said.stderr
    after = Run.open(run)
    assert after.finished
    assert after.manifest["units"] == after.encoding().units == after.cloud().units == "m"
    assert depth_scale(after, scene.clip) == pytest.approx(1, abs=0.03)
    assert cloud_scale(after) == pytest.approx(1, abs=0.03)
    path = umeyama(after.trajectory().centres, scene.clip.T_world_camera[:, :3, 3])
    assert path.scale == pytest.approx(1, abs=0.03)
    assert oracle.seen == [], "depth was estimated again"
    assert relative_times(run) == untouched
    assert said.stdout == ""
    assert "units: m" in said.stderr
    table = [line for line in said.stderr.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    assert [int(line.split()[0]) for line in table] == list(range(12))


def test_the_report_has_what_the_plot_reads(run: Path, scene: Scene, cli: Cli) -> None:
    said = cli("align", run, "--cues", scene.sensor, "--json", "-q")
    assert said.code == 0, said.stderr
    printed, report = strict(said.stdout), strict((run / "run.json").read_text())["report"]["alignment"]
    assert printed["units"] == report["units"] == "m"
    assert printed["alignment"] == report
    frames = report["frames"]
    assert frames["position"] == list(range(12))
    for name in ("scale", "scale_sigma", "shift", "shift_sigma", "cues", "rejected"):
        assert len(frames[name]) == 12
        assert all(isinstance(value, int | float) for value in frames[name]), name
    assert set(frames["determined"]) <= {"scale and shift", "scale only"}
    assert frames["segment"] == [0] * 12
    flicker = report["flicker"]
    assert flicker["after"] < flicker["before"]
    assert [len(flicker[f"series_{when}"]) for when in ("before", "after")] == [11, 11]
    for name in ("held_out", "held_out_affine"):
        assert set(report[name]) == {"n", "mae", "abs_rel", "delta1"}
        assert report[name]["n"] > 100
    assert report["held_out"]["abs_rel"] < 0.03
    carried = "depth maps, carried to other frames"
    assert set(report["sources"]) == {"structure from motion", "depth maps", carried}
    assert report["scale_factor"] == pytest.approx(UNIT_M, rel=0.03)


def test_known_depths_in_one_go(scene: Scene, cli: Cli, tmp_path: Path) -> None:
    said = cli("video", scene.video, "-o", tmp_path / "run", *scene.options, "--cues", scene.sensor, "--json")
    assert said.code == 0, said.stderr
    assert strict(said.stdout)["units"] == "m"
    assert depth_scale(Run.open(tmp_path / "run"), scene.clip) == pytest.approx(1, abs=0.03)
    assert cloud_scale(Run.open(tmp_path / "run")) == pytest.approx(1, abs=0.03)


def test_without_the_field(run: Path, scene: Scene, cli: Cli) -> None:
    """The bend stays in the depth, so a field must be better."""
    errors = []
    for option in ("--field", "--no-field"):
        said = cli("align", run, "--cues", scene.sensor, option, "--json", "-q")
        errors.append(strict(said.stdout)["alignment"]["held_out"]["abs_rel"])
    assert errors[0] < 0.8 * errors[1]


# -- known lengths ----------------------------------------------------------------------------------------------------


def test_a_known_length_brings_the_run_to_metres(run: Path, scene: Scene, cli: Cli, oracle: synthetic.Oracle) -> None:
    untouched = relative_times(run)
    measure = length_between(scene, 5, (20, 60), (200, 50))
    said = cli("align", run, "--measure", measure, "-q", "--json")
    assert said.code == 0, said.stderr
    after, report = Run.open(run), strict(said.stdout)
    assert report["units"] == after.manifest["units"] == after.encoding().units == after.cloud().units == "m"
    assert depth_scale(after, scene.clip) == pytest.approx(1, abs=0.03)
    assert cloud_scale(after) == pytest.approx(1, abs=0.03)
    assert report["lengths"]["factor"] == pytest.approx(UNIT_M, rel=0.03)
    assert len(report["lengths"]["lengths"]) == 1
    assert report["lengths"]["lengths"][0]["metres_after"] == pytest.approx(float(measure.split("=")[1]))
    assert (oracle.seen, relative_times(run)) == ([], untouched)
    assert "known length" in cli("info", run).stdout


def test_lengths_alone_say_what_changed_and_need_no_clip(run: Path, scene: Scene, cli: Cli) -> None:
    Run.open(run).update(clip=str(scene.folder / "moved.mp4"))
    said = cli("align", run, "--measure", length_between(scene, 5, (20, 60), (200, 50)))
    assert (said.code, said.stdout) == (0, "")
    first, path, voxel, length = said.stderr.splitlines()
    unit = re.fullmatch(r"1 unit is (\S+) m.*", first)
    assert unit is not None
    assert float(unit[1]) == pytest.approx(UNIT_M, rel=0.03)
    assert path.startswith("camera path 3.")
    assert voxel.startswith("voxel ")
    assert length.startswith("length 20.5,60.5,200.5,50.5,5=")


def test_lengths_come_on_top_of_those_before(run: Path, scene: Scene, cli: Cli) -> None:
    """Also where known depths come with the last of them, and all is aligned anew."""
    texts = [length_between(scene, frame, (20, 60), (200, 50)) for frame in (3, 5)]
    across = length_between(scene, 8, (30, 60), (190, 50))
    assert cli("align", run, "--measure", texts[0], "-q").code == 0
    assert cli("align", run, "--measure", texts[1], "-q").code == 0
    assert Run.open(run).manifest["settings"]["align"]["measures"] == texts
    assert cli("align", run, "--cues", scene.sensor, "--measure", across, "-q").code == 0
    manifest = Run.open(run).manifest
    assert manifest["settings"]["align"]["measures"] == [*texts, across]
    assert len(manifest["report"]["lengths"]["lengths"]) == 3
    assert depth_scale(Run.open(run), scene.clip) == pytest.approx(1, abs=0.03)


def test_a_length_at_odds_with_known_depths_is_said(run: Path, scene: Scene, cli: Cli) -> None:
    measure = length_between(scene, 5, (20, 60), (200, 50))
    ends, length = measure.split("=")
    said = cli("align", run, "--cues", scene.sensor, "--measure", f"{ends}={2 * float(length):.4f}", "-q")
    assert said.code == 0
    assert any("known length" in line for line in Run.open(run).manifest["report"]["warnings"])
    assert depth_scale(Run.open(run), scene.clip) == pytest.approx(2, rel=0.03)


def test_errors_are_in_the_units_of_the_run(run: Path, scene: Scene, cli: Cli) -> None:
    """A length rescales the scene after its errors were measured; they follow."""
    before = Run.open(run).alignment()["held_out"]["mae"]
    assert cli("align", run, "--measure", length_between(scene, 5, (20, 60), (200, 50)), "-q").code == 0
    report = Run.open(run).manifest["report"]
    assert report["alignment"]["units"] == "m"
    assert report["alignment"]["held_out"]["mae"] == pytest.approx(report["lengths"]["factor"] * before, rel=1e-3)
    assert f"mean error {report['alignment']['held_out']['mae']:.3g} m," in cli("info", run).stdout


def test_errors_of_older_runs_are_printed_in_the_units_of_the_run(run: Path, scene: Scene, cli: Cli) -> None:
    """Those kept them in the units in which the scene was aligned, and said so."""
    before = Run.open(run).manifest["report"]["alignment"]
    cli("align", run, "--measure", length_between(scene, 5, (20, 60), (200, 50)), "-q")
    older = Run.open(run)
    report = older.manifest["report"]
    older.update(report={**report, "alignment": before})
    printed = f"mean error {report['lengths']['factor'] * before['held_out']['mae']:.3g} m,"
    assert printed in cli("info", run).stdout
    cli("align", run, "--measure", length_between(scene, 5, (20, 60), (200, 50)), "-q")
    assert Run.open(run).alignment()["held_out"] == pytest.approx(report["alignment"]["held_out"], rel=1e-3)
    assert printed in cli("info", run).stdout


# -- nothing but a look -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_plot_leaves_the_run_as_it_is(run: Path, cli: Cli, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    before = contents(run)
    said = cli("align", run, "--plot", tmp_path / f"plot.{suffix}")
    assert said.code == 0, said.stderr
    assert contents(run) == before
    assert (tmp_path / f"plot.{suffix}").stat().st_size > 5000
    if suffix == "png":
        with Image.open(tmp_path / "plot.png") as picture:
            assert min(picture.size) >= 600


def test_json_alone_leaves_the_run_as_it_is(run: Path, cli: Cli) -> None:
    before = contents(run)
    said = cli("align", run, "--json")
    assert (said.code, said.stderr) == (0, "")
    assert strict(said.stdout)["alignment"] == Run.open(run).alignment()
    assert contents(run) == before


@pytest.mark.parametrize(("name", "code"), [("clip.mp4/plot.png", 7), ("plot.nonsense", 2), ("plot", 2)])
def test_a_plot_that_cannot_be_written_is_one_line(
    run: Path, scene: Scene, cli: Cli, tmp_path: Path, name: str, code: int
) -> None:
    """And is said before the work that it was to show."""
    (tmp_path / "clip.mp4").touch()
    before = contents(run)
    said = cli("align", run, "--cues", scene.sensor, "--plot", tmp_path / name)
    assert said.code == code
    assert said.stderr.count("\n") == 1
    assert said.stderr.startswith("marigold3d: ")
    assert contents(run) == before


# -- what goes wrong --------------------------------------------------------------------------------------------------


def bad_cues(folder: Path) -> dict[str, Path]:
    """Files of cues that cannot be used, by what is wrong."""
    for name in ("no frames", "damaged", "shape"):
        (folder / name).mkdir()
    Image.fromarray(np.full((180, 240), 2000, np.uint16)).save(folder / "no frames" / "000999.png")
    (folder / "damaged" / "000003.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    Image.fromarray(np.full((240, 180), 2000, np.uint16)).save(folder / "shape" / "000003.png")
    (folder / "columns.csv").write_text("a,b\n1,2\n")
    (folder / "empty.csv").write_text("")
    (folder / "elsewhere.csv").write_text("frame,u,v,depth\n3,9000,20,2.5\n")
    (folder / "cues.xyz").write_text("1 2 3\n")
    return {f.name: f for f in folder.iterdir()} | {"gone": folder / "gone"}


@pytest.mark.parametrize(
    "wrong", ["gone", "no frames", "damaged", "shape", "columns.csv", "empty.csv", "elsewhere.csv", "cues.xyz"]
)
def test_bad_cues_are_one_line_and_leave_the_run(run: Path, cli: Cli, tmp_path: Path, wrong: str) -> None:
    (tmp_path / "cues").mkdir()
    file = bad_cues(tmp_path / "cues")[wrong]
    said = refused(cli, run, "--cues", file, "-q")
    assert said.stdout == ""
    assert said.stderr.startswith("marigold3d: ")
    assert "cloud.ply" in contents(run)
    assert Run.open(run).finished


@pytest.mark.parametrize(
    ("measure", "code"),
    [("10,20,30", 2), ("10,20,30,40,3=-1", 2), ("10,20,30,40,999=1.0", 2), ("10,20,9000,40,3=1.0", 2)],
)
def test_bad_lengths_are_one_line_and_leave_the_run(run: Path, cli: Cli, measure: str, code: int) -> None:
    refused(cli, run, "--measure", measure, "-q", code=code)


def refused(cli: Cli, run: Path, *options: str | Path, code: int = 3) -> Said:
    """What `align` said, in one line, when it refused and left the run as it was."""
    before = contents(run)
    said = cli("align", run, *options)
    assert said.code == code
    assert said.stderr.count("\n") == 1, said.stderr
    assert contents(run) == before
    return said


def test_an_unfinished_run_is_refused(run: Path, scene: Scene, cli: Cli) -> None:
    Run.open(run).update(status="interrupted")
    assert "not finished" in refused(cli, run, "--cues", scene.sensor).stderr


def test_a_run_whose_clip_is_gone_is_refused(run: Path, scene: Scene, cli: Cli) -> None:
    Run.open(run).update(clip=str(scene.folder / "moved.mp4"))
    assert "moved.mp4" in refused(cli, run, "--cues", scene.sensor).stderr
    assert cli("align", run, "--json").code == 0, "its report is still there"


def test_no_run_is_refused(cli: Cli, tmp_path: Path) -> None:
    said = cli("align", tmp_path)
    assert said.code == 3
    assert "not a run folder" in said.stderr
    assert said.stderr.count("\n") == 1


# -- in a process of its own, with the network that comes with the package --------------------------------------------


def test_streams_and_exit_codes_of_the_real_program(scene: Scene, tmp_path: Path) -> None:
    """Report on stderr, JSON on stdout; cues of a still camera set the scale of a network's depth."""
    still = ["--static", "--fov", "65", "--max-frames", "3", "-q"]
    program = [sys.executable, "-m", "marigold3d.cli"]

    def marigold3d(*args: str | Path) -> Said:
        done = subprocess.run([*program, *map(str, args)], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
        return Said(done.returncode, done.stdout, done.stderr)

    first = marigold3d("video", scene.video, "-o", tmp_path / "run", *still)
    assert (first.code, first.stdout) == (0, ""), first.stderr
    again = marigold3d("align", tmp_path / "run", "--cues", f"{scene.sensor / '000001.png'}@1", "--json", "-q")
    assert (again.code, again.stderr) == (0, "")
    assert strict(again.stdout)["units"] == "m"
    depth, truth = Run.open(tmp_path / "run").depth(1), scene.clip.frames[1][1]
    assert np.median(depth.depth[depth.valid] / truth[depth.valid]) == pytest.approx(1, abs=0.03)
