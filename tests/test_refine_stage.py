"""Refinement as a stage of a run: resumed where it was, made anew when settings change, left out where it cannot help.

Poses are imported, so that nothing depends on structure from motion; depth is bent, so that refining has work to do.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from marigold3d.cli import main
from marigold3d.config import AlignConfig, CameraConfig, FusionConfig, PoseConfig, RefineConfig, RunConfig
from marigold3d.multiview.sweep import sweep
from marigold3d.pipeline import reconstruct, reconstruct_steps
from marigold3d.progress import Progress
from marigold3d.rigid import quaternion_xyzw, umeyama
from marigold3d.store import FrameArray, Run
from marigold3d.video import write_video
from tests import synthetic

SIZE = (160, 120)
BEND = 0.1  # of the log depth, left in by an alignment without a field
COARSE = RefineConfig(neighbours=3, max_side=96)  # fast


class Scene(NamedTuple):
    """A clip in `video` with its exact poses in `poses`."""

    clip: synthetic.Clip
    folder: Path

    @property
    def video(self) -> Path:
        return self.folder / "clip.mp4"

    @property
    def poses(self) -> Path:
        return self.folder / "poses.txt"


class Swept(NamedTuple):
    """A finished run: how often a sweep was begun, and the first and last count of each stage's progress."""

    run: Run
    sweeps: int
    first: dict[str, int]
    last: dict[str, int]


Count = Callable[..., Swept]
PATIENT = ("sweep", "refine", "between")  # stages that report without a result while they wait for one


def scene_of(folder: Path, T_world_camera: np.ndarray) -> Scene:
    scene = Scene(synthetic.Clip(synthetic.camera(*SIZE), T_world_camera), folder)
    scene.clip.write(scene.video)
    save_poses(scene.poses, scene.clip, T_world_camera)
    return scene


def save_poses(file: Path, clip: synthetic.Clip, T_world_camera: np.ndarray) -> Path:
    np.savetxt(file, np.column_stack([clip.timestamps_s, T_world_camera[:, :3, 3], quaternion_xyzw(T_world_camera)]))
    return file


def config_of(scene: Scene, poses: Path | None = None, refine: RefineConfig = COARSE) -> RunConfig:
    c = scene.clip.camera
    return RunConfig(
        camera=CameraConfig(intrinsics=(c.fx, c.fy, c.cx, c.cy)),
        poses=PoseConfig("file", poses or scene.poses),
        align=AlignConfig(field=False),
        refine=refine,
    )


def disturbed(T_world_camera: np.ndarray, degrees: float, step: float = 0.0) -> np.ndarray:
    """Each pose turned by `degrees` and moved by `step`, each about and along an axis of its own."""
    rng = np.random.default_rng(1)
    axes = rng.normal(size=(2, len(T_world_camera), 3))
    axes /= np.linalg.norm(axes, axis=2, keepdims=True)
    T = T_world_camera.copy()
    T[:, :3, :3] = T[:, :3, :3] @ Rotation.from_rotvec(np.radians(degrees) * axes[0]).as_matrix()
    T[:, :3, 3] += step * axes[1]
    return T


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return scene_of(tmp_path_factory.mktemp("refine"), synthetic.walk(9))


@pytest.fixture(scope="module")
def count(scene: Scene) -> Iterator[Count]:
    """`reconstruct` with the oracle of the scene, or of another `clip`; it counts sweeps."""
    with pytest.MonkeyPatch.context() as patch:
        sweeps: list[int] = []

        def counted(*args: Any, **kwargs: Any) -> Any:
            sweeps.append(1)
            return sweep(*args, **kwargs)

        def call(*args: Any, clip: synthetic.Clip = scene.clip, **kwargs: Any) -> Swept:
            installed(clip, patch)
            sweeps.clear()
            seen: list[Progress] = []
            run = reconstruct(*args, on_progress=seen.append, **kwargs)
            made = [p for p in seen if p.payload is not None or p.stage not in PATIENT]
            last = {p.stage: p.done for p in seen}
            return Swept(run, len(sweeps), {p.stage: p.done for p in reversed(made)}, last)

        patch.setattr("marigold3d.multiview.refine.sweep", counted)
        installed(scene.clip, patch)
        yield call


def installed(clip: synthetic.Clip, patch: pytest.MonkeyPatch) -> None:
    oracle = synthetic.Oracle(clip, bend=BEND)
    patch.setattr("marigold3d.pipeline.load_estimator", lambda _: oracle)


def interrupted_at(stage: str, done: int, *args: Any) -> None:
    """Start a run, or continue it, and close it at that point, as a cancel button does."""
    steps = reconstruct_steps(*args)
    for progress in steps:
        if (progress.stage, progress.done) == (stage, done):
            steps.close()
            for worker in threading.enumerate():  # what was under way is dropped, but it would be counted
                if worker.name.startswith("ThreadPoolExecutor"):
                    worker.join()
            return
    pytest.fail(f"the run never came to {stage} {done}")


@pytest.fixture(scope="module")
def begun(scene: Scene, count: Count) -> Path:
    """A run stopped before refinement: copies of it have the same points, which other threads would find otherwise."""
    interrupted_at("apply", 1, scene.video, scene.folder / "begun", config_of(scene))
    return scene.folder / "begun"


@pytest.fixture(scope="module")
def whole(scene: Scene, count: Count, begun: Path) -> Swept:
    """`begun` run to its end without a stop."""
    return count(scene.video, shutil.copytree(begun, scene.folder / "whole"), config_of(scene))


@pytest.fixture
def copy(begun: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


def results(run: Path) -> dict[str, bytes]:
    """The products, and the refined depth of the cache."""
    files = [f for f in sorted(run.rglob("*")) if f.is_file() and f.name != "run.json"]
    names = {f.relative_to(run).as_posix(): f for f in files}
    kept = ("cache/arrays.zarr/refined/", "cache/arrays.zarr/refined_sigma/")
    return {n: f.read_bytes() for n, f in names.items() if not n.startswith("cache/") or n.startswith(kept)}


def cached(run: Run, name: str, position: int) -> np.ndarray:
    """Depth of a stage, or its sigma, in the run's cache, NaN where it is invalid."""
    count = len(run.frame_indices)
    return FrameArray(run.cache / "arrays.zarr" / name, (count, SIZE[1], SIZE[0]), "a")[position]


def products_show(run: Run, name: str) -> bool:
    """Whether the depth maps for people are the cached depth `name`, up to the rounding and range of their format."""
    same = []
    for position in run.frame_indices:
        shown, kept = run.depth(position), cached(run, name, position)
        step = run.encoding().scale
        same.append(np.array_equal(shown.valid, np.isfinite(kept) & (kept < 65535.5 * step)))
        same.append(bool(np.all(np.abs(shown.depth - kept)[shown.valid] < step)))
    return all(same)


def error(run: Run, name: str, clip: synthetic.Clip) -> float:
    """Median relative error of the cached depth `name`, over all frames."""
    off = [cached(run, name, i) / z - 1 for i, (_, z) in enumerate(clip.frames)]
    return float(np.nanmedian(np.abs(off)))


def warnings_of(run: Run) -> str:
    return "\n".join(run.manifest["report"]["warnings"])


# -- a run to its end -------------------------------------------------------------------------------------------------


def test_products_are_the_refined_depth_and_nearer_to_the_truth(whole: Swept, scene: Scene) -> None:
    assert whole.sweeps == whole.run.manifest["report"]["cameras"]["keyframes"] >= 5
    assert products_show(whole.run, "refined")
    assert not products_show(whole.run, "aligned")
    aligned, refined = (error(whole.run, name, scene.clip) for name in ("aligned", "refined"))
    assert refined < 0.5 * aligned
    assert warnings_of(whole.run) == ""


def test_the_report_tells_what_was_refined(whole: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    report = whole.run.manifest["report"]
    found = report["refinement"]
    assert 0.7 < found["share_agreed"] <= 1
    assert 0.5 < found["share_from_views"] <= 1
    assert found["held_out"]["n"] > 100
    assert found["held_out"]["abs_rel"] < 0.7 * report["alignment"]["held_out"]["abs_rel"]
    assert found["photometric_residual_px"] < 0.2
    assert report["seconds"]["refine"] == whole.run.manifest["seconds"]["refine"] > 0
    said = info(whole.run.path, capsys)
    assert f"{found['share_agreed']:.0%} of the pixels seen alike by several views" in said
    assert f"{found['share_from_views']:.0%} decided by them" in said
    assert f"refined   on {found['held_out']['n']:,} held-out point sightings" in said
    assert "refine " in next(line for line in said.splitlines() if line.startswith("  time"))


def info(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["marigold3d", "info", str(run)])
        with pytest.raises(SystemExit) as left:
            main()
    assert not left.value.code
    return capsys.readouterr().out


# -- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "done", "kept"), [("sweep", 3, 3), ("refine", 2, None), ("between", 1, None)])
def test_an_interrupted_refinement_resumes_where_it_was(
    whole: Swept, scene: Scene, count: Count, copy: Path, stage: str, done: int, kept: int | None
) -> None:
    """Sweeps, keyframes and frames between that are kept are not made again; the result is the same bytes."""
    interrupted_at(stage, done, scene.video, copy, config_of(scene))
    assert Run.open(copy).manifest["status"] == "interrupted"
    resumed = count(scene.video, copy, config_of(scene))
    assert resumed.sweeps == (0 if kept is None else whole.sweeps - kept)
    assert resumed.first[stage] == done + 1
    assert resumed.last[stage] == whole.last[stage]
    assert results(copy) == results(whole.run.path)
    assert resumed.run.manifest["report"]["refinement"] == whole.run.manifest["report"]["refinement"]


def test_a_refinement_interrupted_again_and_again_ends(whole: Swept, scene: Scene, count: Count, copy: Path) -> None:
    for stage, done in (("sweep", 1), ("sweep", 4), ("agree", 2), ("refine", 1), ("refine", whole.last["refine"])):
        interrupted_at(stage, done, scene.video, copy, config_of(scene))
    resumed = count(scene.video, copy, config_of(scene))
    assert resumed.sweeps == 0
    assert results(copy) == results(whole.run.path)


@pytest.mark.parametrize("changed", ["neighbours", "max_side", "alignment"])
def test_other_settings_do_not_reuse_the_old_sweeps(
    whole: Swept, scene: Scene, count: Count, copy: Path, changed: str
) -> None:
    config = config_of(scene)
    interrupted_at("refine", 1, scene.video, copy, config)
    other = {
        "neighbours": replace(config, refine=replace(COARSE, neighbours=2)),
        "max_side": replace(config, refine=replace(COARSE, max_side=80)),
        "alignment": replace(config, align=AlignConfig(field=True)),
    }[changed]
    again = count(scene.video, copy, other)
    assert again.sweeps == whole.sweeps
    assert again.first["sweep"] == again.first["refine"] == again.first["between"] == 1
    assert results(copy) != results(whole.run.path)


def test_other_fusion_settings_reuse_all_of_the_refinement(
    whole: Swept, scene: Scene, count: Count, tmp_path: Path
) -> None:
    finished = shutil.copytree(whole.run.path, tmp_path / "run")
    config = replace(config_of(scene), fusion=FusionConfig(voxel=0.1))
    again = count(scene.video, finished, config, overwrite=True)
    assert again.sweeps == 0
    assert not {"sweep", "refine", "between"} & set(again.last)
    before, after = results(whole.run.path), results(finished)
    assert {n for n in before if before[n] != after[n]} == {"cloud.ply"}
    assert again.run.manifest["report"]["refinement"] == whole.run.manifest["report"]["refinement"]


# -- left out ---------------------------------------------------------------------------------------------------------


def test_without_refinement_products_are_the_aligned_depth(
    whole: Swept, scene: Scene, count: Count, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(scene, refine=RefineConfig(enabled=False))
    plain = count(scene.video, copy, config)
    assert plain.sweeps == 0
    assert "refinement" not in plain.run.manifest["report"]
    assert "refined" not in info(copy, capsys)
    assert products_show(plain.run, "aligned")
    assert (copy / "cloud.ply").read_bytes() != (whole.run.path / "cloud.ply").read_bytes()
    assert (copy / "trajectory.txt").read_bytes() == (whole.run.path / "trajectory.txt").read_bytes()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], RefineConfig()),
        (["--no-refine"], RefineConfig(enabled=False)),
        (["--refine-poses"], RefineConfig(poses=True)),
    ],
)
def test_the_options_are_the_settings(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: RefineConfig
) -> None:
    given: list[RunConfig] = []

    def stopped(_: object, __: object, config: RunConfig, **___: object) -> Run:
        given.append(config)
        raise SystemExit(0)

    monkeypatch.setattr("marigold3d.pipeline.reconstruct", stopped)
    argv = ["marigold3d", "video", str(scene.video), "-o", str(tmp_path / "run"), "-q", *options]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        main()
    assert [config.refine for config in given] == [expected]


def test_a_turn_on_the_spot_keeps_its_aligned_depth(count: Count, tmp_path: Path) -> None:
    turn = scene_of(tmp_path, synthetic.pan(9))
    done = count(turn.video, tmp_path / "run", config_of(turn), clip=turn.clip)
    assert "too little parallax" in warnings_of(done.run)
    assert done.sweeps == 0
    assert products_show(done.run, "aligned")
    assert "share_agreed" not in done.run.manifest["report"]["refinement"]


# -- poses that do not fit --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ill_posed(scene: Scene, count: Count) -> Swept:
    """With poses each of which is turned by a degree."""
    poses = save_poses(scene.folder / "turned.txt", scene.clip, disturbed(scene.clip.T_world_camera, 1.0))
    return count(scene.video, scene.folder / "turned", config_of(scene, poses))


def said_to_be_wrong(run: Run) -> bool:
    return any(
        sentence in warnings_of(run)
        for sentence in ("the imported poses do not fit the pictures", "matched views hardly agree")
    )


def test_turned_poses_are_named(ill_posed: Swept, whole: Swept) -> None:
    assert ill_posed.run.finished
    assert said_to_be_wrong(ill_posed.run)
    assert not said_to_be_wrong(whole.run)
    wrong, right = (r.run.manifest["report"]["refinement"] for r in (ill_posed, whole))
    assert wrong["photometric_residual_px"] > 5 * right["photometric_residual_px"]
    assert wrong.get("share_agreed", 0) < 0.8 * right["share_agreed"]


@pytest.fixture(scope="module")
def backwards(scene: Scene, count: Count) -> Swept:
    """With the poses of the same walk in the other direction."""
    poses = save_poses(scene.folder / "backwards.txt", scene.clip, scene.clip.T_world_camera[::-1])
    return count(scene.video, scene.folder / "backwards", config_of(scene, poses))


def test_poses_of_another_path_are_named(backwards: Swept, whole: Swept) -> None:
    assert backwards.run.finished
    assert said_to_be_wrong(backwards.run)
    wrong, right = (r.run.manifest["report"]["refinement"] for r in (backwards, whole))
    assert wrong["photometric_residual_px"] > 10 * right["photometric_residual_px"]
    assert wrong.get("share_agreed", 0) < 0.5 * right["share_agreed"]


# -- adjusting poses --------------------------------------------------------------------------------------------------


class Adjusting(NamedTuple):
    """A run before refinement, with poses a little off, and its settings."""

    begun: Path
    config: RunConfig
    given: np.ndarray


@pytest.fixture(scope="module")
def adjusting(scene: Scene, count: Count) -> Adjusting:
    off = disturbed(scene.clip.T_world_camera, 0.3, 0.02)
    poses = save_poses(scene.folder / "off.txt", scene.clip, off)
    config = config_of(scene, poses, replace(COARSE, poses=True))
    interrupted_at("apply", 1, scene.video, scene.folder / "off", config)
    return Adjusting(scene.folder / "off", config, off)


@pytest.fixture(scope="module")
def adjusted(scene: Scene, count: Count, adjusting: Adjusting) -> Swept:
    return count(scene.video, shutil.copytree(adjusting.begun, scene.folder / "adjusted"), adjusting.config)


def path_error(T_world_camera: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance of the camera centres from the true ones, after the best similarity."""
    fit = umeyama(T_world_camera[:, :3, 3], truth[:, :3, 3])
    return float(np.linalg.norm(fit.apply(T_world_camera[:, :3, 3]) - truth[:, :3, 3], axis=1).mean())


def keyframes_of(run: Run) -> np.ndarray:
    """Their positions: the frames between have errors of their own, which no correction of keyframes can know."""
    return run.load_arrays("cameras")["keyframes"]


def turns_deg(T_world_camera: np.ndarray) -> np.ndarray:
    """Angles between each camera and the next, which do not depend on the world's frame."""
    R = T_world_camera[:, :3, :3]
    return np.degrees(Rotation.from_matrix(np.swapaxes(R[:-1], 1, 2) @ R[1:]).magnitude())


def test_poses_a_little_off_are_adjusted(adjusted: Swept, adjusting: Adjusting, scene: Scene) -> None:
    found = adjusted.run.manifest["report"]["refinement"]["adjusted_poses"]
    before, after = found["held_out_rms_px"]
    assert found["kept"] is True
    assert after < 0.5 * before
    assert found["focal_factor"] == 1, "the focal length was given"
    rows = keyframes_of(adjusted.run)
    paths = (scene.clip.T_world_camera, adjusting.given, adjusted.run.trajectory().T_world_camera)
    truth, given, path = (T[rows] for T in paths)
    assert path_error(path, truth) < 0.5 * path_error(given, truth)
    off = [np.abs(turns_deg(T) - turns_deg(truth)).mean() for T in (given, path)]
    assert off[1] < 0.5 * off[0]
    assert not said_to_be_wrong(adjusted.run)
    assert adjusted.run.manifest["report"]["refinement"]["share_agreed"] > 0.7


def test_a_run_that_adjusts_resumes_too(
    adjusted: Swept, adjusting: Adjusting, scene: Scene, count: Count, tmp_path: Path
) -> None:
    copy = shutil.copytree(adjusting.begun, tmp_path / "run")
    interrupted_at("sweep", 3, scene.video, copy, adjusting.config)
    resumed = count(scene.video, copy, adjusting.config)
    assert resumed.sweeps == adjusted.sweeps - 3
    assert results(copy) == results(adjusted.run.path)


def test_exact_poses_are_left_alone(whole: Swept, scene: Scene, count: Count, copy: Path) -> None:
    done = count(scene.video, copy, config_of(scene, refine=replace(COARSE, poses=True)))
    found = done.run.manifest["report"]["refinement"]["adjusted_poses"]
    assert found["kept"] is False
    assert "were not adjusted" in warnings_of(done.run)
    before, after = found["held_out_rms_px"]
    assert before - after < 0.01
    for name in ("trajectory.txt", "camera.json", "cloud.ply"):
        assert (copy / name).read_bytes() == (whole.run.path / name).read_bytes(), name


# -- known to fail ----------------------------------------------------------------------------------------------------


def test_poses_of_another_path_leave_the_aligned_depth(backwards: Swept) -> None:
    assert products_show(backwards.run, "aligned")


def test_a_clip_without_texture_is_said_to_be(count: Count, scene: Scene, tmp_path: Path) -> None:
    grey = Scene(scene.clip, tmp_path)
    write_video(grey.video, (np.full_like(rgb, 128) for rgb, _ in scene.clip.frames), synthetic.FPS)
    config = config_of(grey, scene.poses, replace(COARSE, poses=True))
    done = count(grey.video, tmp_path / "run", config)
    assert "refinement skipped" in warnings_of(done.run)
    assert products_show(done.run, "aligned")
    json.loads((tmp_path / "run" / "run.json").read_text(), parse_constant=pytest.fail)
