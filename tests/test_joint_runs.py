"""Runs by the joint alignment's other ways: optical flow without poses, scene cuts, guided keyframes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marigold3d.config import AlignConfig, CameraConfig, DepthConfig, PoseConfig, RefineConfig, RunConfig
from marigold3d.errors import UsageError
from marigold3d.pipeline import reconstruct
from marigold3d.store import Run
from marigold3d.video import write_video
from tests import synthetic

NO_POSES = RunConfig(poses=PoseConfig("none"), camera=CameraConfig(fov_deg=65.0))


def sway(count: int, start: float = 0.0) -> np.ndarray:
    """(count, 4, 4): a camera that hardly moves."""
    return np.stack([synthetic.look((start + 0.01 * np.sin(k), 0, 0), 0.01 * np.cos(k)) for k in range(count)])


def test_without_poses_depth_is_consistent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame has its own affine map; flow alone brings them together, up to the one map nobody can know."""
    clip = synthetic.Clip(synthetic.camera(160, 120), sway(12))
    clip.write(tmp_path / "clip.mp4")
    monkeypatch.setattr("marigold3d.pipeline.load_estimator", lambda _: synthetic.Oracle(clip, "log_depth"))
    run = reconstruct(tmp_path / "clip.mp4", tmp_path / "run", NO_POSES)
    flicker = run.manifest["report"]["alignment"]["flicker"]
    assert flicker["after"] < 0.01
    depths = [run.depth(i) for i in run.frame_indices]
    ratio = [np.median(d.depth / z) for d, (_, z) in zip(depths, clip.frames, strict=True)]
    assert np.std(np.log(ratio)) < 0.01
    assert run.manifest["units"] == "arbitrary"
    assert not (tmp_path / "run" / "cloud.ply").exists()
    assert not (tmp_path / "run" / "trajectory.txt").exists()


def test_scenes_are_aligned_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shots = synthetic.Clip(synthetic.camera(160, 120), np.concatenate([sway(8), sway(8, 0.2)]))
    lit = [rgb if k < 8 else rgb // 3 + np.array([150, 0, 0], np.uint8) for k, (rgb, _) in enumerate(shots.frames)]
    write_video(tmp_path / "cut.mp4", iter(lit), synthetic.FPS)
    truths = iter(z for _, z in shots.frames)
    oracle = synthetic.Oracle(shots, "log_depth")
    monkeypatch.setattr(
        oracle, "estimate", lambda rgb: [synthetic.corrupted(next(truths), "log_depth", 1) for _ in rgb]
    )
    monkeypatch.setattr("marigold3d.pipeline.load_estimator", lambda _: oracle)
    run = reconstruct(tmp_path / "cut.mp4", tmp_path / "run", NO_POSES)
    report = run.manifest["report"]
    assert report["alignment"]["frames"]["segment"] == [0] * 8 + [1] * 8
    assert any("2 scenes" in line for line in report["warnings"])


@pytest.fixture
def sensed(tmp_path: Path) -> tuple[synthetic.Clip, RunConfig]:
    """A still clip with a sensor's depth of its first frame, and settings for a run that is guided by it."""
    clip = synthetic.Clip(synthetic.camera(), np.tile(synthetic.look((0, 0, 0)), (4, 1, 1)))
    clip.write(tmp_path / "clip.mp4")
    (tmp_path / "depth").mkdir()
    Image.fromarray((clip.frames[0][1] * 1000).round().astype(np.uint16)).save(tmp_path / "depth" / "000000.png")
    align = AlignConfig(cues=(str(tmp_path / "depth"),), guide=True)
    return clip, RunConfig(
        poses=PoseConfig("static"), camera=CameraConfig(fov_deg=65.0), align=align, refine=RefineConfig(enabled=False)
    )


def test_guided_keyframes(sensed: tuple[synthetic.Clip, RunConfig], marigold_checkpoint: Path, tmp_path: Path) -> None:
    """Random weights know nothing of depth, so the cues are all there is; the frames between follow the keyframe."""
    clip, config = sensed
    settings = RunConfig(
        poses=config.poses,
        camera=config.camera,
        align=config.align,
        refine=config.refine,
        depth=DepthConfig(str(marigold_checkpoint), "cpu", steps=2),
    )
    reconstruct(tmp_path / "clip.mp4", tmp_path / "run", settings)
    run = Run.open(tmp_path / "run")
    report = run.manifest["report"]
    assert report["guidance"]["keyframes"] == [0]
    assert report["alignment"]["sources"]["guided diffusion"]["used"] > 0
    assert run.manifest["units"] == "m"
    truth = clip.frames[0][1]
    for index in run.frame_indices:
        depth = run.depth(index)
        assert depth.valid.mean() > 0.9
        assert np.median(np.abs(depth.depth / truth - 1)[depth.valid]) < 0.25


def test_only_diffusion_models_can_be_guided(
    sensed: tuple[synthetic.Clip, RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, config = sensed
    monkeypatch.setattr("marigold3d.pipeline.load_estimator", lambda _: synthetic.Oracle(clip))
    with pytest.raises(UsageError, match="diffusion"):
        reconstruct(tmp_path / "clip.mp4", tmp_path / "run", config)
