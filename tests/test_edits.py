"""Edits of a finished run: what is painted leaves the cloud, nothing else does, and all can be taken back.

A camera walks past a ball in a room; the run is made once, every test edits a copy of it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from marigold3d import edits as module
from marigold3d.camera import project
from marigold3d.cli import main
from marigold3d.config import CameraConfig, FusionConfig, PoseConfig, RefineConfig, RunConfig, VideoConfig
from marigold3d.edits import CLOUDS_KEPT, Exclusion, edits, exclude, refuse, undo
from marigold3d.errors import GeometryError, InputError, OutputError, UsageError
from marigold3d.pipeline import reconstruct
from marigold3d.progress import Progress
from marigold3d.progress import run as drive
from marigold3d.rigid import inverse, quaternion_xyzw, transform
from marigold3d.store import Run
from marigold3d.types import BoolImage, PointCloud
from tests import synthetic

FRAMES, SIZE = 9, (160, 120)


@pytest.fixture(scope="module")
def clip() -> synthetic.Clip:
    return synthetic.Clip(synthetic.camera(*SIZE), synthetic.walk(FRAMES))


@pytest.fixture(scope="module")
def config(clip: synthetic.Clip, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    poses = tmp_path_factory.mktemp("poses") / "poses.txt"
    T, c = clip.T_world_camera, clip.camera
    np.savetxt(poses, np.column_stack([clip.timestamps_s, T[:, :3, 3], quaternion_xyzw(T)]))
    return RunConfig(
        camera=CameraConfig(intrinsics=(c.fx, c.fy, c.cx, c.cy)),
        poses=PoseConfig("file", poses, metric=True),
        refine=RefineConfig(enabled=False),
    )


@pytest.fixture
def oracle(clip: synthetic.Clip, monkeypatch: pytest.MonkeyPatch) -> synthetic.Oracle:
    oracle = synthetic.Oracle(clip)
    monkeypatch.setattr("marigold3d.pipeline.load_estimator", lambda _: oracle)
    return oracle


@pytest.fixture(scope="module")
def made(clip: synthetic.Clip, config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a clip with its finished run."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("marigold3d.pipeline.load_estimator", lambda _: synthetic.Oracle(clip))
        reconstruct(clip.write(folder / "walk.mp4"), folder / "run", config)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    return Run.open(shutil.copytree(made / "run", tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def on_ball(points: np.ndarray, near: float = 0.04) -> np.ndarray:
    return np.abs(np.linalg.norm(points - synthetic.BALL, axis=1) - synthetic.RADIUS) < near


def ball_mask(clip: synthetic.Clip, frame: int) -> BoolImage:
    """The pixels of a frame that show the ball, from the truth."""
    depth, T = clip.frames[frame][1], clip.T_world_camera[frame]
    height, width = depth.shape
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    c = clip.camera
    points = np.stack([(u - c.cx) / c.fx, (v - c.cy) / c.fy, np.ones_like(u)], -1) * depth[..., None]
    return on_ball(transform(T, points.reshape(-1, 3)), 1e-3).reshape(depth.shape)


def painted(cloud: PointCloud, clip: synthetic.Clip, frame: int, mask: BoolImage) -> BoolImage:
    """(N,) the points that a frame sees, by the truth, in painted pixels that are not at the mask's border."""
    inner: Any = binary_erosion(mask)
    points = transform(inverse(clip.T_world_camera[frame]), cloud.points.astype(float))
    uv = project(points, clip.camera)
    inside: BoolImage = np.asarray(np.all((uv > 0) & (uv < SIZE), axis=1))
    column, row = np.where(inside[:, None], uv, 0).astype(int).T
    seen: BoolImage = (
        inside & inner[row, column] & (np.abs(points[:, 2] / clip.frames[frame][1][row, column] - 1) < 0.03)
    )
    return seen


def full(value: bool = True) -> BoolImage:
    return np.full((SIZE[1], SIZE[0]), value)


def left_half() -> BoolImage:
    mask = full(False)
    mask[:, : SIZE[0] // 2] = True
    return mask


def away(a: PointCloud, b: PointCloud) -> np.ndarray:
    """Distance of each point of `a` from the nearest of `b`."""
    distance: np.ndarray = cKDTree(b.points).query(a.points)[0]
    return distance


def stages(steps: Any) -> list[str]:
    seen: list[Progress] = []
    drive(steps, seen.append)
    return [p.stage for p in seen]


# -- fusing again -----------------------------------------------------------------------------------------------------


def test_fusing_again_gives_the_same_cloud(run: Run) -> None:
    """Up to what 16-bit depth maps round."""
    before, report = run.cloud(), run.manifest["report"]["fusion"]
    assert set(run.manifest["views"]) == set(before.frame_index.tolist())
    drive(refuse(run))
    after, again = Run.open(run.path).cloud(), Run.open(run.path).manifest["report"]["fusion"]
    assert again["voxel"] == pytest.approx(report["voxel"], rel=1e-3)
    assert len(after) == again["points"] == pytest.approx(len(before), rel=0.01)
    for one, other in ((after, before), (before, after)):
        assert np.quantile(away(one, other), 0.5) < 0.01 * report["voxel"]
        assert np.quantile(away(one, other), 0.97) < 0.25 * report["voxel"]
    for name in ("dropped_edges", "dropped_uncertain", "dropped_inconsistent"):
        assert again[name] == pytest.approx(report[name], abs=1e-3)
    assert after.units == before.units == "m"


def test_other_settings_are_kept(run: Run) -> None:
    count = len(run.cloud())
    drive(refuse(run, FusionConfig(voxel=0.1)))
    after = Run.open(run.path)
    assert len(after.cloud()) < 0.5 * count
    assert after.manifest["settings"]["fusion"]["voxel"] == 0.1
    assert after.manifest["report"]["fusion"]["voxel"] == 0.1
    drive(refuse(after))
    assert Run.open(run.path).manifest["report"]["fusion"]["voxel"] == 0.1


def test_a_run_without_a_cloud_gets_one(run: Run, made: Path) -> None:
    (run.path / "cloud.ply").unlink()
    drive(refuse(run))
    assert len(Run.open(run.path).cloud()) == run.manifest["report"]["fusion"]["points"]


def test_a_run_that_does_not_say_its_views_fuses_all_frames(run: Run) -> None:
    run.manifest["views"] = [0, 4, 8]
    drive(refuse(run))
    assert set(run.cloud().frame_index.tolist()) <= {0, 4, 8}
    del run.manifest["views"]
    drive(refuse(run))
    assert len(set(run.cloud().frame_index.tolist())) > 6


# -- scopes -----------------------------------------------------------------------------------------------------------


def test_pixels_of_one_frame(run: Run) -> None:
    before, voxel = run.cloud(), run.manifest["report"]["fusion"]["voxel"]
    drive(exclude(run, Exclusion({4: full()})))
    after = run.cloud()
    assert 4 in before.frame_index
    assert 4 not in after.frame_index
    assert (away(before, after) < 0.1).mean() > 0.97, "the other frames see the same surfaces"
    assert run.manifest["report"]["fusion"]["voxel"] == pytest.approx(voxel, rel=1e-3), "what is left out still counts"


def test_the_same_pixels_of_every_frame(run: Run, clip: synthetic.Clip) -> None:
    """What only the left halves of the frames see is gone, whatever frame the mask was painted on."""
    voxel = run.manifest["report"]["fusion"]["voxel"]
    drive(exclude(run, Exclusion({3: left_half()}, "pixels")))
    points = run.cloud().points.astype(float)
    columns = np.stack([project(transform(inverse(T), points), clip.camera)[:, 0] for T in clip.T_world_camera])
    margin = 2 * voxel * clip.camera.fx  # a voxel's point may lie that far beside its pixels, px at unit depth
    assert (columns.max(0) > SIZE[0] / 2 - margin).all()
    assert len(points) > 500


def test_a_surface_leaves_every_frame(run: Run, clip: synthetic.Clip) -> None:
    """The ball is painted in one frame; all of it that this frame sees goes, and the room stays."""
    before = run.cloud()
    mask = ball_mask(clip, 4)
    assert 200 < mask.sum() < 0.3 * mask.size
    drive(exclude(run, Exclusion({4: mask}, "surface")))
    after = run.cloud()
    was, now = painted(before, clip, 4, mask), painted(after, clip, 4, mask)
    assert was.sum() > 500
    assert now.sum() < 0.01 * was.sum()
    assert on_ball(after.points).sum() < 0.15 * on_ball(before.points).sum(), "what is left is its sides"
    room = before.select(~on_ball(before.points, 0.15))
    assert (away(room, after) < 0.05).mean() > 0.97
    other = Run.open(shutil.copytree(run.path, run.path.with_name("other")))
    drive(undo(other))
    drive(exclude(other, Exclusion({4: mask}, "frame")))
    assert painted(other.cloud(), clip, 4, mask).sum() > 0.7 * was.sum(), "the other frames still show it"


def test_edits_add_up(run: Run, clip: synthetic.Clip) -> None:
    drive(exclude(run, Exclusion({4: ball_mask(clip, 4)}, "surface")))
    drive(exclude(run, Exclusion({2: full(), 3: full()})))
    cloud = Run.open(run.path).cloud()
    assert not {2, 3} & set(cloud.frame_index.tolist())
    assert not painted(cloud, clip, 4, ball_mask(clip, 4)).sum()
    assert [e["scope"] for e in edits(Run.open(run.path))] == ["surface", "frame"]
    assert edits(run)[1]["frames"] == [2, 3]
    assert edits(run)[1]["pixels"] == 2 * SIZE[0] * SIZE[1]


# -- taking back ------------------------------------------------------------------------------------------------------


def test_undo_and_redo_give_the_same_bytes_without_fusing(run: Run, clip: synthetic.Clip) -> None:
    before = contents(run.path)
    exclusion = Exclusion({4: ball_mask(clip, 4)}, "surface")
    assert stages(exclude(run, exclusion)) == ["fuse"] * len(run.manifest["views"])
    changed = {name for name, data in contents(run.path).items() if before.get(name) != data}
    assert {n for n in changed if not n.startswith("edits/")} == {"cloud.ply", "run.json"}
    edited = (run.path / "cloud.ply").read_bytes()
    assert stages(undo(run)) == []
    assert (run.path / "cloud.ply").read_bytes() == before["cloud.ply"]
    again = Run.open(run.path)
    assert edits(again) == []
    assert again.manifest["report"] == json.loads(before["run.json"])["report"]
    assert not list((run.path / "edits").glob("*.npz"))
    assert stages(exclude(again, exclusion)) == []
    assert (run.path / "cloud.ply").read_bytes() == edited
    assert len(edits(Run.open(run.path))) == 1
    drive(undo(again))
    with pytest.raises(UsageError, match="no edits"):
        drive(undo(again))


def test_clouds_of_old_states_do_not_pile_up(run: Run) -> None:
    views = set(run.cloud().frame_index.tolist())
    for row in range(CLOUDS_KEPT + 2):
        mask = full(False)
        mask[10 * row : 10 * row + 8] = True
        drive(exclude(run, Exclusion({4: mask})))
    assert len(list((run.path / "edits").glob("*.ply"))) == CLOUDS_KEPT
    assert len(list((run.path / "edits").glob("*.npz"))) == CLOUDS_KEPT + 2
    for _ in range(CLOUDS_KEPT + 2):  # those whose cloud is gone are fused
        drive(undo(run))
    assert set(run.cloud().frame_index.tolist()) == views


def test_a_kept_cloud_of_other_units_is_not_taken(run: Run) -> None:
    drive(exclude(run, Exclusion({4: full()})))
    encoding = json.loads((run.path / "depth" / "encoding.json").read_text())
    (run.path / "depth" / "encoding.json").write_text(json.dumps({**encoding, "scale": 2 * encoding["scale"]}))
    assert stages(undo(run)) == ["fuse"] * len(run.manifest["views"])


# -- whole or not at all ----------------------------------------------------------------------------------------------


def test_closing_on_the_way_changes_nothing(run: Run, clip: synthetic.Clip) -> None:
    before = contents(run.path)
    steps = exclude(run, Exclusion({4: ball_mask(clip, 4)}, "surface"))
    for _ in range(4):
        next(steps)
    steps.close()
    assert contents(run.path) == before


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["masks", "cloud", "before", "placing", "manifest"])
@pytest.mark.parametrize("already", [False, True])
def test_a_full_disk_changes_nothing(
    run: Run, clip: synthetic.Clip, monkeypatch: pytest.MonkeyPatch, where: str, already: bool
) -> None:
    if already:
        drive(exclude(run, Exclusion({2: full()})))
    before, manifest = contents(run.path), json.dumps(run.manifest)
    broken: dict[str, tuple[Any, str, Callable[..., Any]]] = {
        "masks": (np, "savez_compressed", no_space),
        "cloud": (module, "write_ply", no_space),
        "before": (module, "_copy", no_space),
        "placing": (os, "replace", no_space),
        "manifest": (Run, "update", no_space),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*broken[where])
        with pytest.raises((OSError, OutputError)):
            drive(exclude(run, Exclusion({4: ball_mask(clip, 4)}, "surface")))
    assert contents(run.path) == before
    assert json.dumps(run.manifest) == manifest
    drive(exclude(run, Exclusion({4: ball_mask(clip, 4)}, "surface")))
    assert len(edits(Run.open(run.path))) == 1 + already


def test_masks_that_leave_nothing(run: Run) -> None:
    before = contents(run.path)
    with pytest.raises(GeometryError, match="nothing is left"):
        drive(exclude(run, Exclusion({0: full()}, "pixels")))
    assert contents(run.path) == before


def test_a_clip_that_is_gone_or_another_one(run: Run, made: Path, tmp_path: Path) -> None:
    run.update(clip=str(tmp_path / "gone.mp4"))
    before = contents(run.path)
    for steps in (refuse(run), exclude(run, Exclusion({0: full()}))):
        with pytest.raises(InputError, match=r"gone\.mp4"):
            drive(steps)
    other = synthetic.Clip(synthetic.camera(96, 72), synthetic.walk(FRAMES)).write(tmp_path / "other.mp4")
    short = synthetic.Clip(synthetic.camera(*SIZE), synthetic.walk(3)).write(tmp_path / "short.mp4")
    for file in (other, short):
        run.manifest["clip"] = str(file)
        with pytest.raises(InputError, match=file.name):
            drive(refuse(run))
    run.manifest["clip"] = str(tmp_path / "gone.mp4")
    assert contents(run.path) == before


@pytest.mark.parametrize(
    ("exclusion", "words"),
    [
        (lambda: Exclusion({0: full(False)}), "nothing is painted"),
        (lambda: Exclusion({}), "nothing is painted"),
        (lambda: Exclusion({0: full(), 1: full()[:50]}), "differ in size"),
        (lambda: Exclusion({0: full().astype(float)}), "bool"),
        (lambda: Exclusion({0: full()}, "room"), "scope"),  # type: ignore[arg-type]
        (lambda: Exclusion({0: full()[::2, ::2]}), "80x60"),
        (lambda: Exclusion({99: full()}, "surface"), "frame 99"),
    ],
)
def test_masks_that_make_no_sense(run: Run, exclusion: Callable[[], Exclusion], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        drive(exclude(run, exclusion()))


def test_a_frame_that_is_not_fused_cannot_be_edited_alone(run: Run) -> None:
    run.manifest["views"] = [0, 4, 8]
    with pytest.raises(UsageError, match=r"frame 3 .*0, 4, 8"):
        drive(exclude(run, Exclusion({3: full()})))
    drive(exclude(run, Exclusion({3: left_half()}, "surface")))


def test_runs_that_cannot_be_edited(run: Run) -> None:
    (run.path / "trajectory.txt").unlink()
    with pytest.raises(InputError, match="--no-poses"):
        drive(refuse(run))
    run.update(status="interrupted")
    for steps in (refuse(run), undo(run), exclude(run, Exclusion({0: full()}))):
        with pytest.raises(InputError, match="not finished"):
            drive(steps)


def test_masks_that_are_lost_can_be_taken_back(run: Run) -> None:
    drive(exclude(run, Exclusion({4: full()})))
    (run.path / "edits" / "001.npz").unlink()
    with pytest.raises(InputError, match="--undo"):
        drive(refuse(run))
    drive(undo(run))
    assert 4 in run.cloud().frame_index


# -- masks on disk ----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path, rng: np.random.Generator) -> None:
    masks = {7: rng.random((13, 21)) < 0.3, 2: rng.random((13, 21)) < 0.5, 5: np.zeros((13, 21), bool)}
    whole = Exclusion(masks, "pixels")
    whole.write(tmp_path / "001.npz")
    found = Exclusion.read(tmp_path / "001.npz", "pixels")
    assert list(found.masks) == [2, 7]
    for frame in (2, 7):
        np.testing.assert_array_equal(found.masks[frame], masks[frame])
    assert found.entry(3, "c") == whole.entry(3, "c")
    assert replace(found, scope="frame").entry(3, "c")["digest"] != whole.entry(3, "c")["digest"]
    assert whole.entry(3, "c")["pixels"] == masks[2].sum() + masks[7].sum()
    (tmp_path / "002.npz").write_bytes(b"no")
    with pytest.raises(InputError, match=r"002\.npz"):
        Exclusion.read(tmp_path / "002.npz", "frame")


def test_masks_of_another_size() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1, 2] = True
    large = Exclusion({0: mask}).resized(16, 12).masks[0]
    expected = np.zeros((12, 16), bool)
    expected[2:4, 4:6] = True
    np.testing.assert_array_equal(large, expected)
    np.testing.assert_array_equal(Exclusion({0: large}).resized(8, 6).masks[0], mask)


# -- runs made anew ---------------------------------------------------------------------------------------------------


def test_a_run_made_anew_keeps_its_edits(
    run: Run, clip: synthetic.Clip, config: RunConfig, made: Path, oracle: synthetic.Oracle
) -> None:
    drive(exclude(run, Exclusion({4: ball_mask(clip, 4)}, "surface")))
    drive(exclude(run, Exclusion({2: full()})))
    before = edits(run)
    smaller = replace(config, video=VideoConfig(max_side=120))
    again = reconstruct(made / "walk.mp4", run.path, smaller, overwrite=True)
    assert edits(again) == before
    assert again.depth(0).depth.shape == (90, 120)
    cloud = again.cloud()
    assert 2 not in cloud.frame_index
    assert on_ball(cloud.points).sum() < 0.1 * len(cloud) * 0.1
    assert not list((run.path / "edits").glob("*.ply")), "clouds of the depth before are stale"
    drive(undo(again))
    drive(undo(again))
    assert on_ball(again.cloud().points).sum() > 80


def test_edits_of_another_clip_are_dropped_and_that_is_said(
    run: Run, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(exclude(run, Exclusion({4: full()})))
    other = synthetic.Clip(synthetic.camera(*SIZE), synthetic.walk(FRAMES, length=1.1))
    monkeypatch.setattr("marigold3d.pipeline.load_estimator", lambda _: synthetic.Oracle(other))
    again = reconstruct(other.write(tmp_path / "other.mp4"), run.path, config, overwrite=True)
    assert edits(again) == []
    assert [line for line in again.manifest["report"]["warnings"] if "1 edits" in line and "another clip" in line]
    assert not (run.path / "edits").exists()
    assert 4 in again.cloud().frame_index


def test_an_overwrite_that_fails_keeps_the_edits(
    run: Run, config: RunConfig, made: Path, oracle: synthetic.Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(exclude(run, Exclusion({4: full()})))
    before = {n: b for n, b in contents(run.path).items() if not n.startswith("cache/") and n != "run.json"}
    monkeypatch.setattr("marigold3d.pipeline.fuse_cloud", no_space)
    with pytest.raises(OSError, match="No space"):
        reconstruct(made / "walk.mp4", run.path, config, overwrite=True)
    after = {n: b for n, b in contents(run.path).items() if not n.startswith("cache/") and n != "run.json"}
    assert after == before
    assert edits(Run.open(run.path)) == edits(run)
    drive(undo(Run.open(run.path)))


# -- as a user types it -----------------------------------------------------------------------------------------------


class Said(NamedTuple):
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    def call(*args: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["marigold3d", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            main()
        return Said(int(left.value.code or 0), *capsys.readouterr())

    return call


def test_masks_from_a_folder(run: Run, clip: synthetic.Clip, tmp_path: Path, cli: Callable[..., Said]) -> None:
    """Of another size, grey or with colours; and back."""
    (tmp_path / "masks").mkdir()
    large = Image.fromarray(ball_mask(clip, 4).astype(np.uint8) * 255).resize((320, 240), Image.Resampling.NEAREST)
    large.save(tmp_path / "masks" / "000004.png")
    Image.new("RGB", (32, 24)).save(tmp_path / "masks" / "000005.png")
    before = (run.path / "cloud.ply").read_bytes()
    said = cli("fuse", run.path, "--masks", tmp_path / "masks", "--mask-scope", "surface", "-q")
    assert (said.code, said.stdout) == (0, ""), said.stderr
    assert f"edits     1: {ball_mask(clip, 4).sum():,} painted pixels" in said.stderr
    assert painted(Run.open(run.path).cloud(), clip, 4, ball_mask(clip, 4)).sum() < 5
    said = cli("fuse", run.path, "--undo", "--json", "-q")
    assert said.code == 0, said.stderr
    printed = json.loads(said.stdout)
    assert printed["edits"] == []
    assert printed["fusion"] == run.manifest["report"]["fusion"]
    assert (run.path / "cloud.ply").read_bytes() == before
    said = cli("fuse", run.path, "--undo")
    assert (said.code, said.stderr.count("\n")) == (2, 1)
    assert "no edits" in said.stderr


def test_settings_and_masks_together(run: Run, tmp_path: Path, cli: Callable[..., Said]) -> None:
    (tmp_path / "masks").mkdir()
    for frame in (4, 5):
        Image.new("RGBA", (16, 12), (0, 9, 0, 255)).save(tmp_path / "masks" / f"{frame:06d}.png")
    options = ["--voxel", "0.08", "--max-depth", "4", "--consistency", "0.05", "--min-observations", "3"]
    said = cli("fuse", run.path, *options, "--masks", tmp_path / "masks", "--json")
    assert said.code == 0, said.stderr
    assert "Fusing the cloud" in said.stderr
    report = json.loads(said.stdout)
    assert report["fusion"]["voxel"] == 0.08
    assert report["fusion"]["max_depth"] == 4
    assert report["edits"][0]["frames"] == [4, 5]
    kept = Run.open(run.path).manifest["settings"]["fusion"]
    assert (kept["consistency_ratio"], kept["min_observations"]) == (0.05, 3)
    assert Run.open(run.path).cloud().observations.min() >= 3


def test_what_cannot_be_fused_is_one_line(run: Run, tmp_path: Path, cli: Callable[..., Said]) -> None:
    before = contents(run.path)
    (tmp_path / "none").mkdir()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "mask.png").write_bytes(b"no picture")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "000004.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    Image.new("L", (16, 12)).save(tmp_path / "empty" / "000004.png")
    cases: list[tuple[int, str, list[str | Path]]] = [
        (3, "no PNG", ["--masks", tmp_path / "none"]),
        (3, "mask.png", ["--masks", tmp_path / "wrong"]),
        (3, "000004.png", ["--masks", tmp_path / "damaged"]),
        (2, "nothing is painted", ["--masks", tmp_path / "empty"]),
        (2, "--masks", ["--mask-scope", "surface"]),
        (2, "--undo", ["--undo", "--voxel", "0.1"]),
        (2, "voxel must be positive", ["--voxel", "-1"]),
        (6, "--min-observations", ["--min-observations", "1000000"]),
    ]
    for code, words, options in cases[:-1]:
        said = cli("fuse", run.path, *options, "-q")
        assert (said.code, said.stderr.count("\n")) == (code, 1), said.stderr
        assert words in said.stderr
        assert "Traceback" not in said.stderr
    assert cli("fuse", tmp_path / "none").code == 3
    assert contents(run.path) == before
