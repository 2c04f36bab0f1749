"""The first look at a clip: its cuts, its keyframes, and clips that show nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marigold3d.config import PoseConfig, VideoConfig
from marigold3d.errors import InputError
from marigold3d.progress import run
from marigold3d.scan import Scan, find_cuts, image_shift, scan_clip, scenes
from marigold3d.video import open_video, write_video
from tests.data_paths import data_path

WIDTH, HEIGHT, FPS = 96, 64, 20


def panorama(seed: int, tint: tuple[float, float, float]) -> np.ndarray:
    """A wide picture (HEIGHT, 4 * WIDTH, 3) with blobs of a few pixels in shades of one colour."""
    coarse = np.random.default_rng(seed).uniform(0.3, 1, (HEIGHT // 4, WIDTH))
    return (np.kron(coarse, np.ones((4, 4)))[..., None] * np.array(tint) * 255).astype(np.uint8)


def view(picture: np.ndarray, left: float) -> np.ndarray:
    return picture[:, round(left) : round(left) + WIDTH]


def scanned(path: Path, frames: Iterable[np.ndarray], config: PoseConfig = PoseConfig()) -> Scan:  # noqa: B008 (frozen)
    write_video(path, frames, FPS)
    return run(scan_clip(open_video(path), 640, config))


RED, GREEN, BLUE = (1.0, 0.3, 0.2), (0.2, 0.9, 0.3), (0.2, 0.4, 1.0)


def test_three_scenes_have_two_cuts(tmp_path: Path) -> None:
    frames = [view(panorama(k, tint), 2 * i) for k, tint in enumerate((RED, GREEN, BLUE)) for i in range(12 + 4 * k)]
    scan = scanned(tmp_path / "cut.mp4", frames)
    assert scan.cuts.tolist() == [12, 28]
    assert scenes(scan) == [(0, 11), (12, 27), (28, 47)]
    assert len(scan) == 48


def test_a_fast_pan_has_none(tmp_path: Path) -> None:
    """Colours change all the way, a fifth of the width a frame, but never at once."""
    across = np.concatenate([panorama(0, RED)[:, :192], panorama(1, GREEN)[:, :192], panorama(2, BLUE)[:, :192]], 1)
    scan = scanned(tmp_path / "pan.mp4", [view(across, 19 * i) for i in range(25)])
    assert scan.cuts.tolist() == []
    assert scenes(scan) == [(0, 24)]


def test_keyframes_follow_the_motion(tmp_path: Path) -> None:
    """Still for a second, then 5 % of the width a frame: seldom, then often, never closer than the rate allows."""
    picture = panorama(3, GREEN)
    lefts = [0.0] * 20 + [5.0 * i for i in range(30)]
    scan = scanned(tmp_path / "c.mp4", [view(picture, x) for x in lefts], PoseConfig(keyframe_fps=10))
    gaps_s = np.diff(scan.timestamps_s[scan.keyframes])
    assert scan.keyframes[0] == 0
    assert scan.keyframes[-1] == 49
    assert gaps_s[:-1].min() > 0.099
    assert gaps_s.max() < 0.501 + 1 / FPS
    assert (scan.keyframes < 20).sum() <= 3
    assert (scan.keyframes >= 20).sum() >= 14


def test_keyframes_are_thinned_evenly(tmp_path: Path) -> None:
    picture = panorama(3, GREEN)
    frames = [view(picture, 5 * i) for i in range(50)]
    scan = scanned(tmp_path / "c.mp4", frames, PoseConfig(max_keyframes=9))
    assert len(scan.keyframes) == 9
    assert (scan.keyframes[0], scan.keyframes[-1]) == (0, 49)
    assert np.ptp(np.diff(scan.keyframes)) <= 3


def test_a_black_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="every frame is black"):
        scanned(tmp_path / "black.mp4", [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 5)


def test_black_frames_are_counted(tmp_path: Path) -> None:
    frames = [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 5 + [view(panorama(1, RED), 0)] * 15
    assert scanned(tmp_path / "c.mp4", frames).black_share == pytest.approx(0.25)


def test_one_frame(tmp_path: Path) -> None:
    scan = scanned(tmp_path / "one.mp4", [view(panorama(1, RED), 0)])
    assert (len(scan), scan.keyframes.tolist(), scan.cuts.tolist()) == (1, [0], [])


def test_used_frames_only_and_their_size(tmp_path: Path) -> None:
    path = tmp_path / "c.mp4"
    write_video(path, [view(panorama(1, RED), i) for i in range(30)], FPS)
    scan = run(scan_clip(open_video(path, VideoConfig(start_s=0.5, stride=3)), 48, PoseConfig()))
    assert scan.indices.tolist() == [10, 13, 16, 19, 22, 25, 28]
    np.testing.assert_allclose(scan.timestamps_s, scan.indices / FPS, atol=1e-3)
    assert scan.image_size == (48, 32)
    assert scan.keyframes.max() == 6, "keyframes are positions among the used frames"


def test_arrays_there_and_back(tmp_path: Path) -> None:
    scan = scanned(tmp_path / "c.mp4", [view(panorama(1, RED), i) for i in range(5)])
    again = Scan.from_arrays(scan.as_arrays())
    for name, value in scan.__dict__.items():
        np.testing.assert_array_equal(getattr(again, name), value)


# -- cuts and shifts as functions -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(level=st.floats(0, 0.15), cut=st.floats(0.65, 1.0), at=st.integers(0, 39))
def test_a_jump_out_of_a_steady_clip_is_a_cut(level: float, cut: float, at: int) -> None:
    distance = np.full(40, level)
    distance[at] = cut
    assert find_cuts(distance).tolist() == [at + 1]


@settings(deadline=None)
@given(level=st.floats(0, 1), count=st.integers(1, 60))
def test_steady_change_is_no_cut(level: float, count: int) -> None:
    if count > 1:
        assert find_cuts(np.full(count, level)).tolist() == []


def test_no_frames_no_cuts() -> None:
    assert find_cuts(np.zeros(0)).tolist() == []


@settings(deadline=None)
@given(dx=st.integers(-20, 20), dy=st.integers(-12, 12))
def test_a_shift_is_measured(dx: int, dy: int) -> None:
    wide = np.kron(np.random.default_rng(1).uniform(0, 255, (48, 64)), np.ones((3, 3))).astype(np.float32)
    a, b = wide[30 : 30 + 64, 40 : 40 + 96], wide[30 + dy : 30 + dy + 64, 40 + dx : 40 + dx + 96]
    shift, peak = image_shift(a, b)
    assert shift == pytest.approx(np.hypot(dx, dy) / 96, abs=1e-6)
    assert peak > 0.1


def test_unrelated_pictures_have_no_peak(rng: np.random.Generator) -> None:
    a, b = rng.uniform(0, 255, (2, 64, 96)).astype(np.float32)
    assert image_shift(a, b)[1] < 0.1
    assert image_shift(a, a)[1] > 0.9


# -- recordings -------------------------------------------------------------------------------------------------------


def scan_recording(name: str) -> Scan:
    return run(scan_clip(open_video(data_path(f"clips/{name}")), 640, PoseConfig()))


@pytest.mark.data
def test_bikes_has_six_scenes() -> None:
    assert len(scenes(scan_recording("bikes.mp4"))) == 6


@pytest.mark.data
@pytest.mark.parametrize("name", ["opencv_box.mp4", "opencv_cup.mp4", "carphone_pristine.mp4", "robot_unitree.mp4"])
def test_the_other_recordings_have_one(name: str) -> None:
    scan = scan_recording(name)
    assert len(scenes(scan)) == 1
    assert 2 < len(scan.keyframes) < len(scan)
