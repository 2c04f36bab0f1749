"""Pictures of clouds, viewpoints, and clips as lazy arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from marigold3d import view
from marigold3d.camera import project
from marigold3d.cli import main
from marigold3d.cloud_colors import COLORINGS
from marigold3d.errors import InputError, UsageError
from marigold3d.export.mesh_ply import write_mesh_ply
from marigold3d.lazy import LazyStack
from marigold3d.progress import run as drive
from marigold3d.rigid import inverse, transform
from marigold3d.splat import render_points, sampled_mesh
from marigold3d.store import Run
from marigold3d.types import Intrinsics, Trajectory, TriangleMesh
from marigold3d.video import open_video
from marigold3d.video_array import VideoArray
from marigold3d.viewpoint import SWING_DEG, facing, fitted_to, frustums, look_from, overview, spacing, turntable
from tests.gui import CLIP, HEIGHT, WIDTH, depth_map, make_run, require_window


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run")


# -- splats ------------------------------------------------------------------------------------------------------------


def test_a_point_lands_on_its_pixel():
    camera = Intrinsics.from_fov(60, 80, 60)
    T = np.eye(4)
    T[:3, 3] = (0.3, -0.2, 0.1)
    point = np.array([[0.5, 0.1, 2.0]])
    image = render_points(point, np.uint8([[255, 0, 0]]), camera, T, 0.05)
    u, v = project(transform(inverse(T), point), camera)[0]
    rows, columns = np.nonzero(image[..., 0].astype(int) - image[..., 1] > 100)
    assert abs(rows.mean() + 0.5 - v) < 0.5
    assert abs(columns.mean() + 0.5 - u) < 0.5


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_nearer_point_wins(order):
    camera, points = Intrinsics.from_fov(60, 32, 24), np.array([[0, 0, 1.0], [0, 0, 2.0]])
    colors = np.uint8([[255, 0, 0], [0, 0, 255]])
    image = render_points(points[order], colors[order], camera, np.eye(4), 0.3)
    assert image[12, 16, 0] > 200 > image[12, 16, 2]


def test_splats_grow_with_nearness_and_are_round():
    camera = Intrinsics.from_fov(60, 100, 100)
    areas = []
    for z in (1.0, 2.0):
        image = render_points(np.array([[0, 0, z]]), np.uint8([[255, 0, 0]]), camera, np.eye(4), 0.1)
        areas.append((image[..., 0] > 150).sum())
    assert areas[0] / areas[1] == pytest.approx(4, rel=0.35)
    assert areas[0] == pytest.approx(np.pi / 4 * (camera.fx * 0.1) ** 2, rel=0.3)


def test_points_behind_and_beside_leave_the_background():
    camera = Intrinsics.from_fov(60, 32, 24)
    empty = render_points(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), camera, np.eye(4), 0.1)
    points = np.array([[0, 0, -1.0], [9, 0, 1], [0, 0, 0]])
    image = render_points(points, np.full((3, 3), 255, np.uint8), camera, np.eye(4), 0.1)
    assert np.array_equal(image, empty)
    assert image.shape == (24, 32, 3)


def test_pictures_repeat_to_the_bit(rng):
    camera, points = Intrinsics.from_fov(60, 64, 48), rng.random((5000, 3)) + (-0.5, -0.5, 1)
    colors = rng.integers(0, 255, (5000, 3), np.uint8)
    order = rng.permutation(5000)
    first = render_points(points, colors, camera, np.eye(4), 0.01)
    assert np.array_equal(first, render_points(points, colors, camera, np.eye(4), 0.01))
    shuffled = render_points(points[order], colors[order], camera, np.eye(4), 0.01)
    assert np.array_equal(first, shuffled), "the order of points must not matter"


def test_a_depth_step_is_shaded():
    camera = Intrinsics.from_fov(60, 64, 48)
    depth = np.where(np.arange(64) < 32, 1.0, 2.0)[None].repeat(48, 0).astype(np.float32)
    from marigold3d.camera import depth_to_points

    points = depth_to_points(depth, camera, np.eye(4)).reshape(-1, 3)
    image = render_points(points, np.full((len(points), 3), 200, np.uint8), camera, np.eye(4), 0.06)
    row = image[24, :, 0].astype(int)
    assert row[10:28].min() >= 198, "the near surface stays lit"
    assert row[31:36].min() < 180, "the far one darkens at the step"
    assert row[45:60].min() >= 198


# -- viewpoints --------------------------------------------------------------------------------------------------------


def test_spacing_of_a_grid():
    grid = np.stack(np.meshgrid(np.arange(100), np.arange(100), [0]), -1).reshape(-1, 3) * 0.02
    assert spacing(grid) == pytest.approx(0.02, rel=0.3)
    assert spacing(np.zeros((1, 3))) > 0
    assert spacing(np.zeros((50, 3))) > 0


def test_overview_shows_the_cloud_upright(rng):
    points = rng.uniform((-2, -1, 1), (2, 1, 5), (5000, 3))
    poses = np.tile(np.eye(4), (5, 1, 1))
    poses[:, 0, 3] = np.linspace(-0.5, 0.5, 5)
    camera, T = overview(points, Trajectory(np.arange(5.0), poses), 640, 480)
    uv = project(transform(inverse(T), points), camera)
    inside = np.all((uv > 0) & (uv < (640, 480)), axis=1)
    assert inside.mean() > 0.95
    assert np.ptp(uv[:, 0]) > 0.6 * 640 or np.ptp(uv[:, 1]) > 0.6 * 480, "the cloud fills the picture"
    assert T[1, 3] < -0.5, "from above (y points down)"
    assert T[2, 3] < 0, "from behind the cameras"
    assert T[:3, 1] @ (0, 1, 0) > 0.7, "down is down"
    assert np.isclose(np.linalg.det(T[:3, :3]), 1)


@pytest.mark.parametrize("pitch_deg", [0, 89.9, 90, -90])
def test_overview_is_rigid_wherever_cameras_look(rng, pitch_deg):
    c, s = np.cos(np.radians(pitch_deg)), np.sin(np.radians(pitch_deg))
    T = np.eye(4)
    T[:3, :3] = [[1, 0, 0], [0, c, -s], [0, s, c]]
    _, pose = overview(rng.random((500, 3)), Trajectory(np.zeros(1), T[None]), 64, 48)
    assert np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-9)


def test_overview_of_a_full_turn_and_of_no_cameras(rng):
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    poses = np.stack([look_from(np.array([np.cos(a), 0, np.sin(a)]), np.array([0.0, -1, 0])) for a in angles])
    for trajectory in (Trajectory(np.arange(12.0), poses), Trajectory(np.zeros(0), np.zeros((0, 4, 4)))):
        _, pose = overview(rng.random((500, 3)), trajectory, 64, 48)
        assert np.all(np.isfinite(pose))


def test_a_turntable_goes_round_what_shows_every_side_and_swings_before_what_does_not(rng):
    outward = rng.normal(size=(4000, 3))
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    path = Trajectory(np.arange(5.0), np.stack([look_at(a) for a in np.linspace(-0.2, 0.2, 5)]))
    for normals, turn_deg in ((outward, 360.0), (np.tile([0.0, 0.0, -1.0], (4000, 1)), 2 * SWING_DEG)):
        camera, poses = turntable(outward, normals, path, 320, 240, 60)
        start, T = overview(outward, path, 320, 240)
        np.testing.assert_allclose(poses[0, :3, :3], T[:3, :3], atol=1e-9)
        np.testing.assert_array_equal(camera.K, start.K)
        assert np.ptp(poses[:, 1, 3]) < 1e-6, "level"
        angles = np.unwrap([np.arctan2(z[0], z[2]) for z in poses[:, :3, 2]])
        assert np.degrees(np.ptp(angles)) == pytest.approx(turn_deg, abs=7)
        for pose in poses:  # all of it stays in the picture, from every side
            uv = project(transform(inverse(pose), outward), camera)
            assert ((uv > 0) & (uv < (320, 240))).all(1).mean() > 0.95


def look_at(shift):
    T = np.eye(4)
    T[:3, 3] = shift, 0.0, -3.0
    return T


def test_fitting_keeps_the_whole_view():
    camera = Intrinsics.from_fov(60, 640, 480)
    for width, height in ((1280, 720), (300, 600), (640, 480)):
        fitted = fitted_to(camera, width, height)
        assert (fitted.width, fitted.height) == (width, height)
        assert fitted.fx == pytest.approx(fitted.fy)
        assert fitted.fov_x_deg >= camera.fov_x_deg - 0.2
        assert fitted.cx == pytest.approx(width / 2, abs=1)


def test_walls_seen_from_behind_are_left_out():
    points, normals = np.zeros((3, 3)), np.array([[0, 0, -1.0], [0, 0, 1], [0, 0, 0]])
    T = np.eye(4)
    T[2, 3] = -2
    assert facing(points, normals, T).tolist() == [True, False, True]


def test_frustums_stand_at_the_cameras():
    poses = np.tile(np.eye(4), (40, 1, 1))
    poses[:, 0, 3] = np.arange(40)
    camera = Intrinsics.from_fov(60, 64, 48)
    pyramids = frustums(Trajectory(np.arange(40.0), poses), camera, np.random.default_rng(0).random((50, 3)))
    assert pyramids.shape[1:] == (5, 3)
    assert len(pyramids) <= 12
    assert np.allclose(pyramids[[0, -1], 0], poses[[0, -1], :3, 3])
    assert np.all(pyramids[:, 1:, 2] > 0), "they open along z"


# -- pictures of runs --------------------------------------------------------------------------------------------------


def test_screenshot_is_a_picture(run, tmp_path):
    path = view.screenshot(run, tmp_path / "view.png", width=320, height=240)
    image = np.asarray(Image.open(path)).astype(int)
    assert image.shape == (240, 320, 3)
    coloured = np.ptp(image, axis=2) > 80
    assert 0.1 < coloured.mean() < 0.95
    orange = np.abs(image - view.PATH_COLOR).sum(2) < 40
    assert orange.any(), "the camera path is drawn"
    bare = view.picture(run, width=320, height=240, cameras=False).astype(int)
    assert not (np.abs(bare - view.PATH_COLOR).sum(2) < 40).any()


def test_from_a_frame_the_picture_is_the_frame(run):
    image = view.picture(run, width=WIDTH, height=HEIGHT, from_frame=2).astype(int)
    box = depth_map().depth < 1.5
    red = image[..., 0] - image[..., 2] > 80
    assert (red & box).sum() > 0.9 * box.sum()
    assert (red & ~box).sum() < 0.3 * box.sum(), "a splat reaches at most one pixel over the edge"
    assert image[5, WIDTH // 2, 1] > image[5, WIDTH // 2, 2], "green above"


def test_colours_say_what_they_are_asked_for(run, tmp_path):
    plain = view.picture(run, width=160, height=120, cameras=False)
    shown = {by: view.picture(run, width=160, height=120, cameras=False, color=by) for by in COLORINGS}
    np.testing.assert_array_equal(shown["rgb"], plain)
    cloud, height = run.cloud(), view.coloring(run, "height")
    assert (shown["height"] != plain).any()
    assert height.low < height.high
    low, high = cloud.points[:, 1].argmax(), cloud.points[:, 1].argmin()  # y points down
    assert height.colors[low][0] > height.colors[low][2], "red"
    assert height.colors[high][2] > height.colors[high][0], "blue"
    assert height.legend.startswith("height [")


def test_an_orbit_is_a_video_that_begins_with_the_screenshot(run, tmp_path):
    steps = view.orbit(run, tmp_path / "turn.mp4", width=160, height=120, seconds=0.4, fps=10)
    seen = []
    assert drive(steps, seen.append) == tmp_path / "turn.mp4"
    assert [(p.done, p.total) for p in seen] == [(i, 4) for i in range(1, 5)]
    with av.open(str(tmp_path / "turn.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24").astype(int) for f in container.decode(video=0)]
    assert len(frames) == 4
    assert frames[0].shape == (120, 160, 3)
    assert max(np.abs(a - frames[0]).mean() for a in frames[1:]) > 3, "it moves"


def tilted_square() -> TriangleMesh:
    corners = np.array([[-1, -1, 2], [1, -1, 2], [1, 1, 3], [-1, 1, 3]], np.float32)
    normals = np.tile(np.float32([0, 0.4472, -0.8944]), (4, 1))
    colors = np.array([[0, 0, 0], [200, 0, 0], [200, 100, 0], [0, 100, 0]], np.uint8)
    return TriangleMesh(corners, np.array([[0, 2, 1], [0, 3, 2]], np.int32), normals, colors, "m")


def test_points_are_spread_evenly_over_a_mesh():
    cloud = sampled_mesh(tilted_square(), 20_000)
    assert len(cloud) == 20_000
    np.testing.assert_allclose(cloud.points[:, 2], 2.5 + cloud.points[:, 1] / 2, atol=1e-5)
    np.testing.assert_allclose(cloud.colors[:, 0], 100 * (cloud.points[:, 0] + 1), atol=1)
    counts = np.histogram2d(cloud.points[:, 0], cloud.points[:, 1], 5)[0]
    assert counts.min() > 0.8 * counts.mean()
    assert counts.max() < 1.2 * counts.mean()


def test_a_mesh_is_drawn_without_display(run, tmp_path):
    with pytest.raises(InputError, match="--mesh"):
        view.picture(run, mesh=True)
    write_mesh_ply(run.path / "mesh.ply", tilted_square())
    image = view.picture(run, width=160, height=120, mesh=True, cameras=False).astype(int)
    red = (image[..., 0] > 60) & (image[..., 2] < 40)
    assert red.mean() > 0.05
    assert (view.picture(run, width=160, height=120, mesh=True, cameras=False, color="height") != image).any()


def test_the_commands_of_view(run, tmp_path, monkeypatch, capsys):
    def command(*args: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["marigold3d", "view", str(run.path), *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capsys.readouterr().err.strip()

    turn, still, small = tmp_path / "o.mp4", tmp_path / "a.png", ("--width", 96, "--height", 64)
    assert command("--orbit", turn, "--seconds", 0.1, *small)[0] == 0
    assert turn.stat().st_size > 0
    code, said = command("--screenshot", still, "--color", "height", *small)
    assert code == 0
    assert said.startswith("height [")
    assert Image.open(still).size == (96, 64)
    wrong = (["--color", "taste"], ["--orbit", turn, "--screenshot", still], ["--screenshot", still, "--width", 0])
    for code, args in (*((2, args) for args in wrong), (7, ["--orbit", tmp_path / "a.gif"])):
        refused, said = command(*args)
        assert refused == code
        assert len(said.splitlines()) == 1


def test_what_cannot_be_shown_says_so(run, tmp_path):
    with pytest.raises(InputError, match=r"no posed frame 1: it holds 3 frames \(0 to 4\)"):
        view.screenshot(run, tmp_path / "a.png", from_frame=1)
    (run.path / "cloud.ply").unlink()
    with pytest.raises(InputError, match="--fuse"):
        view.screenshot(run, tmp_path / "a.png")


def test_no_display_is_one_line(run, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UsageError, match="--screenshot"):
        view.show(run)


def test_stdout_of_libraries_goes_to_stderr(capfd):
    with view.stdout_to_stderr():
        os.write(1, b"FEngine\n")
    os.write(1, b"result\n")
    captured = capfd.readouterr()
    assert captured.out == "result\n"
    assert "FEngine" in captured.err


def test_pictures_need_no_open3d(run, tmp_path):
    code = f"""
import sys
sys.modules["open3d"] = None
from marigold3d.store import Run
from marigold3d.view import screenshot
screenshot(Run.open({str(run.path)!r}), {str(tmp_path / "a.png")!r}, width=64, height=48)
"""
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.gui
@pytest.mark.parametrize("mesh", [False, True])
def test_open3d_window_opens_and_closes(run, mesh):
    require_window()
    pytest.importorskip("open3d")
    write_mesh_ply(run.path / "mesh.ply", tilted_square())
    code = f"""
import open3d
from marigold3d.store import Run
from marigold3d import view
open3d.visualization.Visualizer.run = lambda window: window.poll_events()
view.show(Run.open({str(run.path)!r}), mesh={mesh})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


# -- lazy stacks -------------------------------------------------------------------------------------------------------


class Counting(LazyStack):
    """Frame i is full of i; counts what is read."""

    def __init__(self) -> None:
        super().__init__((10, 4, 5), np.float32)
        self.read: list[int] = []

    def _read(self, position):
        self.read.append(position)
        return np.arange(20, dtype=np.float32).reshape(4, 5) + 100 * position


@pytest.mark.parametrize(
    "key",
    [
        3,
        -1,
        np.int64(2),
        slice(2, 6),
        slice(None, None, -3),
        [1, 4],
        (2, 1, 3),
        (slice(1, 3), slice(None), 2),
        (..., 0),
        (1, ..., 2),
        (slice(0, 0),),
        (),
        ...,
    ],
)
def test_a_lazy_stack_indexes_like_its_array(key):
    stack = Counting()
    assert np.array_equal(stack[key], np.asarray(Counting())[key])


def test_a_lazy_stack_reads_only_what_is_asked():
    stack = Counting()
    stack[4], stack[4], stack[4, 0]
    assert stack.read == [4]
    assert (stack.ndim, len(stack), stack.size) == (3, 10, 200)
    with pytest.raises(IndexError):
        stack[10]
    with pytest.raises(ValueError, match="read-only"):
        stack[4][0, 0] = 1


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr("marigold3d.lazy.CACHE_BYTES", 1)
    stack = Counting()
    for i in range(10):
        stack[i]
    assert len(stack._cache) == 4


# -- clips as arrays ---------------------------------------------------------------------------------------------------


def encode(path: Path, frames: int, codec: str = "libx264", **options: str) -> Path:
    """A clip whose frames tell their number by their grey value."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for i in range(frames):
            rgb = np.full((48, 64, 3), 5 * i % 250, np.uint8)
            rgb[:, (3 * i) % 60 : (3 * i) % 60 + 4] = 255 - 5 * i % 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return path


CLIPS = {
    "b-frames": ("a.mp4", "libx264", {"bf": "3", "g": "12", "b_strategy": "0"}),
    "open groups": ("a.mkv", "libx264", {"x264-params": "open-gop=1:bframes=3:keyint=8"}),
    "one keyframe": ("a.mp4", "libx264", {"g": "1000", "bf": "2"}),
    "all intra": ("a.mov", "mjpeg", {}),
    "avi without times": ("a.avi", "mpeg4", {"bf": "0", "g": "10"}),
    "webm": ("a.webm", "libvpx", {"g": "9", "b:v": "500k"}),
}


@pytest.mark.parametrize("kind", CLIPS)
def test_every_frame_is_the_sequential_one(kind, tmp_path, rng):
    name, codec, options = CLIPS[kind]
    path = encode(tmp_path / name, 45, codec, **options)
    expected = np.stack([frame.rgb for frame in open_video(path).frames()])
    for order in (rng.permutation(len(expected)), range(len(expected)), range(len(expected) - 1, -1, -1)):
        video = VideoArray(path)
        assert video.shape == expected.shape
        assert all(np.array_equal(video[int(i)], expected[int(i)]) for i in order)
        video.close()
        assert np.array_equal(video[::7], expected[::7]), "it opens again"


def test_the_example_clip_is_exact(rng):
    if not CLIP.is_file():
        pytest.skip("examples/clip.mp4 is not there")
    video = VideoArray(CLIP)
    wanted = {int(i) for i in rng.choice(len(video), 6, replace=False)}
    expected = {frame.index: frame.rgb for frame in open_video(CLIP).frames() if frame.index in wanted}
    assert all(np.array_equal(video[i], rgb) for i, rgb in expected.items())


def test_a_clip_can_be_read_from_several_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    path = encode(tmp_path / "a.mp4", 30, bf="2", g="8")
    expected = [frame.rgb for frame in open_video(path).frames()]
    video = VideoArray(path)
    with ThreadPoolExecutor(4) as pool:
        frames = list(pool.map(lambda i: video[i], [i * 7 % 30 for i in range(60)]))
    assert all(np.array_equal(frame, expected[i * 7 % 30]) for i, frame in enumerate(frames))


def test_what_is_no_clip_says_so(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.mp4"):
        VideoArray(tmp_path / "a.mp4")
