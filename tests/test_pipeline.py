"""Whole runs on rendered clips: products agree with each other and with the truth; runs resume, fail, are replaced."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from marigold3d.config import CameraConfig, DepthConfig, PoseConfig, RefineConfig, RunConfig, VideoConfig
from marigold3d.errors import GeometryError, InputError, OutputError
from marigold3d.export.depth_maps import DepthEncoding, read_depth_png
from marigold3d.pipeline import reconstruct, reconstruct_steps
from marigold3d.poses.files import read_tum
from marigold3d.rigid import quaternion_xyzw, umeyama
from marigold3d.store import Run
from marigold3d.types import Frame, RelativeDepth
from marigold3d.video import VideoFile
from tests import synthetic

STATIC = RunConfig(poses=PoseConfig("static"), camera=CameraConfig(fov_deg=65.0))
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def clip() -> synthetic.Clip:
    return synthetic.Clip(synthetic.camera(), synthetic.walk(9, length=0.3))


@pytest.fixture(scope="module")
def file(clip: synthetic.Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip.write(tmp_path_factory.mktemp("pipeline") / "clip.mp4")


@pytest.fixture
def oracle(clip: synthetic.Clip, monkeypatch: pytest.MonkeyPatch) -> synthetic.Oracle:
    return installed(synthetic.Oracle(clip), monkeypatch)


def installed(oracle: synthetic.Oracle, monkeypatch: pytest.MonkeyPatch) -> synthetic.Oracle:
    monkeypatch.setattr("marigold3d.pipeline.load_estimator", lambda _: oracle)
    return oracle


def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def products(folder: Path) -> dict[str, bytes]:
    """What people use: everything but the manifest, which tells times, and the cache."""
    return {n: b for n, b in contents(folder).items() if n != "run.json" and not n.startswith("cache/")}


def interrupted_at(stage: str, done: int, *args: Any, **kwargs: Any) -> None:
    """Start a run and close it at that point, as a cancel button does."""
    steps = reconstruct_steps(*args, **kwargs)
    for progress in steps:
        if (progress.stage, progress.done) == (stage, done):
            steps.close()
            return
    pytest.fail(f"the run never came to {stage} {done}")


# -- products ---------------------------------------------------------------------------------------------------------


def test_products_of_a_static_camera(oracle: synthetic.Oracle, file: Path, tmp_path: Path) -> None:
    run = reconstruct(file, tmp_path / "run", STATIC)
    again = Run.open(tmp_path / "run")
    assert again.finished
    assert again.frame_indices == list(range(9))
    assert len(again.trajectory()) == 9
    np.testing.assert_allclose(again.trajectory().T_world_camera, np.tile(np.eye(4), (9, 1, 1)), atol=1e-9)
    camera, cloud = again.camera(), again.cloud()
    assert (camera.width, camera.height) == (96, 72)
    assert camera.fx == pytest.approx(synthetic.camera().fx)
    assert len(cloud) == again.manifest["report"]["fusion"]["points"] > 500
    assert cloud.units == again.encoding().units == again.manifest["units"] == "arbitrary"
    first = again.depth(0)
    assert np.median(first.depth[first.valid]) == pytest.approx(1, abs=0.1)
    assert all(again.depth(i).valid.mean() > 0.9 for i in again.frame_indices)
    sigma, cached = first.sigma, run.frames_array("aligned_sigma", (9, 72, 96))[0]
    assert sigma is not None
    np.testing.assert_allclose(sigma[first.valid], cached[first.valid], atol=1e-4, rtol=0.01)
    report = run.manifest["report"]
    assert report["cameras"]["frames_posed"] == report["cameras"]["frames"] == 9
    assert report["seconds"]["total"] > 0
    assert oracle.seen == list(range(9))
    assert not list((tmp_path / "run").glob(".*")), "no temporary file is left"


def test_indices_are_the_sources(oracle: synthetic.Oracle, file: Path, tmp_path: Path) -> None:
    config = replace(STATIC, video=VideoConfig(start_s=0.2, stride=2, max_frames=3, max_side=48))
    run = reconstruct(file, tmp_path / "run", config)
    assert run.frame_indices == [2, 4, 6]
    np.testing.assert_allclose(run.trajectory().timestamps_s, [0.2, 0.4, 0.6], atol=1e-3)
    assert run.depth(4).depth.shape == (36, 48)
    assert run.camera().width == 48


def test_without_fusion_there_is_no_cloud(oracle: synthetic.Oracle, file: Path, tmp_path: Path) -> None:
    """Nor does one of an earlier run stay behind."""
    reconstruct(file, tmp_path / "run", STATIC)
    run = reconstruct(file, tmp_path / "run", replace(STATIC, fuse=False), overwrite=True)
    assert run.finished
    assert len(run.frame_indices) == 9
    assert not (run.path / "cloud.ply").exists()
    assert "fusion" not in run.manifest["report"]


def test_an_unknown_camera_is_said_to_be_assumed(oracle: synthetic.Oracle, file: Path, tmp_path: Path) -> None:
    run = reconstruct(file, tmp_path / "run", RunConfig(poses=PoseConfig("static")))
    assert run.manifest["report"]["cameras"]["intrinsics"] == "assumed"
    assert any("--fov" in line for line in run.manifest["report"]["warnings"])


# -- resuming, replacing, failing -------------------------------------------------------------------------------------


def test_an_interrupted_run_resumes_where_it_was(oracle: synthetic.Oracle, file: Path, tmp_path: Path) -> None:
    whole = reconstruct(file, tmp_path / "whole", STATIC)
    oracle.seen.clear()
    interrupted_at("depth", 3, file, tmp_path / "run", STATIC)
    assert Run.open(tmp_path / "run").manifest["status"] == "interrupted"
    assert not (tmp_path / "run" / "cloud.ply").exists()
    oracle.seen.clear()
    run = reconstruct(file, tmp_path / "run", STATIC)
    assert set(oracle.seen) == set(range(3, 9))  # not a list: what was under way when the run was closed may end late
    assert products(run.path) == products(whole.path)
    assert run.manifest["report"]["warnings"] == whole.manifest["report"]["warnings"]


@pytest.mark.parametrize("stage", ["align", "fuse", "write"])
def test_interrupted_later_no_depth_is_estimated_again(
    oracle: synthetic.Oracle, file: Path, tmp_path: Path, stage: str
) -> None:
    interrupted_at(stage, 1, file, tmp_path / "run", STATIC)
    oracle.seen.clear()
    run = reconstruct(file, tmp_path / "run", STATIC)
    assert oracle.seen == []
    assert products(run.path) == products(reconstruct(file, tmp_path / "whole", STATIC).path)


def test_another_model_does_not_resume_the_depth_of_the_first(
    oracle: synthetic.Oracle, clip: synthetic.Clip, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_at("depth", 3, file, tmp_path / "run", STATIC)
    other = installed(synthetic.Oracle(clip, bend=0.1), monkeypatch)
    reconstruct(file, tmp_path / "run", STATIC)
    assert other.seen == list(range(9))


def test_a_finished_run_is_not_replaced_by_accident(oracle: synthetic.Oracle, file: Path, tmp_path: Path) -> None:
    reconstruct(file, tmp_path / "run", STATIC)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="--overwrite"):
        reconstruct(file, tmp_path / "run", STATIC)
    assert contents(tmp_path) == before


def test_other_fusion_settings_reuse_the_depth(oracle: synthetic.Oracle, file: Path, tmp_path: Path) -> None:
    coarse = replace(STATIC, fusion=replace(STATIC.fusion, voxel=0.1))
    fine = len(reconstruct(file, tmp_path / "run", STATIC).cloud())
    oracle.seen.clear()
    run = reconstruct(file, tmp_path / "run", coarse, overwrite=True)
    assert oracle.seen == []
    assert len(run.cloud()) < 0.5 * fine


class Failing(synthetic.Oracle):
    """Fails at its third frame."""

    def estimate(self, rgb: np.ndarray) -> list[RelativeDepth]:
        if len(self.seen) >= 2:
            raise GeometryError("no more")
        return super().estimate(rgb)

    def provenance(self) -> dict[str, str]:
        return {**super().provenance(), "model": "failing"}


def test_an_overwrite_that_fails_leaves_the_old_run(
    oracle: synthetic.Oracle, clip: synthetic.Clip, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(STATIC, depth=DepthConfig(batch=1))
    reconstruct(file, tmp_path / "run", config)
    before, manifest = products(tmp_path / "run"), Run.open(tmp_path / "run").manifest
    installed(Failing(clip), monkeypatch)
    with pytest.raises(GeometryError):
        reconstruct(file, tmp_path / "run", config, overwrite=True)
    after = Run.open(tmp_path / "run")
    assert after.finished
    assert products(tmp_path / "run") == before
    assert after.manifest["report"] == manifest["report"]
    installed(oracle, monkeypatch).seen.clear()
    reconstruct(file, tmp_path / "run", config, overwrite=True)
    assert oracle.seen == list(range(9)), "the cache holds the depth of the run that failed"
    assert products(tmp_path / "run") == before


def test_a_run_that_fails_leaves_no_folder(oracle: synthetic.Oracle, file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "poses.npy", np.tile(np.eye(4), (5, 1, 1)))
    config = replace(STATIC, poses=PoseConfig("file", tmp_path / "poses.npy"))
    with pytest.raises(InputError, match="5 poses for 9 frames"):
        reconstruct(file, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
    assert oracle.seen == []


def test_a_failure_after_the_depth_keeps_it(oracle: synthetic.Oracle, file: Path, tmp_path: Path) -> None:
    tiny = replace(STATIC, fusion=replace(STATIC.fusion, voxel=1e-9))
    with pytest.raises(GeometryError, match="--voxel"):
        reconstruct(file, tmp_path / "run", tiny)
    oracle.seen.clear()
    assert reconstruct(file, tmp_path / "run", STATIC).finished
    assert oracle.seen == []


# -- memory -----------------------------------------------------------------------------------------------------------


def test_frames_are_not_hoarded(
    oracle: synthetic.Oracle, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any time no more decoded pictures are alive than two batches, estimated and read, and one on its way."""
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    real = VideoFile.frames

    def counted(self: VideoFile, **kwargs: Any) -> Iterator[Frame]:
        nonlocal most
        for frame in real(self, **kwargs):
            alive[:] = [ref for ref in alive if ref() is not None] + [weakref.ref(frame.rgb)]
            most = max(most, len(alive))
            yield frame

    monkeypatch.setattr(VideoFile, "frames", counted)
    reconstruct(file, tmp_path / "run", replace(STATIC, depth=DepthConfig(batch=2)))
    assert 1 <= most <= 6


# -- moving cameras ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def walk() -> synthetic.Clip:
    return synthetic.Clip(synthetic.camera(320, 240), synthetic.walk(16))


@pytest.fixture(scope="module")
def walk_file(walk: synthetic.Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return walk.write(tmp_path_factory.mktemp("walk") / "walk.mp4")


def depth_error(run: Run, walk: synthetic.Clip, scale: float) -> float:
    """Mean AbsRel of all depth maps times `scale`."""
    errors = []
    for i in run.frame_indices:
        found, truth = run.depth(i), walk.frames[i][1]
        assert found.valid.mean() > 0.9
        errors.append(np.mean(np.abs(scale * found.depth / truth - 1)[found.valid]))
    return float(np.mean(errors))


@pytest.mark.slow
def test_a_walk_without_any_knowledge(
    walk: synthetic.Clip, walk_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(synthetic.Oracle(walk, bend=0.05), monkeypatch)
    run = reconstruct(walk_file, tmp_path / "run")
    trajectory = run.trajectory()
    assert len(trajectory) == len(run.frame_indices) == 16
    to_truth = umeyama(trajectory.centres, walk.T_world_camera[:, :3, 3])
    error = np.linalg.norm(to_truth.apply(trajectory.centres) - walk.T_world_camera[:, :3, 3], axis=1)
    assert error.max() < 0.03
    assert depth_error(run, walk, to_truth.scale) < 0.04
    cloud = run.cloud()
    distance = synthetic.distance_to_surface(to_truth.apply(cloud.points.astype(float)))
    assert len(cloud) > 5000
    assert np.median(distance) < 0.03
    assert run.manifest["units"] == "arbitrary"
    report = run.manifest["report"]
    assert report["alignment"]["held_out"]["abs_rel"] < 0.04
    assert report["cameras"]["keyframes_registered"] == report["cameras"]["keyframes"]


@pytest.mark.slow
def test_a_walk_with_its_poses_is_metric(
    walk: synthetic.Clip, walk_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = installed(synthetic.Oracle(walk, bend=0.05), monkeypatch)
    T = walk.T_world_camera
    rows = np.column_stack([walk.timestamps_s, T[:, :3, 3], quaternion_xyzw(T)])
    np.savetxt(tmp_path / "poses.txt", rows)
    c = walk.camera
    config = RunConfig(
        camera=CameraConfig(intrinsics=(c.fx, c.fy, c.cx, c.cy)),
        poses=PoseConfig("file", tmp_path / "poses.txt", metric=True),
    )
    run = reconstruct(walk_file, tmp_path / "run", config)
    assert run.manifest["units"] == run.cloud().units == run.encoding().units == "m"
    np.testing.assert_allclose(run.trajectory().T_world_camera, T, atol=1e-5)
    assert depth_error(run, walk, 1.0) < 0.03
    distance = synthetic.distance_to_surface(run.cloud().points.astype(float))
    assert np.median(distance) < 0.02
    assert np.mean(distance < 0.1) > 0.95
    assert np.sqrt(np.mean((run.trajectory().timestamps_s - walk.timestamps_s) ** 2)) < 1e-3
    plain = replace(config, refine=RefineConfig(enabled=False))
    interrupted_at("depth", 5, walk_file, tmp_path / "broken", plain)
    oracle.seen.clear()
    resumed = reconstruct(walk_file, tmp_path / "broken", plain)
    assert set(oracle.seen) == set(range(5, 16))
    assert depth_error(resumed, walk, 1.0) < 0.04  # not the same bytes: matching has threads of its own


@pytest.mark.slow
def test_the_example_clip_against_its_truth(tmp_path: Path) -> None:
    """The embedded network and nothing else known, every third frame of the clip that comes with the project."""
    if not (EXAMPLES / "clip.mp4").is_file():
        pytest.skip("needs examples/clip.mp4")
    run = reconstruct(EXAMPLES / "clip.mp4", tmp_path / "run", RunConfig(video=VideoConfig(stride=4)))
    truth = read_tum(EXAMPLES / "clip_truth" / "trajectory.txt").T_world_camera[run.frame_indices]
    camera = json.loads((EXAMPLES / "clip_truth" / "camera.json").read_text())
    to_truth = umeyama(run.trajectory().centres, truth[:, :3, 3])
    error = np.linalg.norm(to_truth.apply(run.trajectory().centres) - truth[:, :3, 3], axis=1)
    length = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum()
    assert len(run.frame_indices) >= 20
    assert np.sqrt(np.mean(error**2)) < 0.02 * length
    assert run.camera().fx == pytest.approx(camera["fx"], rel=0.03)
    errors = []
    for index in run.frame_indices:
        path = EXAMPLES / "clip_truth" / "depth" / f"{index:06d}.png"
        if path.is_file():
            true, found = read_depth_png(path, DepthEncoding.millimetres()), run.depth(index)
            both = true.valid & found.valid
            errors.append(np.mean(np.abs(to_truth.scale * found.depth / np.maximum(true.depth, 1e-6) - 1)[both]))
    assert len(errors) >= 8
    assert np.mean(errors) < 0.12
    with Image.open(run.path / "depth" / "000008.png") as picture:
        assert picture.mode.startswith("I;16")
