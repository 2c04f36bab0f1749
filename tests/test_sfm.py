"""Structure from motion on rendered clips whose cameras are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from marigold3d.config import PoseConfig, RefineConfig, RunConfig
from marigold3d.errors import GeometryError
from marigold3d.pipeline import reconstruct
from marigold3d.poses.sfm import reconstruct_sparse, triangulate
from marigold3d.poses.sparse import SparseModel
from marigold3d.progress import run
from marigold3d.rigid import umeyama
from marigold3d.types import Intrinsics
from marigold3d.video import open_video, write_video
from tests import synthetic

pytestmark = pytest.mark.slow

SIZE = (320, 240)
KEYFRAMES = np.arange(16)
REMEDY = "--poses FILE, or --static"


@pytest.fixture(scope="module")
def clip() -> synthetic.Clip:
    return synthetic.Clip(synthetic.camera(*SIZE), synthetic.walk(16))


@pytest.fixture(scope="module")
def file(clip: synthetic.Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip.write(tmp_path_factory.mktemp("sfm") / "clip.mp4")


def path_length(T: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(T[:, :3, 3], axis=0), axis=1).sum())


@pytest.mark.parametrize("known", [False, True])
def test_the_camera_path_is_recovered(clip: synthetic.Clip, file: Path, tmp_path: Path, known: bool) -> None:
    camera = clip.camera if known else None
    model = run(reconstruct_sparse(open_video(file), KEYFRAMES, camera, SIZE, tmp_path / "work"))
    np.testing.assert_array_equal(model.frames, KEYFRAMES)
    truth = clip.T_world_camera
    to_truth = umeyama(model.T_world_camera[:, :3, 3], truth[:, :3, 3])
    found = to_truth.apply_to_poses(model.T_world_camera)
    error = np.linalg.norm(found[:, :3, 3] - truth[:, :3, 3], axis=1)
    assert np.sqrt(np.mean(error**2)) < 0.01 * path_length(truth)
    turned = np.einsum("nij,nij->n", found[:, :3, :3], truth[:, :3, :3])
    assert np.degrees(np.arccos(np.clip((turned - 1) / 2, -1, 1))).max() < 1.0
    assert model.camera.fx == pytest.approx(clip.camera.fx, rel=1e-9 if known else 0.02)
    if known:
        assert np.isnan(model.focal_sigma_px)
    else:
        off_px = abs(model.camera.fx - clip.camera.fx)
        assert 0.01 < model.focal_sigma_px < 0.02 * clip.camera.fx
        assert off_px < 5 * model.focal_sigma_px
    assert np.median(synthetic.distance_to_surface(to_truth.apply(model.points))) < 0.03
    assert not (tmp_path / "work").exists(), "the workspace is cleared away"


def test_given_poses_are_kept_and_points_lie_on_the_surfaces(clip: synthetic.Clip, file: Path, tmp_path: Path) -> None:
    keys = KEYFRAMES[::2]
    steps = triangulate(open_video(file), keys, clip.T_world_camera[keys], clip.camera, SIZE, tmp_path / "work")
    model = run(steps)
    np.testing.assert_array_equal(model.frames, keys)
    np.testing.assert_allclose(model.T_world_camera, clip.T_world_camera[keys], atol=1e-9)
    distance = synthetic.distance_to_surface(model.points)
    assert len(model.points) > 300
    assert np.median(distance) < 0.01
    assert np.mean(distance < 0.1) > 0.95


def test_a_smaller_working_size_scales_the_camera(clip: synthetic.Clip, file: Path, tmp_path: Path) -> None:
    half = clip.camera.scaled_to(160, 120)
    steps = triangulate(open_video(file), KEYFRAMES[::3], clip.T_world_camera[::3], half, (160, 120), tmp_path / "work")
    model = run(steps)
    assert (model.camera.width, model.camera.fx) == (160, pytest.approx(half.fx))
    cues, _ = model.cues(6, clip.T_world_camera[6])
    truth = synthetic.depth_of(half, clip.T_world_camera[6])[cues.uv[:, 1].astype(int), cues.uv[:, 0].astype(int)]
    assert np.median(np.abs(cues.depth / truth - 1)) < 0.01


def test_a_turn_on_the_spot_is_refused(tmp_path: Path) -> None:
    """Without parallax there is no depth; the error says what to do."""
    camera = synthetic.camera(*SIZE)
    path = synthetic.Clip(camera, synthetic.pan(10)).write(tmp_path / "pan.mp4")
    with pytest.raises(GeometryError, match=REMEDY) as caught:
        run(reconstruct_sparse(open_video(path), np.arange(10), None, SIZE, tmp_path / "work"))
    assert "\n" not in str(caught.value)


def test_a_camera_that_stands_still_is_refused(tmp_path: Path) -> None:
    still = synthetic.Clip(synthetic.camera(*SIZE), np.tile(np.eye(4), (6, 1, 1)))
    path = still.write(tmp_path / "still.mp4")
    with pytest.raises(GeometryError, match=REMEDY):
        run(reconstruct_sparse(open_video(path), np.arange(6), None, SIZE, tmp_path / "work"))


def test_pieces_that_do_not_hold_together_are_counted(tmp_path: Path) -> None:
    """A walk, and another that looks the opposite way: one piece is kept, the user is told, nothing is wrong."""
    walk = synthetic.walk(10)
    both = synthetic.Clip(synthetic.camera(*SIZE), np.concatenate([walk, synthetic.look((0, 0, 0), np.pi) @ walk[:6]]))
    config = RunConfig(
        fuse=False, poses=PoseConfig(allow_cuts=True, keyframe_fps=100), refine=RefineConfig(enabled=False)
    )
    done = reconstruct(both.write(tmp_path / "both.mp4"), tmp_path / "run", config)
    (line,) = (w for w in done.manifest["report"]["warnings"] if "pieces" in w)
    assert "2 pieces" in line
    assert done.frame_indices in (list(range(10)), list(range(10, 16))), "one piece, with its frames between keyframes"
    model = SparseModel.from_arrays(done.load_arrays("points"))
    assert f"{len(model.frames)}, {model.other_models[0]} keyframes" in line


def test_two_views_are_said_to_be_too_few(clip: synthetic.Clip, file: Path, tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match=r"^2 different views are too few .* takes 3: .*--poses FILE.*--static"):
        run(reconstruct_sparse(open_video(file), np.array([0, 4]), None, SIZE, tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_pictures_without_texture_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "grey.mp4", [np.full((240, 320, 3), 90 + i, np.uint8) for i in range(6)], 10)
    with pytest.raises(GeometryError, match=REMEDY):
        run(reconstruct_sparse(open_video(tmp_path / "grey.mp4"), np.arange(6), None, SIZE, tmp_path / "work"))


def test_a_known_lens_is_kept(clip: synthetic.Clip, file: Path, tmp_path: Path) -> None:
    """Poses and a camera with distortion go in; the model's camera is that camera."""
    c = clip.camera
    lens = Intrinsics(c.fx, c.fy, c.cx, c.cy, c.width, c.height, (-0.01, 0.0, 0.0, 0.0))
    keys = KEYFRAMES[::4]
    model = run(triangulate(open_video(file), keys, clip.T_world_camera[keys], lens, SIZE, tmp_path / "work"))
    assert model.camera.distortion == pytest.approx((-0.01, 0.0, 0.0, 0.0))
