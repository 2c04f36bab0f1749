"""The synthetic truth is exact: analytic depths, views that agree, the same bits for the same seed."""

import numpy as np
import torch

from training import layouts, pool, scenes, solids, textures
from training.builder import Builder, Place

K = np.array([[100.0, 0, 40], [0, 100.0, 30], [0, 0, 1]])
WIDTH, HEIGHT = 80, 60
SKY = np.full((2, 3), 0.5)


def builder() -> Builder:
    b = Builder(np.random.default_rng(0))
    b.keep(textures.material(textures.MARBLE, np.zeros(3), np.ones(3), scale_m=2.0))
    return b


def scene_of(b: Builder) -> scenes.Scene:
    return b.build((0, -1, 0, 0), SKY, 0.0, 1.0)


def test_a_wall_has_constant_z_depth() -> None:
    b = builder()
    b.add(solids.BOX, Place(0, 0, 4.0), (50.0, 50.0, 1.0), (0, 0, 0))
    _, depth = scenes.render(scene_of(b), np.eye(4)[None], K, WIDTH, HEIGHT)
    assert torch.allclose(depth, torch.full_like(depth, 3.0), atol=1e-4)


def test_depth_of_the_ground_follows_from_its_row() -> None:
    b = builder()
    b.add(solids.BOX, Place(0, 1.5 + 1.0, 0), (1e3, 1.0, 1e3), (0, 0, 0))
    _, depth = scenes.render(scene_of(b), np.eye(4)[None], K, WIDTH, HEIGHT)
    rows = np.arange(40, HEIGHT)
    expected = 1.5 * 100.0 / (rows + 0.5 - 30)
    np.testing.assert_allclose(depth[0, 0, 40:, 7], expected, rtol=1e-4)
    assert torch.isinf(depth[0, 0, :30]).all(), "above the horizon is sky"


def test_a_sphere_has_its_analytic_depth() -> None:
    b = builder()
    b.add(solids.ELLIPSOID, Place(0.2, -0.1, 5.0), (1.0, 1.0, 1.0), (0, 0, 0))
    _, depth = scenes.render(scene_of(b), np.eye(4)[None], K, WIDTH, HEIGHT)
    v, u = np.nonzero(np.isfinite(depth[0, 0].numpy()))
    rays = np.stack(((u + 0.5 - 40) / 100, (v + 0.5 - 30) / 100, np.ones(len(u))), 1)
    points = rays * depth[0, 0].numpy()[v, u, None]
    radius = np.linalg.norm(points - (0.2, -0.1, 5.0), axis=1)
    assert len(u) > 500
    np.testing.assert_allclose(radius, 1.0, atol=2e-3)


def test_a_turned_cylinder_is_hit_on_its_surface() -> None:
    b = builder()
    tilt = layouts.look(np.zeros(3), 0.3, 0.5, 0.2)[:3, :3]
    b.add(solids.CYLINDER, Place(0, 0, 4.0), (0.5, 1.0, 0.5), (0, 0, 0), tilt)
    _, depth = scenes.render(scene_of(b), np.eye(4)[None], K, WIDTH, HEIGHT)
    v, u = np.nonzero(np.isfinite(depth[0, 0].numpy()))
    rays = np.stack(((u + 0.5 - 40) / 100, (v + 0.5 - 30) / 100, np.ones(len(u))), 1)
    local = (rays * depth[0, 0].numpy()[v, u, None] - (0, 0, 4.0)) @ tilt
    excess = np.maximum(np.hypot(local[:, 0], local[:, 2]) - 0.5, np.abs(local[:, 1]) - 1.0)
    np.testing.assert_allclose(excess, 0.0, atol=2e-3)


def test_two_views_agree_on_colour_where_they_see_the_same_point() -> None:
    b = builder()
    b.add(solids.ROOM, Place(0, 0, 0), (3.0, 2.0, 3.0), (0, 0, 0))
    b.add(solids.BOX, Place(0.5, 0.5, 1.5, 0.4), (0.4, 0.5, 0.3), (0, 0, 0))
    poses = np.stack(
        [layouts.look(np.array([0.0, 0, -1.0]), 0.0, 0.0), layouts.look(np.array([0.4, -0.1, -1.0]), -0.1, 0.05)]
    )
    rgb, depth = scenes.render(b.build((0.0, -1.5, 0.0, 1.0), SKY, 0.0, 0.9), poses, K, WIDTH, HEIGHT)
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    rays = np.stack(((u + 0.5 - 40) / 100, (v + 0.5 - 30) / 100, np.ones_like(u, float)), -1)
    world = (rays * depth[0, 0].numpy()[..., None]) @ poses[0][:3, :3].T + poses[0][:3, 3]
    there = (world - poses[1][:3, 3]) @ poses[1][:3, :3]
    uv = there[..., :2] / there[..., 2:] * 100 + (40, 30)
    grid = torch.tensor(uv / (WIDTH, HEIGHT) * 2 - 1, dtype=torch.float32)[None]
    seen_z = torch.nn.functional.grid_sample(depth[1:], grid, align_corners=False)[0, 0].numpy()
    seen_rgb = torch.nn.functional.grid_sample(rgb[1:], grid, align_corners=False)[0]
    visible = (np.abs(seen_z - there[..., 2]) < 0.01) & (np.abs(uv - (40, 30)) < (39, 29)).all(-1)
    difference = (seen_rgb - rgb[0]).abs().mean(0).numpy()[visible]
    assert visible.mean() > 0.5
    assert np.median(difference) < 0.01


def test_a_shadow_falls_behind_what_casts_it() -> None:
    b = builder()
    b.materials[0][1:7] = 0.5
    b.add(solids.BOX, Place(0, 2.0, 0), (1e3, 1.0, 1e3), (0, 0, 0))  # ground at y = 1
    b.add(solids.BOX, Place(0, 0.0, 5.0), (0.5, 0.1, 0.5), (0, 0, 0))
    rgb, depth = scenes.render(b.build((0, -1, 0, 0), SKY, 0.0, 0.2), np.eye(4)[None], K, WIDTH, HEIGHT)
    below, beside = rgb[0, 0, 50, 40], rgb[0, 0, 50, 10]
    assert depth[0, 0, 50, 40] == depth[0, 0, 50, 10]
    assert below < 0.6 * beside


def test_a_seed_gives_the_same_bits_and_another_gives_others() -> None:
    first, again, other = (pool.render_shard(seed, 0, count=1) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["rgb"], other["rgb"])


def test_random_shots_are_lit_finite_and_not_inside_furniture() -> None:
    for seed in range(8):
        for shot in layouts.random_shots(seed):
            rgb, log_depth = pool.render_shot(shot, np.random.default_rng(seed), 64, 48)
            assert rgb.float().std() > 2, f"seed {seed} shows nothing"
            assert torch.isfinite(log_depth).all()
            assert log_depth.float().median() > np.log(0.25)
