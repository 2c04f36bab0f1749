"""Optical flow between thumbnails: known motion, what is hidden, what cannot be compared, and a clip aligned by it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from marigold3d.align.alignment import solve_clip
from marigold3d.align.flow import Flow
from marigold3d.camera import pixel_grid, project, ray_grid
from marigold3d.config import VideoConfig
from marigold3d.errors import InputError
from marigold3d.flow import LEAST_SIDE, ClipFlow, thumbnails
from marigold3d.rigid import inverse, transform
from marigold3d.types import RelativeDepth
from marigold3d.video import open_video, write_video
from tests import synthetic

WIDTH, HEIGHT = 160, 120
CUT = 5


def picture(seed: int, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    """(HEIGHT, WIDTH) uint8 texture of several scales; what it shows is moved by (column, row) pixels."""
    noise = np.random.default_rng(seed).standard_normal((HEIGHT + 120, WIDTH + 120))
    texture = sum(s * gaussian_filter(noise, s) for s in (1.5, 4, 10))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 60.0
    moved = map_coordinates(texture, [rows - shift[1], columns - shift[0]], order=3)
    return np.clip(128 + 60 * moved, 0, 255).astype(np.uint8)


def pixels(flow: Flow) -> np.ndarray:
    """(h, w, 2) steps in pixels."""
    return flow.displacement * (flow.valid.shape[1], flow.valid.shape[0])


def between(*grays: np.ndarray) -> Flow:
    """From the first of the pictures to the last."""
    found = ClipFlow(np.stack(grays))(0, len(grays) - 1)
    assert found is not None
    return found


def gray(rgb: np.ndarray) -> np.ndarray:
    return cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def walk() -> synthetic.Clip:
    """26 steps of 2 cm."""
    return synthetic.Clip(synthetic.camera(WIDTH, HEIGHT), synthetic.walk(60)[15:41])


@pytest.fixture(scope="module")
def walk_flow(walk: synthetic.Clip) -> ClipFlow:
    return ClipFlow(np.stack([gray(rgb) for rgb, _ in walk.frames]))


def exact(clip: synthetic.Clip, i: int, j: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(h, w, 2) steps in pixels; where frame j sees the same (h, w), and where its view is blocked."""
    T, camera = clip.T_world_camera, clip.camera
    moved = transform(inverse(T[j]) @ T[i], ray_grid(camera).astype(float) * clip.frames[i][1][..., None])
    to = project(moved, camera)
    column, row = np.moveaxis(np.floor(to).astype(int), -1, 0)
    inside = (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height)
    there = clip.frames[j][1][row.clip(0, camera.height - 1), column.clip(0, camera.width - 1)]
    behind = np.log(moved[..., 2] / there)
    steps = to - pixel_grid(camera.width, camera.height)
    return steps, inside & (np.abs(behind) < 0.03), inside & (behind > 0.2)


# -- known motion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(0.3, -0.7), (5.5, 3.0), (-16.0, 9.5), (30.0, -14.0)])
def test_a_shifted_picture(shift: tuple[float, float]) -> None:
    flow = between(picture(1), picture(1, shift))
    to = pixel_grid(WIDTH, HEIGHT) + shift
    stays = (to > 8).all(-1) & (to < (WIDTH - 8, HEIGHT - 8)).all(-1)
    assert flow.valid[stays].mean() > 0.97
    error = np.linalg.norm(pixels(flow) - shift, axis=-1)[flow.valid & stays]
    assert np.median(error) < 0.05
    assert np.quantile(error, 0.95) < 0.3


def test_what_leaves_the_picture_is_invalid() -> None:
    flow = between(picture(1), picture(1, (30.0, 0.0)))
    assert not flow.valid[:, -28:].any()


def test_identical_frames_stand_still_everywhere() -> None:
    half_empty = picture(2)
    half_empty[:, : WIDTH // 2] = 90
    flow = between(half_empty, half_empty)
    assert flow.valid.all()
    assert np.abs(pixels(flow)).max() < 0.02


@pytest.mark.parametrize(("step", "median", "most"), [(1, 0.04, 0.15), (10, 0.1, 0.5), (25, 0.2, 1.5)])
def test_a_walk(walk: synthetic.Clip, walk_flow: ClipFlow, step: int, median: float, most: float) -> None:
    flow = walk_flow(0, step)
    steps, seen, _ = exact(walk, 0, step)
    error = np.linalg.norm(pixels(flow) - steps, axis=-1)[seen & flow.valid]
    assert np.median(error) < median
    assert np.quantile(error, 0.9) < most
    assert flow.valid[seen].mean() > 0.9


def test_what_is_hidden_is_invalid(walk: synthetic.Clip, walk_flow: ClipFlow) -> None:
    _, seen, hidden = exact(walk, 0, 25)
    assert hidden.sum() > 300
    valid = walk_flow(0, 25).valid
    assert valid[hidden].mean() < 0.1 < 0.9 < valid[seen].mean()


def test_there_and_back(walk_flow: ClipFlow) -> None:
    there, back = walk_flow(3, 13), walk_flow(13, 3)
    to = np.rint(pixel_grid(WIDTH, HEIGHT) - 0.5 + pixels(there)).astype(int)[there.valid]
    column, row = to.T.clip(0, [[WIDTH - 1], [HEIGHT - 1]])
    assert back.valid[row, column].mean() > 0.97
    assert np.quantile(np.linalg.norm(pixels(back)[row, column] + pixels(there)[there.valid], axis=-1), 0.9) < 0.5


def test_frames_between_show_how_far_it_went() -> None:
    """A step of half the width is out of reach, unless one sees it happen."""
    path = [picture(3, (s, 0.0)) for s in np.linspace(0, 60, 9)]
    assert ClipFlow(np.stack([path[0], path[-1]]))(0, 1) is None
    flow = between(*path)
    assert flow.valid[:, : WIDTH - 70].mean() > 0.9
    assert abs(np.median(pixels(flow)[flow.valid][:, 0]) - 60) < 0.1


@pytest.mark.parametrize("size", [1.05, 1.3, 1 / 1.3])
def test_frames_far_apart_are_tied_unless_the_camera_came_nearer(size: float) -> None:
    far = picture(5)
    near = cv2.warpAffine(far, cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), 3, size), (WIDTH, HEIGHT))
    assert ClipFlow(np.stack([far, near]))(0, 1) is not None
    assert (ClipFlow(np.stack([far, near, near]))(0, 2) is not None) == (size == 1.05)
    assert ClipFlow(np.stack([far, near, near]), most_approach=np.inf)(0, 2) is not None


# -- pictures that are hard to compare --------------------------------------------------------------------------------


def exposed(gray: np.ndarray) -> np.ndarray:
    """Darker, of less contrast, and more so to the left."""
    return np.clip(gray * np.linspace(0.4, 0.7, WIDTH) + 8, 0, 255).astype(np.uint8)


def test_a_change_of_exposure_costs_little(walk: synthetic.Clip) -> None:
    steps, seen, _ = exact(walk, 0, 3)
    a, b = (gray(walk.frames[k][0]) for k in (0, 3))
    flow = between(a, exposed(b))
    assert flow.valid[seen].mean() > 0.97
    assert np.median(np.linalg.norm(pixels(flow) - steps, axis=-1)[seen & flow.valid]) < 0.06


@pytest.mark.parametrize("seed", range(4))
def test_unrelated_pictures_have_no_flow(seed: int) -> None:
    room = gray(synthetic.render(synthetic.camera(WIDTH, HEIGHT), synthetic.look((0, 0, 0), 0.5 * seed))[0])
    for other in (picture(seed + 10), room):
        assert ClipFlow(np.stack([picture(seed), other]))(0, 1) is None


@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_frames_have_none(level: int) -> None:
    blank = np.full((HEIGHT, WIDTH), level, np.uint8)
    flow = ClipFlow(np.stack([picture(1), blank, picture(1), blank]))
    assert flow(0, 1) is None
    assert flow(1, 2) is None
    assert flow(1, 3) is None
    assert flow(0, 2) is not None  # one black frame between does not matter


@pytest.mark.parametrize("size", [(2, 2), (LEAST_SIDE - 1, 160)])
def test_tiny_frames_are_refused_in_one_line(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="too small for optical flow") as error:
        ClipFlow(np.zeros((3, *size), np.uint8))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(LEAST_SIDE, LEAST_SIDE), (LEAST_SIDE, 160), (160, LEAST_SIDE), (31, 47)])
def test_small_and_narrow_frames(size: tuple[int, int]) -> None:
    rows, columns = size
    whole = picture(4) if columns > rows else picture(4).T
    whole = np.pad(whole, ((0, 60), (0, 60)), "wrap")
    flow = between(whole[:rows, :columns], whole[:rows, 1 : columns + 1])
    assert abs(np.median(pixels(flow)[flow.valid][:, 0]) + 1) < 0.1


def test_wrong_thumbnails_are_refused() -> None:
    with pytest.raises(InputError, match="uint8"):
        ClipFlow(np.zeros((3, 32, 32), np.float32))


def test_flow_is_repeatable_and_leaves_threads_alone(walk: synthetic.Clip) -> None:
    grays = np.stack([gray(rgb) for rgb, _ in walk.frames[:6]])
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        first = ClipFlow(grays)(0, 5)
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)
    flow = ClipFlow(grays)
    flow(5, 2)  # in another order
    again = flow(0, 5)
    assert np.array_equal(first.displacement, again.displacement)
    assert np.array_equal(first.valid, again.valid)


# -- thumbnails -------------------------------------------------------------------------------------------------------


def test_thumbnails_of_a_clip(tmp_path: Path) -> None:
    rgb = [np.full((90, 200, 3), 20 * k, np.uint8) for k in range(10)]
    write_video(tmp_path / "clip.mp4", rgb, 10)
    video = open_video(tmp_path / "clip.mp4", VideoConfig(stride=2))
    grays = thumbnails(video, 100)
    assert grays.shape == (5, 45, 100)
    assert grays.dtype == np.uint8
    assert np.abs(grays.mean((1, 2)) - 40 * np.arange(5)).max() < 4
    assert np.array_equal(thumbnails(video, 100, [1, 4]), grays[[1, 4]])
    assert thumbnails(video, 100, []).shape == (0, 45, 100)


# -- a clip aligned by flow -------------------------------------------------------------------------------------------


def flickering(depth: np.ndarray, seed: int) -> RelativeDepth:
    """Disparity of scale and shift as unsteady as a network's."""
    scale, shift = np.random.default_rng(seed).uniform((0.8, -0.08), (1.25, 0.08))
    return RelativeDepth((scale / depth + shift).astype(np.float32), "disparity")


@pytest.mark.parametrize("speed", [0.0, 0.15], ids=["static", "slow"])
def test_a_clip_without_poses_flickers_less(speed: float) -> None:
    clip = synthetic.Clip(synthetic.camera(WIDTH, HEIGHT), synthetic.walk(14, speed))
    flow = ClipFlow(np.stack([gray(rgb) for rgb, _ in clip.frames]))
    relative = [flickering(z, k) for k, (_, z) in enumerate(clip.frames)]
    flicker = solve_clip(relative, flow=flow).flicker.as_dict()
    assert flicker["after"] < flicker["before"] / 5


def test_flow_ends_at_a_cut() -> None:
    """A clip whose cut nobody told of is tied together on either side only."""
    camera = synthetic.camera(WIDTH, HEIGHT)
    views = [*synthetic.walk(CUT, 0.1), *(synthetic.look((0.1 * k, 0, -1), 2.4) for k in range(CUT))]
    frames = [synthetic.render(camera, T) for T in views]
    flow = ClipFlow(np.stack([gray(rgb) for rgb, _ in frames]))
    assert all((flow(k, k + 1) is None) == (k == CUT - 1) for k in range(2 * CUT - 1))
    assert flow(0, 2 * CUT - 1) is None
