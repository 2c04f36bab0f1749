"""The scores themselves: a run made of the truth is perfect in any frame and unit, a spoilt one worse by as much."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from marigold3d.export.depth_maps import DepthEncoding, write_depth_png, write_encoding
from marigold3d.export.ply import write_ply
from marigold3d.export.trajectories import write_tum
from marigold3d.rigid import Similarity
from marigold3d.store import FORMAT_VERSION, Run
from marigold3d.types import DepthMap, PointCloud, Trajectory
from tests import synthetic
from tests.scoring import Truth, nearest, score_cloud, score_run

CLIP_TRUTH = Path(__file__).resolve().parents[1] / "examples" / "clip_truth"
FRAMES, EVERY = 24, 3  # poses; depth of every third frame
MOVED = Similarity(3.0, Rotation.from_euler("xyz", (0.4, -1.1, 2.0)).as_matrix(), np.array([5.0, -2.0, 0.7]))

Spoil = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def truth() -> Truth:
    """The room of `synthetic`, taken to be in metres."""
    camera, poses = synthetic.camera(), synthetic.walk(FRAMES)
    depth = {i: synthetic.depth_of(camera, poses[i]) for i in range(0, FRAMES, EVERY)}
    return Truth(camera, Trajectory(np.arange(FRAMES) / synthetic.FPS, poses), depth, exact=True)


def unchanged(values: np.ndarray) -> np.ndarray:
    return values


def make_run(
    folder: Path,
    truth: Truth,
    world: Similarity | None = None,
    depth: Spoil = unchanged,
    path: Spoil = unchanged,
    points: Spoil = unchanged,
) -> Run:
    """A run whose products are the truth, spoilt as told, in the frame and unit of `world`; depth 0 is left out."""
    world = world or Similarity(1.0, np.eye(3), np.zeros(3))
    (folder / "depth").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "status": "finished"}))
    encoding = DepthEncoding(world.scale * 1e-4)
    write_encoding(folder / "depth" / "encoding.json", encoding)
    for index, z in truth.depth_m.items():
        spoilt = (world.scale * depth(z)).astype(np.float32)
        write_depth_png(folder / "depth" / f"{index:06d}.png", DepthMap(spoilt, spoilt > 0), encoding)
    poses = world.apply_to_poses(path(truth.path.T_world_camera))
    write_tum(folder / "trajectory.txt", replace(truth.path, T_world_camera=poses), "arbitrary")
    write_ply(folder / "cloud.ply", cloud_of(world.apply(points(truth.points(truth.depth_m)))))
    return Run.open(folder)


def cloud_of(points: np.ndarray) -> PointCloud:
    n = len(points)
    zeros, ones = np.zeros((n, 3), np.float32), np.ones(n, np.int32)
    return PointCloud(points.astype(np.float32), zeros.astype(np.uint8), zeros, np.ones(n, np.float32), ones, ones)


@pytest.mark.parametrize("world", [None, MOVED], ids=["as it is", "rotated, moved and three times as large"])
def test_a_perfect_run_scores_perfectly(tmp_path: Path, truth: Truth, world: Similarity | None) -> None:
    figures = score_run(make_run(tmp_path / "run", truth, world), truth)
    assert figures["scale"] == pytest.approx(1 / (world.scale if world else 1), rel=1e-3)
    assert (figures["posed_frames"], figures["scored_frames"]) == (FRAMES, FRAMES // EVERY)
    assert figures["abs_rel"] < 1e-4
    assert figures["ate_rmse_m"] < 1e-6
    assert figures["surface_p90_m"] < 2e-3
    for name in ("delta1", "coverage", "f_5cm", "f_10cm"):
        assert figures[name] == pytest.approx(1.0, abs=1e-6), name


def test_wrong_depth_counts_by_its_share_and_size(tmp_path: Path, truth: Truth) -> None:
    rng = np.random.default_rng(1)
    run = make_run(tmp_path / "run", truth, MOVED, depth=lambda z: np.where(rng.random(z.shape) < 0.3, 1.3, 1) * z)
    figures = score_run(run, truth)
    assert figures["abs_rel"] == pytest.approx(0.3 * 0.3, rel=0.05)
    assert figures["delta1"] == pytest.approx(1 - 0.3, abs=0.02)
    assert figures["coverage"] == 1


def test_missing_depth_lowers_coverage_alone(tmp_path: Path, truth: Truth) -> None:
    rng = np.random.default_rng(2)
    run = make_run(tmp_path / "run", truth, depth=lambda z: np.where(rng.random(z.shape) < 0.25, 0, z))
    figures = score_run(run, truth)
    assert figures["coverage"] == pytest.approx(0.75, abs=0.02)
    assert figures["abs_rel"] < 1e-4


def test_a_shaken_path_has_the_error_it_was_given(tmp_path: Path, truth: Truth) -> None:
    noise = 0.02 * np.random.default_rng(3).normal(size=(FRAMES, 3))

    def shaken(T: np.ndarray) -> np.ndarray:
        T = T.copy()
        T[:, :3, 3] += noise
        return T

    figures = score_run(make_run(tmp_path / "run", truth, MOVED, path=shaken), truth)
    given = np.sqrt((noise**2).sum(1).mean())
    assert 0.85 * given < figures["ate_rmse_m"] < given  # the fit of seven numbers takes a little of it


def test_stray_points_cost_accuracy_and_missing_ones_completeness(tmp_path: Path, truth: Truth) -> None:
    def with_strays(points: np.ndarray) -> np.ndarray:
        return np.concatenate([points, points[::4] + (0, 8.0, 0)])

    strays = score_run(make_run(tmp_path / "strays", truth, MOVED, points=with_strays), truth)
    assert strays["accuracy_5cm"] == pytest.approx(0.8, abs=1e-3)
    assert strays["completeness_5cm"] == 1
    assert strays["f_5cm"] == pytest.approx(2 * 0.8 / 1.8, abs=1e-3)
    assert strays["surface_mean_m"] == pytest.approx(0.2 * 0.5, abs=2e-3), "a stray counts as half a metre"

    half = score_run(make_run(tmp_path / "half", truth, points=lambda p: p[p[:, 0] < np.median(p[:, 0])]), truth)
    assert half["accuracy_5cm"] == 1
    assert half["completeness_5cm"] == pytest.approx(0.5, abs=0.05)


def test_a_cloud_between_two_thresholds_is_told_apart() -> None:
    flat = np.stack([*np.meshgrid(np.arange(30.0), np.arange(30.0)), np.zeros((30, 30))], -1).reshape(-1, 3)
    score = score_cloud(flat + (0, 0, 0.07), flat)
    assert (score.f_5cm, score.f_10cm) == (0, 1)


def test_a_run_of_part_of_the_clip_is_judged_by_that_part(tmp_path: Path, truth: Truth) -> None:
    run = make_run(tmp_path / "run", truth, points=lambda p: p[: len(p) // len(truth.depth_m)])
    for index in list(truth.depth_m)[1:]:
        (run.path / "depth" / f"{index:06d}.png").unlink()
    figures = score_run(run, truth)
    assert figures["scored_frames"] == 1
    assert figures["f_5cm"] == pytest.approx(1.0, abs=1e-3)


def test_a_run_without_common_frames_is_an_error(tmp_path: Path, truth: Truth) -> None:
    run = make_run(tmp_path / "run", truth)
    with pytest.raises(ValueError, match="no frame"):
        score_run(run, replace(truth, depth_m={1: truth.depth_m[0]}))


def test_depth_of_another_size_is_read_at_the_nearest_pixel() -> None:
    image = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(nearest(image, image.shape), image)
    np.testing.assert_array_equal(nearest(np.kron(image, np.ones((2, 2))), image.shape), image)
    np.testing.assert_array_equal(nearest(image, (6, 8)), np.kron(image, np.ones((2, 2))))


def test_a_recording_is_read_as_it_was_written(tmp_path: Path, truth: Truth) -> None:
    (tmp_path / "depth").mkdir()
    for index, z in truth.depth_m.items():
        Image.fromarray((1000 * z).round().astype(np.uint16)).save(tmp_path / "depth" / f"{index:06d}.png")
    np.save(tmp_path / "poses_c2w.npy", truth.path.T_world_camera)
    np.savetxt(tmp_path / "K.txt", truth.camera.K)
    read = Truth.recording(tmp_path, synthetic.FPS)
    np.testing.assert_allclose(read.camera.K, truth.camera.K)
    np.testing.assert_allclose(read.at(np.array([0.7])), truth.path.T_world_camera[[7]])
    assert read.depth_m.keys() == truth.depth_m.keys()
    np.testing.assert_allclose(read.depth_m[EVERY], truth.depth_m[EVERY], atol=6e-4)


def test_the_truth_of_the_example_agrees_with_itself() -> None:
    truth = Truth.rendered(CLIP_TRUTH)
    assert len(truth.path) == 96
    near, other = (truth.points([index], 2000) for index in (40, 48))
    everything = truth.points([40], None)
    assert len(near) == 2000
    assert score_cloud(other, everything).accuracy_5cm > 0.85, "views a third of a second apart see the same room"
