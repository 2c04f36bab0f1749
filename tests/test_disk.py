"""What a run takes on disk is said before, and a disk too small is refused before any work is lost."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from marigold3d import RunConfig, reconstruct
from marigold3d.config import CameraConfig, PoseConfig
from marigold3d.disk import estimated_bytes, require_space, used_bytes
from marigold3d.errors import OutputError
from tests import synthetic

Usage = namedtuple("Usage", "total used free")


def free(monkeypatch: pytest.MonkeyPatch, bytes_: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, int(bytes_)))


def test_twice_the_frames_take_twice_the_room() -> None:
    def beyond_the_cloud(frames: int, size: tuple[int, int]) -> int:
        return estimated_bytes(frames, size, 0, refined=True) - estimated_bytes(0, size, 0, refined=True)

    one = beyond_the_cloud(100, (640, 480))
    np.testing.assert_allclose(
        [beyond_the_cloud(200, (640, 480)), beyond_the_cloud(100, (1280, 480))], 2 * one, rtol=1e-6
    )
    assert estimated_bytes(9, (64, 48), 3, refined=False) < estimated_bytes(9, (64, 48), 3, refined=True)


def test_what_a_run_has_written_already_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "part").write_bytes(bytes(6000))
    assert used_bytes(tmp_path) == 6000
    free(monkeypatch, 5000)
    require_space(tmp_path, 10_000)
    with pytest.raises(OutputError, match=r"about 0\.0 GB.*-o"):
        require_space(tmp_path, 12_000)


def test_a_run_that_cannot_fit_ends_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = synthetic.Clip(synthetic.camera(), synthetic.walk(8, length=0.3))
    free(monkeypatch, 1e6)
    with pytest.raises(OutputError, match="this run needs about"):
        reconstruct(clip.write(tmp_path / "clip.mp4"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_estimate_is_in_the_report_beside_what_was_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = synthetic.Clip(synthetic.camera(), synthetic.walk(8, length=0.3))
    monkeypatch.setattr("marigold3d.pipeline.load_estimator", lambda _: synthetic.Oracle(clip))
    config = RunConfig(camera=CameraConfig(fov_deg=60), poses=PoseConfig(source="static"), fuse=False)
    run = reconstruct(clip.write(tmp_path / "clip.mp4"), tmp_path / "run", config)
    disk = run.manifest["report"]["disk"]
    assert disk["used_mb"] == pytest.approx(used_bytes(run.path) / 1e6, abs=0.2)
    assert disk["used_mb"] < disk["estimated_mb"]
