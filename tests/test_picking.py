"""What a click means: from pixels to points and back, what frames see, and how sure lengths are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from marigold3d.camera import depth_to_points
from marigold3d.cues import Measurement, scale_from_measures
from marigold3d.errors import GeometryError, InputError, UsageError
from marigold3d.export.depth_maps import write_depth_png, write_sigma_png
from marigold3d.picking import Surfaces, clip_frames
from marigold3d.store import Run
from marigold3d.types import DepthMap
from tests.gui import CAMERA, HEIGHT, WIDTH, depth_map, make_run

TIMES = 3  # the clip's own frames are so many times as large as the depth maps
FRAMES = (0, 2, 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The wall and the box of `make_run`, of a clip larger than its depth maps."""
    run = make_run(tmp_path_factory.mktemp("picking") / "run")
    entry = {**CAMERA.as_dict(), "source_frames": CAMERA.scaled_to(TIMES * WIDTH, TIMES * HEIGHT).as_dict()}
    (run.path / "camera.json").write_text(json.dumps(entry))
    return run


@pytest.fixture(scope="module")
def surfaces(run: Run) -> Surfaces:
    return Surfaces(run)


def shown(run: Run, frame: int) -> np.ndarray:
    """(H, W, 3) world points of a frame's pixel centres."""
    T = run.trajectory().T_world_camera[FRAMES.index(frame)]
    return depth_to_points(run.depth(frame).depth, run.camera(), T)


PIXELS = st.tuples(st.floats(0.5, TIMES * WIDTH - 0.5), st.floats(2 * TIMES, TIMES * HEIGHT - 0.5))


@given(st.sampled_from(FRAMES), PIXELS)
def test_a_pixel_comes_back(surfaces: Surfaces, frame: int, uv: tuple[float, float]) -> None:
    marked = surfaces.at_pixel(frame, uv)
    assert (marked.frame, marked.uv) == (frame, uv)
    np.testing.assert_allclose(surfaces.project(marked.point[None], frame), [uv], atol=1e-6)


@given(st.sampled_from(FRAMES), PIXELS)
def test_a_point_comes_back_to_its_pixel(surfaces: Surfaces, frame: int, uv: tuple[float, float]) -> None:
    assume(all(abs(x / TIMES - round(x / TIMES)) > 1e-6 for x in uv))  # on a border it may fall to either side
    again = surfaces.at_point(surfaces.at_pixel(frame, uv).point, frame=frame)
    assert again.frame == frame
    np.testing.assert_allclose(again.uv, uv, atol=1e-6)


def test_points_by_hand(surfaces: Surfaces) -> None:
    """The picture's middle shows the box at 1 m, straight ahead of cameras at x = -0.2, 0 and 0.2."""
    for frame, x in zip(FRAMES, (-0.2, 0, 0.2), strict=True):
        marked = surfaces.at_pixel(frame, (TIMES * WIDTH / 2, TIMES * HEIGHT / 2))
        np.testing.assert_allclose(marked.point, [x, 0, 1], atol=1e-4)
        across = 0.5 / CAMERA.fx
        np.testing.assert_allclose(marked.covariance, np.diag([across**2, across**2, 0.01**2]), rtol=0.02, atol=1e-9)


def test_sigma_lies_along_the_ray(surfaces: Surfaces) -> None:
    """Of a pixel at the side, whose error in depth carries it along its ray."""
    marked = surfaces.at_pixel(2, (10.0, 100.0))
    ray = marked.point / marked.point[2]
    np.testing.assert_allclose(marked.covariance[2], 0.02**2 * ray, rtol=0.01)


def test_no_depth_there(surfaces: Surfaces) -> None:
    for uv in ((-1.0, 50.0), (50.0, TIMES * HEIGHT + 0.1), (float("nan"), 50.0)):
        assert_one_line(surfaces, 2, uv)
    holed = surfaces.at_pixel(2, (50.0, 0.5))  # the unknown row is one pixel high: depth beside it counts
    assert holed.point[2] == pytest.approx(2, rel=1e-3)


def assert_one_line(surfaces: Surfaces, frame: int, uv: tuple[float, float]) -> None:
    with pytest.raises(GeometryError, match=f"frame {frame} has no depth at pixel") as caught:
        surfaces.at_pixel(frame, uv)
    assert "\n" not in str(caught.value)


def test_wide_holes_have_no_depth(run: Run, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    depth = depth_map()
    valid = depth.valid.copy()
    valid[:, :20] = False
    write_depth_png(copy.path / "depth" / "000002.png", DepthMap(depth.depth, valid), copy.encoding())
    surfaces = Surfaces(copy)
    assert_one_line(surfaces, 2, (30.0, 60.0))
    hidden = Surfaces(run).at_pixel(2, (30.0, 60.0)).point
    assert surfaces.at_point(hidden, frame=2).frame != 2, "another frame still sees it"


def test_frames_that_are_not_used(surfaces: Surfaces) -> None:
    for ask in (
        lambda: surfaces.at_pixel(3, (9.0, 9.0)),
        lambda: surfaces.at_point(np.array([0, 0, 1.0]), frame=3),
        lambda: surfaces.visible(np.zeros((1, 3)), 3),
        lambda: surfaces.project(np.zeros((1, 3)), 3),
    ):
        with pytest.raises(UsageError, match=r"frame 3 has no depth \(frames 0 to 4 are used\); the nearest is 2"):
            ask()


# -- what frames see --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", FRAMES)
def test_a_frame_sees_exactly_its_own_points(run: Run, surfaces: Surfaces, frame: int) -> None:
    points = shown(run, frame)
    valid = run.depth(frame).valid
    np.testing.assert_array_equal(surfaces.visible(points.reshape(-1, 3), frame), valid.ravel())
    behind = points[valid] + np.float32([0, 0, 1])  # a metre farther: behind wall and box
    assert not surfaces.visible(behind, frame).any()


def test_the_box_hides_the_wall(run: Run, surfaces: Surfaces) -> None:
    """Of the wall that frame 0 sees, frame 4 misses exactly what lies outside its picture or behind its box."""
    points, depth = shown(run, 0), run.depth(4)
    wall = points[(points[..., 2] > 1.5) & run.depth(0).valid]
    uv = surfaces.project(wall, 4) / TIMES
    inside = ((uv >= 0) & (uv < (WIDTH, HEIGHT))).all(1)
    column, row = np.floor(np.clip(uv, 0, (WIDTH - 1, HEIGHT - 1))).astype(int).T
    seen = inside & depth.valid[row, column] & (depth.depth[row, column] > 1.5)
    assert 0.1 < seen.mean() < 0.9
    assert (inside & ~seen).sum() > 20
    np.testing.assert_array_equal(surfaces.visible(wall, 4), seen)


def test_what_is_behind_the_camera_is_nowhere(surfaces: Surfaces) -> None:
    points = np.array([[0, 0, -1.0], [0, 0, 1.0]])
    assert surfaces.visible(points, 2).tolist() == [False, True]
    uv = surfaces.project(points, 2)
    assert np.isnan(uv[0]).all()
    np.testing.assert_allclose(uv[1], [TIMES * WIDTH / 2, TIMES * HEIGHT / 2])


def test_an_unsure_surface_is_thicker(run: Run, surfaces: Surfaces, tmp_path: Path) -> None:
    """Two standard deviations count where they are more than 5 %, up to 15 %."""
    unsure = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    depth = depth_map()
    points = np.array([[0, 0, 1.04], [0, 0, 1.09], [0, 0, 1.3]])
    assert surfaces.visible(points, 2).tolist() == [True, False, False]
    encoding = type(run.encoding()).for_sigma(2.0, "m")
    write_sigma_png(unsure.path / "sigma" / "000002.png", DepthMap(depth.depth, depth.valid, depth.depth), encoding)
    assert Surfaces(unsure).visible(points, 2).tolist() == [True, True, False]


def test_a_point_of_the_cloud_goes_to_the_frame_that_sees_it_best(surfaces: Surfaces) -> None:
    assert surfaces.at_point(np.array([-0.2, 0, 1.0])).frame == 0
    assert surfaces.at_point(np.array([0.2, 0, 1.0])).frame == 4
    assert surfaces.at_point(np.array([0.1, 0, 1.0]), frame=2).frame == 2
    left = surfaces.at_point(np.array([-1.2, 0, 2.0]), frame=4)  # outside that frame's picture
    assert left.frame == 0
    np.testing.assert_allclose(left.point, [-1.2, 0, 2], atol=1e-3)


def test_a_point_that_no_frame_sees(surfaces: Surfaces) -> None:
    for point in ([0, 0, 5.0], [0, 0, -1.0], [0, 0, 0.5], [99, 0, 2.0]):
        with pytest.raises(GeometryError, match="no frame sees a surface at"):
            surfaces.at_point(np.array(point), frame=2)


# -- lengths ----------------------------------------------------------------------------------------------------------


@given(st.sampled_from(FRAMES), PIXELS, st.sampled_from(FRAMES), PIXELS)
def test_a_length_has_no_direction(
    surfaces: Surfaces, frame: int, uv: tuple[float, float], other: int, there: tuple[float, float]
) -> None:
    a, b = surfaces.at_pixel(frame, uv), surfaces.at_pixel(other, there)
    assert surfaces.length(a, b) == pytest.approx(surfaces.length(b, a))
    assert surfaces.length(a, b)[0] == pytest.approx(np.linalg.norm(a.point - b.point))
    assert surfaces.length(a, a)[0] == 0


@given(st.sampled_from(FRAMES), PIXELS, st.sampled_from(FRAMES), PIXELS)
def test_a_measured_length_is_what_the_scale_makes_of_it(
    run: Run, surfaces: Surfaces, frame: int, uv: tuple[float, float], other: int, there: tuple[float, float]
) -> None:
    """A viewer's length, called half of what it is, halves the scene; uncertainties agree."""
    uv, there = (tuple(np.round(x, 2) for x in px) for px in (uv, there))  # type: ignore[misc]
    a, b = surfaces.at_pixel(frame, uv), surfaces.at_pixel(other, there)
    length, sigma = surfaces.length(a, b)
    assume(length > 0.1)
    measure = surfaces.measurement(a, b, length / 2, 1e-6)
    T = run.trajectory().T_world_camera
    found = scale_from_measures([measure], lambda p: run.depth(FRAMES[p]), clip_frames(run), T)
    assume(abs(found.lengths[0].before / length - 1) < 0.1)  # rounding a pixel may carry it over an edge
    assert found.factor == pytest.approx(0.5, rel=0.01)
    assert found.sigma / found.factor == pytest.approx(sigma / length, rel=0.05)


def test_the_sigma_of_a_length_is_what_noise_makes_of_it(run: Run, tmp_path: Path, rng: np.random.Generator) -> None:
    """A wall at 2 m seen with 2 % of noise a frame: the true length is found, off by the stated deviation."""
    noisy = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    wall = np.full((HEIGHT, WIDTH), 2, np.float32)
    ends = ((0, (20.0, 120.0)), (4, (150.0, 30.0)))
    encoding, of_sigma = noisy.encoding(), type(run.encoding()).for_sigma(2.0, "m")

    def measured(factors: dict[int, float]) -> tuple[float, float]:
        for frame, factor in factors.items():
            depth = DepthMap(wall * np.float32(factor), wall > 0, np.float32(0.02) * wall)
            write_depth_png(noisy.path / "depth" / f"{frame:06d}.png", depth, encoding)
            write_sigma_png(noisy.path / "sigma" / f"{frame:06d}.png", depth, of_sigma)
        surfaces = Surfaces(noisy)
        pointed = [(frame, tuple(uv + TIMES * 0.5 * rng.normal(size=2))) for frame, uv in ends]
        return surfaces.length(*(surfaces.at_pixel(frame, uv) for frame, uv in pointed))  # type: ignore[arg-type]

    camera = run.camera().scaled_to(TIMES * WIDTH, TIMES * HEIGHT)
    points = [
        (2 * (u - camera.cx) / camera.fx + x, 2 * (v - camera.cy) / camera.fy)
        for (_, (u, v)), x in zip(ends, (-0.2, 0.2), strict=True)
    ]
    truth = float(np.linalg.norm(np.subtract(*points)))
    found = [measured(dict(zip((0, 4), 1 + 0.02 * rng.normal(size=2), strict=True))) for _ in range(300)]
    lengths, sigmas = np.array(found).T
    assert np.mean(lengths) == pytest.approx(truth, abs=4 * np.median(sigmas) / np.sqrt(300))
    assert np.std(lengths) == pytest.approx(np.median(sigmas), rel=0.2)
    assert 0.6 < np.mean(np.abs(lengths - truth) < sigmas) < 0.76


def test_measurements_of_one_frame_and_of_two(surfaces: Surfaces) -> None:
    a, b = surfaces.at_pixel(2, (10.004, 100)), surfaces.at_pixel(2, (150, 100))
    assert surfaces.measurement(a, b, 2.5) == Measurement(2, (10, 100), (150, 100), 2.5)
    c = surfaces.at_pixel(4, (191.999, 143.999))
    assert surfaces.measurement(a, c, 2.5, 0.01) == Measurement(2, (10, 100), (191.99, 143.99), 2.5, 0.01, 4)
    for length, other, says in ((0.0, b, "must be positive"), (1.0, a, "same pixel"), (float("nan"), b, "no measure")):
        with pytest.raises(UsageError, match=says):
            surfaces.measurement(a, other, length)


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_without_a_camera_path(run: Run, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    (copy.path / "trajectory.txt").unlink()
    with pytest.raises(InputError, match="no camera path"):
        Surfaces(copy)
    assert clip_frames(copy).source_size == (TIMES * WIDTH, TIMES * HEIGHT), "lengths in one frame need none"


def test_products_that_do_not_fit(run: Run, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    (copy.path / "depth" / "000004.png").unlink()
    with pytest.raises(InputError, match="2 depth maps but 3 poses"):
        Surfaces(copy)


def test_older_runs_do_not_know_the_clips_size(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    shutil.rmtree(run.path / "sigma")
    marked = Surfaces(run).at_pixel(2, (WIDTH / 2, HEIGHT / 2))
    np.testing.assert_allclose(marked.point, [0, 0, 1], atol=1e-4)
    assert np.sqrt(marked.covariance[2, 2]) == pytest.approx(0.02, rel=1e-3)
