"""A finished run brought to metres: everything that says how large it is agrees, as if it had been made so."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from marigold3d.align.affine import AffineFit
from marigold3d.config import AlignConfig, CameraConfig, PoseConfig, RefineConfig, RunConfig
from marigold3d.cues import Measurement, parse_measure
from marigold3d.errors import GeometryError, InputError, OutputError, UsageError
from marigold3d.export.mesh_ply import write_mesh_ply
from marigold3d.lengths import report_in_metres
from marigold3d.picking import Surfaces
from marigold3d.pipeline import reconstruct
from marigold3d.realign import realign
from marigold3d.rescale import rescale
from marigold3d.rigid import quaternion_xyzw
from marigold3d.store import Run
from marigold3d.types import Domain, TriangleMesh
from tests import synthetic
from tests.gui import make_run

UNIT_M = 0.4  # of the poses that the synthetic walk is given with
ENDS = ((20.5, 60.5), (200.5, 50.5))


def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def same(found: Any, wanted: Any, rel: float, where: str = "") -> None:
    """Whether two reports hold the same, numbers to a share `rel`."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for name in wanted:
            same(found[name], wanted[name], rel, f"{where}/{name}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for i, value in enumerate(wanted):
            same(found[i], value, rel, f"{where}[{i}]")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=rel, abs=rel), where
    else:
        assert found == wanted, where


# -- a run made by hand -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A wall and a box, in units that nobody knows."""
    run = make_run(tmp_path / "run")
    for folder in ("depth", "sigma"):
        file = run.path / folder / "encoding.json"
        file.write_text(file.read_text().replace('"m"', '"arbitrary"'))
    run.update(units="arbitrary", report={"fusion": {"voxel": 0.01, "max_depth": 12.0, "points": 7}})
    return run


def length_of(run: Run, factor: float, frame: int = 2) -> Measurement:
    """From one end of the wall to the other, `factor` times what the run says of it."""
    surfaces = Surfaces(run)
    a, b = surfaces.at_pixel(frame, (4.25, 10.5)), surfaces.at_pixel(frame, (60.25, 40.5))
    return surfaces.measurement(a, b, surfaces.length(a, b)[0] * factor)


@pytest.mark.parametrize("factor", [0.37, 1.83, 250.0])
def test_the_scene_is_as_large_as_the_length_says(run: Run, factor: float) -> None:
    before = {i: run.depth(i) for i in run.frame_indices}
    maps = {name: data for name, data in contents(run.path).items() if name.endswith(".png")}
    cloud, trajectory, mesh = run.cloud(), run.trajectory(), a_mesh()
    write_mesh_ply(run.path / "mesh.ply", mesh)
    run.update(report={**run.manifest["report"], "mesh": {"voxel": 0.02, "triangles": 1}})
    done = rescale(run, [measure := length_of(run, factor)])
    assert done.run is run
    assert done.estimate.factor == pytest.approx(factor, rel=1e-5)
    assert length_of(run, 1.0).length_m == pytest.approx(measure.length_m, rel=1e-5)
    again = Run.open(run.path)
    assert again.manifest == run.manifest
    assert again.manifest["units"] == again.encoding().units == again.cloud().units == "m"
    assert "units m;" in (run.path / "trajectory.txt").read_text()
    assert '"units": "m"' in (run.path / "camera.json").read_text()
    assert again.frame_indices == list(before)
    for i, was in before.items():
        now = again.depth(i)
        np.testing.assert_array_equal(now.valid, was.valid)
        np.testing.assert_allclose(now.depth, factor * was.depth, rtol=1e-5)
        np.testing.assert_allclose(now.sigma, factor * was.sigma, rtol=1e-5)  # type: ignore[arg-type,operator]
    now = again.cloud()
    np.testing.assert_allclose(now.points, factor * cloud.points, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(now.sigma, factor * cloud.sigma, rtol=1e-5)
    for name in ("colors", "normals", "observations", "frame_index"):
        np.testing.assert_array_equal(getattr(now, name), getattr(cloud, name))
    np.testing.assert_allclose(again.trajectory().centres, factor * trajectory.centres, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(again.trajectory().T_world_camera[:, :3, :3], trajectory.T_world_camera[:, :3, :3])
    assert again.manifest["report"]["fusion"] == pytest.approx(
        {"voxel": 0.01 * factor, "max_depth": 12 * factor, "points": 7}, rel=1e-4
    )
    assert {name: data for name, data in contents(run.path).items() if name.endswith(".png")} == maps
    np.testing.assert_allclose(again.mesh().vertices, factor * mesh.vertices, rtol=1e-6)
    assert again.mesh().units == "m"
    assert again.manifest["report"]["mesh"]["voxel"] == pytest.approx(0.02 * factor, abs=1e-6)


def a_mesh() -> TriangleMesh:
    corners = np.array([[0, 0, 1], [1, 0, 2], [0, 1, 3]], np.float32)
    out = np.tile(np.array([[0, 0, -1]], np.float32), (3, 1))
    return TriangleMesh(corners, np.array([[0, 2, 1]], np.int32), out, np.full((3, 3), 9, np.uint8))


def test_the_same_length_twice_changes_nothing_more(run: Run) -> None:
    measure = length_of(run, 1.83)
    rescale(run, [measure])
    points, manifest = run.cloud().points, run.manifest
    again = rescale(Run.open(run.path), [measure])
    assert again.estimate.factor == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(again.run.cloud().points, points, rtol=1e-6)
    same(again.run.manifest, manifest, 1e-6)


def test_lengths_given_one_after_the_other_count_as_if_given_together(run: Run, tmp_path: Path) -> None:
    other = Run.open(shutil.copytree(run.path, tmp_path / "other"))
    first, second = length_of(run, 2.0), length_of(run, 2.1, frame=4)
    together = rescale(other, [first, second])
    rescale(run, [first])
    later = rescale(run, [second])
    assert later.estimate.factor == pytest.approx(together.estimate.factor / 2.0, rel=1e-5)
    same(run.manifest, other.manifest, 1e-5)
    np.testing.assert_allclose(run.cloud().points, other.cloud().points, rtol=1e-5, atol=1e-6)
    assert run.manifest["settings"]["align"]["measures"] == [str(first), str(second)]
    assert run.manifest["report"]["lengths"]["factor"] == pytest.approx(together.estimate.factor, rel=1e-5)


def test_a_length_between_the_same_ends_is_a_correction(run: Run) -> None:
    rescale(run, [length_of(run, 2.0)])
    right = replace(length_of(run, 1.5), uv_a=length_of(run, 1.0).uv_b, uv_b=length_of(run, 1.0).uv_a)  # turned round
    assert rescale(run, [right]).estimate.factor == pytest.approx(1.5, rel=1e-5)
    assert run.manifest["settings"]["align"]["measures"] == [str(right)]


def test_a_length_that_the_others_contradict_is_named(run: Run) -> None:
    wrong = length_of(run, 9.0, frame=4)
    done = rescale(run, [length_of(run, 2.0), length_of(run, 2.01, frame=0), wrong])
    assert done.estimate.factor == pytest.approx(2.0, rel=0.01)
    assert done.run.manifest["report"]["lengths"]["rejected"] == [str(wrong)]
    warned = [f"known length {wrong} disagrees with the others and is left out"]
    assert done.run.manifest["report"]["warnings"] == warned
    assert f"left out, as the others contradict it: {wrong}" in done.lines[-1]
    rescale(run, [])
    assert run.manifest["report"]["warnings"] == warned, "said once"


def test_a_length_at_odds_with_metres_is_said(run: Run) -> None:
    run.update(units="m")
    done = rescale(run, [length_of(run, 2.0)])
    (line,) = done.run.manifest["report"]["warnings"]
    assert line.startswith("the known lengths make the scene 2 times as large as the cues in metres say")
    assert done.lines[0].startswith("the scene is 2 times as large")
    assert rescale(run, []).run.manifest["report"]["warnings"] == [line]


def test_what_changed_in_words(run: Run) -> None:
    done = rescale(run, [length_of(run, 1.83)])
    assert done.lines[0].startswith("1 unit is 1.83 m +- ")
    assert done.lines[1:3] == ("camera path 0.4 units -> 0.732 m", "voxel 0.01 units -> 0.0183 m")
    assert len(done.lines) == 4
    assert done.lines[3].startswith(f"length {length_of(run, 1.0)}"[:20])


def test_settings_in_scene_units_follow(run: Run) -> None:
    """So that a cloud fused again is as fine as it was."""
    run.update(settings={"fusion": {"voxel": 0.02, "max_depth": None, "min_observations": 3}})
    rescale(run, [length_of(run, 2.5)])
    fusion = RunConfig.from_dict(run.manifest["settings"]).fusion
    assert (fusion.voxel, fusion.max_depth, fusion.min_observations) == (pytest.approx(0.05, rel=1e-4), None, 3)


def test_runs_without_sigma_cloud_or_path(run: Run) -> None:
    measure = length_of(run, 2.0)
    shutil.rmtree(run.path / "sigma")
    for name in ("cloud.ply", "trajectory.txt"):
        (run.path / name).unlink()
    with pytest.raises(UsageError, match="two frames, which --no-poses leaves apart"):
        rescale(run, [replace(measure, frame_b=4)])
    assert rescale(run, [measure]).estimate.factor == pytest.approx(2.0, rel=1e-5)
    assert sorted(f.name for f in run.path.iterdir()) == ["camera.json", "depth", "run.json"]


def test_clouds_kept_of_the_old_scale_go(run: Run) -> None:
    (run.path / "edits").mkdir()
    for name in ("001.npz", "abc.ply", "abc.json"):
        (run.path / "edits" / name).write_text("x")
    run.update(edits=[{"file": "001.npz", "pixels": 1}])
    rescale(run, [length_of(run, 2.0)])
    assert [f.name for f in (run.path / "edits").iterdir()] == ["001.npz"]


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("4,10,60,40,3=2", UsageError, "frame 3 is not in use .* nearest one is 2"),
        ("4,10,600,40,2=2", UsageError, "outside the 64x48 frames"),
        ("4,10@2,60,40@9=2", UsageError, "frame 9 is not in use"),
    ],
)
def test_refusals_leave_the_run(run: Run, text: str, error: type[Exception], says: str) -> None:
    before = contents(run.path)
    with pytest.raises(error, match=says):
        rescale(run, [parse_measure(text)])
    assert contents(run.path) == before


def test_more_refusals(run: Run) -> None:
    with pytest.raises(UsageError, match="no length is given"):
        rescale(run, [])
    flat = Measurement(2, (32.2, 24.2), (32.4, 24.4), 1.0)
    run.update(status="interrupted")
    with pytest.raises(InputError, match="not finished"):
        rescale(run, [flat])
    run.update(status="finished")
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(run.path / "depth" / "000002.png")
    with pytest.raises(GeometryError, match="no valid depth at its end"):
        rescale(run, [flat])


@pytest.mark.parametrize("fails_at", range(12))
def test_a_full_disk_leaves_the_run(run: Run, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    """Whichever of its writes fails: five new files, five swaps and the manifest; the twelfth does not happen."""
    measure, before, manifest = length_of(run, 2.0), contents(run.path), dict(run.manifest)
    real, calls = os.replace, 0

    def failing(*paths: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*paths)

    monkeypatch.setattr(os, "replace", failing)
    if fails_at == 11:
        rescale(run, [measure])
        assert calls == 11
        assert not list(run.path.glob(".*"))
        return
    with pytest.raises(OutputError, match="disk is full"):
        rescale(run, [measure])
    assert contents(run.path) == before
    assert run.manifest == manifest
    monkeypatch.undo()
    assert rescale(run, [measure]).estimate.factor == pytest.approx(2.0, rel=1e-5)


# -- the report -------------------------------------------------------------------------------------------------------


@given(st.sampled_from(("depth", "disparity", "log_depth", "metric")), st.floats(0.01, 100), st.floats(0.1, 2))
def test_scale_and_shift_follow_in_every_domain(domain: Domain, factor: float, scale: float) -> None:
    """Converted, they give the same depth in metres."""
    shift, sigma = 0.25, 0.01
    frames = {
        "scale": [scale, None],
        "shift": [shift, None],
        "scale_sigma": [sigma, None],
        "shift_sigma": [sigma, None],
    }
    found = report_in_metres({"alignment": {"frames": frames, "domain": domain, "units": "arbitrary"}}, factor)
    after = found["alignment"]["frames"]
    assert found["alignment"]["units"] == "m"
    assert [after[name][1] for name in frames] == [None] * 4
    values = np.linspace(0.5, 2, 5, dtype=np.float32)
    fits = [
        AffineFit(f["scale"][0], f["shift"][0], domain, np.eye(2), 0.0, np.ones(0, bool), "scale and shift")
        for f in (frames, after)
    ]
    np.testing.assert_allclose(fits[1].depth(values), factor * fits[0].depth(values), rtol=1e-4)
    relative = [f["scale_sigma"][0] / f["scale"][0] for f in (frames, after)]
    assert relative[0] == pytest.approx(relative[1], rel=1e-4)


def test_the_way_to_the_survey_stays(rng: np.random.Generator) -> None:
    T = synthetic.look((500, 200, 30), 0.3, 0.2)
    report = {"georeference": {"T_survey_scene": T.tolist(), "rms_m": 0.01}, "warnings": ["w"]}
    after = report_in_metres(report, 1.25)
    point = np.append(rng.normal(size=3), 1.0)
    there = np.array(after["georeference"]["T_survey_scene"]) @ (point * [1.25, 1.25, 1.25, 1])
    np.testing.assert_allclose(there, T @ point)
    assert (after["georeference"]["rms_m"], after["warnings"]) == (0.01, ["w"])
    assert report["georeference"]["T_survey_scene"] == T.tolist()


# -- and a run made by the pipeline -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Measurement]]:
    """A walk through a room, under poses in units of 0.4 m, and two true lengths: in a frame, and between two."""
    folder = tmp_path_factory.mktemp("rescale")
    clip = synthetic.Clip(synthetic.camera(240, 180), synthetic.walk(8))
    T, c = clip.T_world_camera, clip.camera
    np.savetxt(folder / "poses.txt", np.column_stack([clip.timestamps_s, T[:, :3, 3] / UNIT_M, quaternion_xyzw(T)]))
    config = RunConfig(
        camera=CameraConfig(intrinsics=(c.fx, c.fy, c.cx, c.cy)),
        poses=PoseConfig("file", folder / "poses.txt"),
        refine=RefineConfig(enabled=False),
    )
    with pytest.MonkeyPatch.context() as patch:
        oracle = synthetic.Oracle(clip, bend=0.05)
        patch.setattr("marigold3d.pipeline.load_estimator", lambda _: oracle)
        run = reconstruct(clip.write(folder / "walk.mp4"), folder / "run", config)
    lengths = []
    for frames in ((5, 5), (2, 6)):
        points = []
        for frame, (u, v) in zip(frames, ENDS, strict=True):
            z = clip.frames[frame][1][int(v), int(u)]
            ray = np.array([(u - c.cx) / c.fx, (v - c.cy) / c.fy, 1.0])
            points.append(T[frame][:3, :3] @ (z * ray) + T[frame][:3, 3])
        length = float(np.linalg.norm(points[1] - points[0]))
        lengths.append(Measurement(frames[0], *ENDS, round(length, 4), frame_b=frames[1]))
    return run, lengths


@pytest.fixture
def oracle(made: tuple[Run, list[Measurement]], monkeypatch: pytest.MonkeyPatch) -> synthetic.Oracle:
    clip = synthetic.Clip(synthetic.camera(240, 180), synthetic.walk(8))
    oracle = synthetic.Oracle(clip, bend=0.05)
    monkeypatch.setattr("marigold3d.pipeline.load_estimator", lambda _: oracle)
    return oracle


def check_same(found: Run, wanted: Run) -> None:
    """Two runs are the same scene, and say the same of it, within the rounding of depth maps."""
    a, b = found.manifest, wanted.manifest
    assert {name: a[name] for name in ("units", "settings", "edits", "views")} == {
        name: b[name] for name in ("units", "settings", "edits", "views")
    }
    for name in ("cameras", "lengths", "warnings"):
        same(a["report"][name], b["report"][name], 1e-3, name)
    same(a["report"]["alignment"], b["report"]["alignment"], 1e-3, "alignment")
    assert a["report"]["fusion"]["voxel"] == pytest.approx(b["report"]["fusion"]["voxel"], rel=1e-3)
    np.testing.assert_allclose(found.trajectory().T_world_camera, wanted.trajectory().T_world_camera, atol=1e-3)
    for i in wanted.frame_indices:
        one, other = found.depth(i), wanted.depth(i)
        np.testing.assert_array_equal(one.valid, other.valid)
        np.testing.assert_allclose(one.depth[one.valid], other.depth[one.valid], rtol=2e-3)
        assert one.sigma is not None
        assert other.sigma is not None
        np.testing.assert_allclose(one.sigma[one.valid], other.sigma[one.valid], rtol=0.02, atol=3e-4)
    one, other = found.cloud(), wanted.cloud()
    assert len(one) == pytest.approx(len(other), rel=0.01)
    np.testing.assert_allclose(one.points.mean(0), other.points.mean(0), atol=0.01)


def test_it_is_what_the_pipeline_makes_and_what_it_makes_again(
    made: tuple[Run, list[Measurement]], oracle: synthetic.Oracle, tmp_path: Path
) -> None:
    run, lengths = made
    fast, slow = (Run.open(shutil.copytree(run.path, tmp_path / name)) for name in ("fast", "slow"))
    done = rescale(fast, lengths)
    assert done.estimate.n == 2
    assert done.estimate.factor == pytest.approx(UNIT_M, rel=0.03)
    measures = tuple(map(str, lengths))
    slow = realign(slow, AlignConfig(measures=measures))
    check_same(fast, slow)
    kept = RunConfig.from_dict(fast.manifest["settings"]).align
    assert kept.measures == measures
    again = realign(Run.open(fast.path), kept)
    check_same(again, slow)
    assert oracle.seen == [], "depth was estimated again"
