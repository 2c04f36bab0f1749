"""Camera paths from colour and depth: known paths come back, in the depth's units, and what cannot align says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marigold3d.config import AlignConfig, CameraConfig, PoseConfig, RefineConfig, RunConfig
from marigold3d.errors import GeometryError
from marigold3d.pipeline import reconstruct
from marigold3d.poses.odometry import OdometryPath, RGBDView, rgbd_odometry
from marigold3d.progress import run
from marigold3d.rigid import umeyama
from marigold3d.types import DepthMap, Intrinsics
from tests import synthetic
from tests.data_paths import data_path

pytest.importorskip("open3d", reason="Open3D is not installed, or misses a library: marigold3d doctor")

CAMERA = synthetic.camera(160, 120)


def views(clip: synthetic.Clip, unit: float = 1.0) -> list[RGBDView]:
    """A clip with exact depth, in units `unit` times finer."""
    return [RGBDView(rgb, DepthMap(np.float32(unit) * z, np.ones(z.shape, bool))) for rgb, z in clip.frames]


def walked(clip: synthetic.Clip, unit: float = 1.0) -> OdometryPath:
    seen = views(clip, unit)
    return run(rgbd_odometry(seen, len(seen), clip.camera, 2.0 * unit))


def path_error(found: OdometryPath, T_world_camera: np.ndarray, unit: float = 1.0) -> float:
    """RMS distance of the camera centres after the best rigid motion; no scale is fitted."""
    a, b = found.T_world_camera[:, :3, 3] / unit, T_world_camera[:, :3, 3]
    return float(np.sqrt(np.mean(np.sum((umeyama(a, b, with_scale=False).apply(a) - b) ** 2, 1))))


@pytest.fixture(scope="module")
def clip() -> synthetic.Clip:
    return synthetic.Clip(CAMERA, synthetic.walk(13))


@pytest.mark.parametrize("unit", [1.0, 0.01])
def test_a_known_walk_is_recovered_in_the_units_of_its_depth(clip: synthetic.Clip, unit: float) -> None:
    found = walked(clip, unit)
    assert (found.first, found.breaks, len(found.T_world_camera)) == (0, 0, 13)
    np.testing.assert_allclose(found.T_world_camera[0], np.eye(4), atol=1e-9)
    assert path_error(found, clip.T_world_camera, unit) < 0.01  # of a walk of 1.2


def test_walking_backwards_is_the_same_path(clip: synthetic.Clip) -> None:
    there = walked(clip)
    back = walked(synthetic.Clip(CAMERA, clip.T_world_camera[::-1]))
    reversed_path = OdometryPath(0, back.T_world_camera[::-1], 0, 0, 0)
    assert path_error(reversed_path, there.T_world_camera) < 0.01


def test_turning_on_the_spot_stays_on_the_spot() -> None:
    turn = synthetic.Clip(CAMERA, synthetic.pan(9))
    found = walked(turn)
    assert np.abs(found.T_world_camera[:, :3, 3]).max() < 0.01
    turned = found.T_world_camera[0, :3, :3].T @ found.T_world_camera[-1, :3, :3]
    assert np.arccos((np.trace(turned) - 1) / 2) == pytest.approx(0.6, abs=0.02)


def test_the_way_back_closes_loops_which_mend_what_noise_in_scale_did() -> None:
    there = synthetic.walk(12)
    T = np.concatenate([there, there[::-1]])
    clip = synthetic.Clip(CAMERA, T)
    factor = 1 + 0.01 * np.random.default_rng(0).standard_normal(len(T))
    noisy = [
        RGBDView(rgb, DepthMap(np.float32(f) * z, np.ones(z.shape, bool)))
        for (rgb, z), f in zip(clip.frames, factor, strict=True)
    ]
    found = run(rgbd_odometry(noisy, len(noisy), CAMERA, 2.0))
    assert found.loops > 3
    ends = found.T_world_camera[-1][:3, 3] - found.T_world_camera[0][:3, 3]
    assert np.linalg.norm(ends) < 0.05


def test_a_break_leaves_the_longest_run(clip: synthetic.Clip) -> None:
    seen = views(clip)
    blind = RGBDView(np.zeros_like(seen[0].rgb), DepthMap(np.zeros((120, 160), np.float32), np.zeros((120, 160), bool)))
    found = run(rgbd_odometry([*seen[:4], blind, *seen[5:]], len(seen), CAMERA, 2.0))
    assert (found.first, len(found.T_world_camera), found.breaks) == (5, 8, 2)
    assert path_error(found, clip.T_world_camera[5:]) < 0.01


def test_views_that_never_align_say_so(clip: synthetic.Clip) -> None:
    nothing = DepthMap(np.zeros((120, 160), np.float32), np.zeros((120, 160), bool))
    seen = [RGBDView(v.rgb, nothing) for v in views(clip)[:4]]
    with pytest.raises(GeometryError, match="do not align"):
        run(rgbd_odometry(seen, 4, CAMERA, 2.0))


@pytest.mark.slow
def test_a_real_room_s_path_from_exact_depth() -> None:
    folder = data_path("redwood_livingroom1")
    lines = [line.split() for line in next(folder.rglob("trajectory.log")).read_text().splitlines()]
    truth = np.array([np.array(lines[i + 1 : i + 5], float) for i in range(0, len(lines), 5)])
    colors, depths = sorted(folder.glob("image/*.jpg"))[::4], sorted(folder.glob("depth/*.png"))[::4]

    def view(color: Path, depth: Path) -> RGBDView:
        z = np.asarray(Image.open(depth)).astype(np.float32) / 1000
        return RGBDView(np.asarray(Image.open(color)), DepthMap(z, z > 0))

    seen = (view(*pair) for pair in zip(colors, depths, strict=True))
    found = run(rgbd_odometry(seen, len(colors), Intrinsics(525, 525, 320, 240, 640, 480), 2.0))
    poses = truth[[int(p.stem) for p in colors]]
    assert found.breaks == 0
    assert path_error(found, poses) < 0.02  # metres, of 3.7


@pytest.mark.slow
def test_a_clip_becomes_a_scene_by_odometry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = synthetic.Clip(CAMERA, synthetic.walk(16))
    file = clip.write(tmp_path / "walk.mp4")
    oracle = synthetic.Oracle(clip, domain="log_depth")
    monkeypatch.setattr("marigold3d.pipeline.load_estimator", lambda _: oracle)
    c = CAMERA
    config = RunConfig(
        camera=CameraConfig(intrinsics=(c.fx, c.fy, c.cx, c.cy)),
        poses=PoseConfig("odometry"),
        align=AlignConfig(),
        refine=RefineConfig(enabled=False),
    )
    made = reconstruct(file, tmp_path / "run", config)
    cameras = made.manifest["report"]["cameras"]
    assert (cameras["poses"], cameras["frames_posed"], cameras["breaks"]) == ("odometry", 16, 0)
    T = made.trajectory().T_world_camera
    s = umeyama(T[:, :3, 3], clip.T_world_camera[:, :3, 3])
    error = np.linalg.norm(s.apply(T[:, :3, 3]) - clip.T_world_camera[:, :3, 3], axis=1)
    assert np.sqrt(np.mean(error**2)) < 0.08  # of 1.2: flow alone ties the depth maps
    assert len(made.cloud()) > 1000
