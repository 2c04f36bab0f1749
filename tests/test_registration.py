"""Frames between keyframes are placed by what they show, not by how the keyframes around them are placed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from marigold3d.camera import on_image, ray_grid
from marigold3d.config import VideoConfig
from marigold3d.poses.registration import register_frames
from marigold3d.poses.sparse import SparseModel, complete_poses, widest_sine
from marigold3d.progress import Progress
from marigold3d.progress import run as drive
from marigold3d.rigid import inverse, transform
from marigold3d.video import open_video, write_video
from tests import synthetic

COUNT, KEYS = 17, (0, 8, 16)
INNER = np.setdiff1d(np.arange(COUNT), KEYS)
CAMERA = synthetic.camera(240, 180)


def shaky(count: int = COUNT, shake_deg: float = 0.7) -> np.ndarray:
    """(count, 4, 4): a walk by hand, which no interpolation between every eighth frame can follow."""
    T = synthetic.walk(count, length=0.8)
    turns = np.random.default_rng(3).normal(0, np.radians(shake_deg), (count, 3))
    T[:, :3, :3] @= Rotation.from_rotvec(turns).as_matrix()
    return T


def model_of(clip: synthetic.Clip, keys: tuple[int, ...] = KEYS) -> SparseModel:
    """Exact points on a grid of each keyframe's pixels, seen by every keyframe that has nothing before them."""
    camera, T = clip.camera, clip.T_world_camera[list(keys)]
    pick = np.s_[6:-6:11, 6:-6:11]
    rays = ray_grid(camera).astype(float)
    points = np.concatenate(
        [
            transform(pose, (rays * clip.frames[k][1][..., None])[pick].reshape(-1, 3))
            for k, pose in zip(keys, T, strict=True)
        ]
    )
    seen = []
    for row, pose in enumerate(T):
        in_camera = transform(inverse(pose), points)
        uv, inside = on_image(in_camera, camera)
        column, line = np.clip(uv, 0, (camera.width - 1, camera.height - 1)).astype(int).T
        surface = clip.frames[keys[row]][1][line, column]
        seen += [(row, p) for p in np.flatnonzero(inside & (np.abs(in_camera[:, 2] / surface - 1) < 0.02))]
    seen_frame, seen_point = np.array(seen, np.int64).T
    sine = widest_sine(T[:, :3, 3], points, seen_frame, seen_point)
    return SparseModel(camera, np.array(keys), T, points, sine, seen_frame, seen_point)


@pytest.fixture(scope="module", params=[None, (-0.08, 0.02, 0.001, -0.001)], ids=["pinhole", "lens"])
def clip(request: pytest.FixtureRequest) -> synthetic.Clip:
    return synthetic.Clip(replace(CAMERA, distortion=request.param), shaky())


@pytest.fixture
def video(clip: synthetic.Clip, tmp_path: Path) -> Path:
    return clip.write(tmp_path / "clip.mp4")


def off(T: np.ndarray, clip: synthetic.Clip, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of the centres (N,), scene units, and angle (N,), degrees, from the truth at `rows`."""
    true = clip.T_world_camera[rows]
    turn = Rotation.from_matrix(np.swapaxes(T[rows, :3, :3], 1, 2) @ true[:, :3, :3]).magnitude()
    return np.linalg.norm(T[rows, :3, 3] - true[:, :3, 3], axis=1), np.degrees(turn)


def test_frames_between_keyframes_are_found_where_interpolation_cannot(clip: synthetic.Clip, video: Path) -> None:
    """The room is 3 units deep, and a pixel is a quarter of a degree wide."""
    model = model_of(clip)
    reports: list[Progress] = []
    posed, T = drive(register_frames(open_video(video), model, clip.timestamps_s), reports.append)
    assert posed.all()
    centre, angle = off(T, clip, INNER)
    assert centre.max() < 0.02
    assert angle.max() < 0.12
    _, guessed = complete_poses(model, clip.timestamps_s)
    assert np.median(off(guessed, clip, INNER)[1]) > 10 * np.median(angle)
    np.testing.assert_array_equal(T[list(KEYS)], model.T_world_camera)
    assert (reports[-1].done, reports[-1].total) == (len(INNER), len(INNER))


def test_a_gap_may_be_longer_than_interpolation_dares(clip: synthetic.Clip, video: Path) -> None:
    seldom = 5 * clip.timestamps_s  # 4 s between keyframes
    model = model_of(clip)
    assert not complete_poses(model, seldom)[0][INNER].any()
    posed, T = drive(register_frames(open_video(video), model, seldom))
    assert posed.all()
    assert off(T, clip, INNER)[1].max() < 0.12


def test_what_a_frame_does_not_show_is_interpolated(clip: synthetic.Clip, tmp_path: Path) -> None:
    """Two grey frames in one gap; the others are not harmed."""
    grey = [3, 4]
    frames = [np.full_like(rgb, 128) if i in grey else rgb for i, (rgb, _) in enumerate(clip.frames)]
    write_video(tmp_path / "clip.mp4", iter(frames), synthetic.FPS)
    model = model_of(clip)
    posed, T = drive(register_frames(open_video(tmp_path / "clip.mp4"), model, clip.timestamps_s))
    assert posed.all()
    np.testing.assert_array_equal(T[grey], complete_poses(model, clip.timestamps_s)[1][grey])
    assert off(T, clip, np.setdiff1d(INNER, grey))[1].max() < 0.15


def test_something_that_moves_does_not_pull_the_poses(clip: synthetic.Clip, tmp_path: Path) -> None:
    """A fifth of the picture slides over it; no keyframe has points there, since they fit no place."""
    width, height = 96, 80
    pattern = clip.frames[0][0][90 : 90 + height, 60 : 60 + width]
    frames = [rgb.copy() for rgb, _ in clip.frames]
    left = 20 + 6 * np.arange(COUNT)
    for rgb, x in zip(frames, left, strict=True):
        rgb[50 : 50 + height, x : x + width] = pattern
    write_video(tmp_path / "clip.mp4", iter(frames), synthetic.FPS)
    model = model_of(clip)
    bare = np.ones(len(model.seen_point), bool)
    for row, key in enumerate(KEYS):
        uv, _ = on_image(transform(inverse(model.T_world_camera[row]), model.points[model.seen_point]), clip.camera)
        x, y = (uv - (left[key], 50)).T
        bare &= ~((model.seen_frame == row) & (x > 0) & (x < width) & (y > 0) & (y < height))
    model = replace(model, seen_frame=model.seen_frame[bare], seen_point=model.seen_point[bare])
    _, T = drive(register_frames(open_video(tmp_path / "clip.mp4"), model, clip.timestamps_s))
    assert off(T, clip, INNER)[1].max() < 0.3


def test_frames_outside_the_keyframes_are_found_where_they_show_the_same(clip: synthetic.Clip, video: Path) -> None:
    posed, T = drive(register_frames(open_video(video), model_of(clip, (4, 12)), clip.timestamps_s))
    assert posed.all()
    centre, angle = off(T, clip, np.setdiff1d(np.arange(COUNT), (4, 12)))
    assert centre.max() < 0.05
    assert angle.max() < 0.3


def test_frames_outside_the_keyframes_that_show_something_else_have_no_pose(
    clip: synthetic.Clip, tmp_path: Path
) -> None:
    away = synthetic.Clip(clip.camera, np.stack([synthetic.look((0, 0, 0), 2.5 + 0.1 * i) for i in range(4)]))
    frames = [*(rgb for rgb, _ in clip.frames), *(rgb for rgb, _ in away.frames)]
    write_video(tmp_path / "clip.mp4", iter(frames), synthetic.FPS)
    times_s = np.arange(COUNT + 4) / synthetic.FPS
    posed, _ = drive(register_frames(open_video(tmp_path / "clip.mp4"), model_of(clip), times_s))
    assert np.flatnonzero(posed).tolist() == list(range(COUNT))


def test_a_gap_with_few_points_is_left_to_interpolation(clip: synthetic.Clip, video: Path) -> None:
    model = model_of(clip)
    few = np.isin(model.seen_point, np.arange(0, len(model.points), 40))
    bare = replace(model, seen_frame=model.seen_frame[few], seen_point=model.seen_point[few])
    posed, T = drive(register_frames(open_video(video), bare, clip.timestamps_s))
    wanted, guessed = complete_poses(bare, clip.timestamps_s)
    np.testing.assert_array_equal(posed, wanted)
    np.testing.assert_array_equal(T, guessed)


def test_only_the_frames_in_use_count(clip: synthetic.Clip, video: Path) -> None:
    """Every second frame of a file: positions count those."""
    half = synthetic.Clip(clip.camera, clip.T_world_camera[::2])
    source = open_video(video, VideoConfig(stride=2))
    posed, T = drive(register_frames(source, model_of(half, (0, 4, 8)), clip.timestamps_s[::2]))
    assert posed.all()
    assert off(T, half, np.arange(9))[1].max() < 0.12
