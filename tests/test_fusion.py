"""Fusion: points lie on the surfaces, whatever the order; edges, observations, normals and sigma follow their rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marigold3d.camera import depth_to_points
from marigold3d.config import FusionConfig
from marigold3d.errors import GeometryError
from marigold3d.fusion import FusionInput, VoxelGrid, edge_mask, fuse, grid_normals
from marigold3d.fusion.fuse import FusionReport
from marigold3d.fusion.support import supported
from marigold3d.progress import CloudPreview, Progress, run
from marigold3d.rigid import inverse, transform
from marigold3d.types import DepthMap, PointCloud
from tests import synthetic

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def clip() -> synthetic.Clip:
    return synthetic.Clip(synthetic.camera(), synthetic.walk(6, length=0.8))


def fused(
    clip: synthetic.Clip,
    maps: list[DepthMap],
    config: FusionConfig = FusionConfig(),  # noqa: B008 (frozen)
) -> tuple[PointCloud, FusionReport]:
    rows = np.arange(len(maps))
    views = FusionInput(rows, 10 * rows, clip.T_world_camera[rows], maps.__getitem__, clip.camera, "m")
    return run(fuse(views, ((int(r), clip.frames[r][0]) for r in rows), config))


def valid_map(depth: np.ndarray) -> DepthMap:
    return DepthMap(depth.astype(np.float32), np.isfinite(depth) & (depth > 0))


# -- the whole --------------------------------------------------------------------------------------------------------


def test_points_lie_on_the_surfaces(clip: synthetic.Clip) -> None:
    cloud, report = fused(clip, synthetic.depth_maps(clip), FusionConfig(voxel=0.05))
    distance = synthetic.distance_to_surface(cloud.points.astype(float))
    assert len(cloud) == report.points > 1500
    assert distance.max() < 0.05
    assert np.median(distance) < 0.005
    assert cloud.units == "m"
    assert cloud.observations.min() >= 2
    assert cloud.observations.max() <= 6
    assert set(cloud.frame_index.tolist()) <= {0, 10, 20, 30, 40, 50}


def test_colours_are_those_of_the_surface(clip: synthetic.Clip) -> None:
    cloud, _ = fused(clip, synthetic.depth_maps(clip), FusionConfig(voxel=0.02))
    truth = synthetic.colour_of(cloud.points.astype(float)) * 255
    assert np.median(np.abs(cloud.colors - truth)) < 12


def test_normals_face_the_cameras_and_are_those_of_the_surface(clip: synthetic.Clip) -> None:
    cloud, _ = fused(clip, synthetic.depth_maps(clip), FusionConfig(voxel=0.05))
    np.testing.assert_allclose(np.linalg.norm(cloud.normals, axis=1), 1, atol=1e-4)
    to_camera = clip.T_world_camera[cloud.frame_index // 10, :3, 3] - cloud.points
    assert (np.einsum("ni,ni->n", to_camera, cloud.normals) > 0).mean() > 0.99
    far_wall = np.abs(cloud.points[:, 2] - synthetic.ROOM[1, 2]) < 0.01
    assert far_wall.sum() > 500
    assert np.median(cloud.normals[far_wall] @ [0, 0, -1]) > 0.999


def test_a_point_that_only_one_view_claims_is_dropped(clip: synthetic.Clip) -> None:
    maps = synthetic.depth_maps(clip)
    lie = maps[2].depth.copy()
    lie[20:34, 8:22] = 0.8
    maps[2] = DepthMap(lie, maps[2].valid, 0.02 * lie)
    cloud, report = fused(clip, maps, FusionConfig(voxel=0.05))
    assert synthetic.distance_to_surface(cloud.points.astype(float)).max() < 0.05
    assert report.dropped_inconsistent > 0


def test_the_voxel_follows_scene_and_pixels_unless_it_is_given(clip: synthetic.Clip) -> None:
    """Half a per cent of the depth, but never finer than the pixels are apart: small images would leave holes."""
    maps = synthetic.depth_maps(clip)
    _, report = fused(clip, maps)
    median = float(np.median([np.median(m.depth) for m in maps]))
    assert clip.camera.fx < 300
    assert report.voxel == pytest.approx(1.5 / clip.camera.fx * median, rel=0.05)
    assert fused(clip, maps, FusionConfig(voxel=0.1))[1].voxel == 0.1


def test_every_step_shows_some_of_the_points_of_its_view(clip: synthetic.Clip) -> None:
    maps, rows = synthetic.depth_maps(clip), np.arange(6)
    views = FusionInput(rows, rows, clip.T_world_camera, maps.__getitem__, clip.camera, "m")
    shown: list[Progress] = []
    run(fuse(views, ((int(r), clip.frames[r][0]) for r in rows), FusionConfig()), shown.append)
    assert [p.done for p in shown] == [1, 2, 3, 4, 5, 6]
    for row, progress in enumerate(shown):
        preview = progress.payload
        assert isinstance(preview, CloudPreview)
        assert 1000 < len(preview.points) == len(preview.colors) <= 2000
        assert (preview.points.dtype, preview.colors.dtype) == (np.float32, np.uint8)
        assert preview.points.base is None
        assert preview.colors.base is None, "a view of the frame would keep it in memory"
        assert synthetic.distance_to_surface(preview.points.astype(float)).max() < 0.02
        z = transform(inverse(clip.T_world_camera[row]), preview.points.astype(float))[:, 2]
        assert z.min() > 0, "its own view sees them"
        truth = synthetic.colour_of(preview.points.astype(float)) * 255
        assert np.median(np.abs(preview.colors - truth)) < 12
    empty = FusionInput(
        rows, rows, clip.T_world_camera, lambda p: maps[p] if p else valid_map(np.zeros((72, 96))), clip.camera, "m"
    )
    shown.clear()
    run(fuse(empty, ((int(r), clip.frames[r][0]) for r in rows), FusionConfig()), shown.append)
    assert [len(p.payload.points) > 0 for p in shown] == [False, *[True] * 5]


def test_units_do_not_matter(clip: synthetic.Clip) -> None:
    """A scene in centimetres fuses to the same cloud, a hundred times larger."""
    maps = synthetic.depth_maps(clip)
    T = clip.T_world_camera.copy()
    T[:, :3, 3] *= 100
    large = synthetic.Clip(clip.camera, T)
    large.__dict__["frames"] = clip.frames
    a, _ = fused(clip, maps)
    b, _ = fused(large, [m.scaled(100) for m in maps])
    assert len(b) == pytest.approx(len(a), rel=0.01)
    np.testing.assert_allclose(np.median(b.points / 100, axis=0), np.median(a.points, axis=0), atol=0.01)


def test_max_depth_cuts(clip: synthetic.Clip) -> None:
    cloud, _ = fused(clip, synthetic.depth_maps(clip), FusionConfig(voxel=0.05, max_depth=2.5))
    depth = np.linalg.norm(cloud.points[:, None] - clip.T_world_camera[:, :3, 3], axis=2).min(1)
    assert len(cloud) > 0
    assert depth.max() < 2.5 * 1.4


def test_a_single_view_is_fused_without_others(clip: synthetic.Clip) -> None:
    cloud, report = fused(clip, synthetic.depth_maps(clip)[:1])
    assert (cloud.observations == 1).all()
    assert report.dropped_inconsistent == 0


def test_views_that_agree_on_nothing(clip: synthetic.Clip) -> None:
    maps = [valid_map(np.full((72, 96), z)) for z in (1.0, 2.0, 4.0)]
    with pytest.raises(GeometryError, match="do not agree"):
        fused(clip, maps)
    with pytest.raises(GeometryError, match="valid depth"):
        fused(clip, [valid_map(np.zeros((72, 96)))] * 3)


# -- edges ------------------------------------------------------------------------------------------------------------


def test_both_sides_of_a_step_are_marked_and_nothing_else() -> None:
    depth = np.full((10, 12), 2.0)
    depth[:, 6:] = 3.0
    mask = edge_mask(valid_map(depth), 0.04)
    expected = np.zeros((10, 12), bool)
    expected[:, 5:7] = True
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(edge_mask(valid_map(depth.T), 0.04), expected.T)


def test_a_slanted_plane_has_no_edges() -> None:
    columns = np.arange(200)
    depth = np.tile(1 / (0.5 - 0.002 * columns), (20, 1))  # disparity is linear across a plane
    assert not edge_mask(valid_map(depth), 0.04).any()


def test_invalid_pixels_and_their_neighbours_are_marked() -> None:
    depth = np.full((7, 9), 2.0)
    depth[3, 4] = 0
    expected = np.zeros((7, 9), bool)
    expected[[3, 2, 4, 3, 3], [4, 4, 4, 3, 5]] = True
    np.testing.assert_array_equal(edge_mask(valid_map(depth), 0.04), expected)


@settings(deadline=None)
@given(step=st.floats(1.001, 3), ratio=st.floats(0.005, 0.5), k=st.floats(1e-3, 1e3))
def test_a_step_is_an_edge_by_its_ratio_alone(step: float, ratio: float, k: float) -> None:
    if abs(step - 1 - ratio) < 1e-4:
        return
    depth = k * np.where(np.arange(8) < 4, 1.0, step) * np.ones((3, 1))
    assert edge_mask(valid_map(depth), ratio).any() == (step - 1 > ratio)


# -- normals ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(yaw=st.floats(-1.2, 1.2), pitch=st.floats(-1.2, 1.2))
def test_normals_of_a_plane(yaw: float, pitch: float) -> None:
    camera = synthetic.camera(32, 24)
    normal = synthetic.look((0, 0, 0), yaw, pitch)[:3, 2]
    rays = depth_to_points(np.ones((24, 32), np.float32), camera, np.eye(4))
    facing = rays @ normal
    if facing.min() < 0.05:
        return
    T = synthetic.look((1.0, 2.0, 3.0), 0.4, -0.2)
    points = depth_to_points((2.0 / facing).astype(np.float32), camera, T)
    found = grid_normals(points, T[:3, 3])
    np.testing.assert_allclose(found, np.broadcast_to(-T[:3, :3] @ normal, found.shape), atol=5e-3)


def test_no_normal_where_points_coincide() -> None:
    found = grid_normals(np.ones((12, 12, 3), np.float32), np.zeros(3))
    np.testing.assert_array_equal(found, 0)


# -- voxels -----------------------------------------------------------------------------------------------------------


def observations(rng: np.random.Generator, frames: int, count: int = 400) -> list[tuple]:
    """What `VoxelGrid.add` takes, for some frames that see the same unit cube."""
    out = []
    for frame in range(frames):
        normals = rng.normal(size=(count, 3))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        out.append(
            (
                rng.uniform(-0.5, 0.5, (count, 3)).astype(np.float32),
                rng.integers(0, 256, (count, 3), dtype=np.uint8),
                normals.astype(np.float32),
                rng.uniform(0.01, 0.1, count).astype(np.float32),
                frame,
            )
        )
    return out


def gathered(frames: list[tuple], voxel: float = 0.1, least: int = 1) -> PointCloud:
    grid = VoxelGrid(voxel)
    for frame in frames:
        grid.add(*frame)
    return grid.cloud(least)


def assert_same(a: PointCloud, b: PointCloud) -> None:
    for name in ("points", "normals", "sigma"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(a.colors.astype(int), b.colors, atol=1)
    np.testing.assert_array_equal(a.observations, b.observations)
    np.testing.assert_array_equal(a.frame_index, b.frame_index)


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_the_order_of_frames_and_points_is_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = observations(rng, 6)
    shuffled = [
        (*(part[order] for part in frame[:4]), frame[4]) for frame in frames for order in [rng.permutation(400)]
    ]
    rng.shuffle(shuffled)
    assert_same(gathered(frames), gathered(shuffled))


def test_merging_early_changes_nothing(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    frames = observations(rng, 8)
    at_the_end = gathered(frames)
    monkeypatch.setattr("marigold3d.fusion.voxels.MERGE_ROWS", 500)
    assert_same(at_the_end, gathered(frames))


def one(x: float, sigma: float, frame: int, color: int = 100, count: int = 1) -> tuple:
    """`count` equal points at (x, 0.5, 0.5)."""
    return (
        np.tile(np.array([[x, 0.5, 0.5]], np.float32), (count, 1)),
        np.full((count, 3), color, np.uint8),
        np.tile(np.array([[0, 0, -1]], np.float32), (count, 1)),
        np.full(count, sigma, np.float32),
        frame,
    )


def test_a_voxel_is_the_mean_weighted_by_certainty() -> None:
    cloud = gathered([one(0.2, 0.1, 3, 50), one(0.8, 0.2, 7, 200)], voxel=1.0)
    assert len(cloud) == 1
    assert cloud.points[0, 0] == pytest.approx((4 * 0.2 + 0.8) / 5)
    assert cloud.colors[0, 0] == round((4 * 50 + 200) / 5)
    assert (cloud.observations[0], cloud.frame_index[0]) == (2, 3)
    assert cloud.sigma[0] == pytest.approx(1 / np.sqrt(100 + 25))


def test_many_pixels_of_one_frame_are_one_observation() -> None:
    cloud = gathered([one(0.5, 0.1, 0, count=50), one(0.5, 0.1, 1)], voxel=1.0)
    assert cloud.observations[0] == 2
    assert cloud.sigma[0] == pytest.approx(0.1 / np.sqrt(2)), "fifty pixels of one frame share its error"


def test_sigma_never_falls_under_half_of_the_best() -> None:
    cloud = gathered([one(0.5, 0.1, f) for f in range(100)], voxel=1.0)
    assert cloud.sigma[0] == pytest.approx(0.05)


def test_voxels_seen_too_seldom_are_left_out() -> None:
    frames = [one(0.5, 0.1, 0), one(0.5, 0.1, 1), one(2.5, 0.1, 1)]
    assert len(gathered(frames, voxel=1.0, least=1)) == 2
    assert len(gathered(frames, voxel=1.0, least=2)) == 1
    assert len(gathered(frames, voxel=1.0, least=3)) == 0


@settings(deadline=None, max_examples=20)
@given(seed=seeds, voxel=st.floats(0.05, 0.5))
def test_every_point_stays_in_its_own_voxel(seed: int, voxel: float) -> None:
    cloud = gathered(observations(np.random.default_rng(seed), 3), voxel)
    cells = np.floor(cloud.points / voxel + 1e-4 * np.sign(cloud.points))
    assert len(np.unique(np.floor(cloud.points.astype(float) / voxel), axis=0)) >= 0.98 * len(cells)
    assert np.abs(cloud.points).max() <= 0.5


def test_limits_of_the_grid() -> None:
    assert len(VoxelGrid(0.1).cloud()) == 0
    with pytest.raises(GeometryError, match="positive"):
        VoxelGrid(0.0)
    with pytest.raises(GeometryError, match="--voxel"):
        VoxelGrid(1e-6).add(*one(1e3, 0.1, 0))


def test_stray_points_go_and_surfaces_stay() -> None:
    """A plane a point a voxel keeps its inside; points far apart above it go; units do not matter."""
    rng = np.random.default_rng(0)
    u, v = np.meshgrid(np.arange(40), np.arange(40))
    plane = np.stack([u.ravel(), v.ravel(), np.zeros(u.size)], 1).astype(np.float32)
    strays = np.concatenate([rng.uniform(0, 40, (60, 2)), rng.uniform(20, 200, (60, 1))], 1).astype(np.float32)
    points = np.concatenate([plane, strays])
    for unit in (1.0, 0.01):
        keep = supported(points * np.float32(unit), unit)
        assert (~keep[: len(plane)]).sum() <= 4, "at most the corners, where a quarter of a disc is left"
        assert not keep[len(plane) :].any()


def test_a_few_points_are_not_judged() -> None:
    assert supported(np.zeros((3, 3), np.float32), 1.0).all()
