"""Traced scenes agree with the formulae of their solids; meshes agree with the solids they copy."""

import numpy as np
import pytest
import torch

from training import layouts, pool, scenes, solids, textures
from training.assets import Asset
from training.builder import Builder, Place
from training.tracer import Placed

K = np.array([[60.0, 0, 32], [0, 60.0, 24], [0, 0, 1]])
WIDTH, HEIGHT = 64, 48
SKY = np.full((2, 3), 0.5)
UP, SUN = (0, -1, 0, 0), (0.6, -0.8, 0.0, 0.0)


def builder() -> Builder:
    b = Builder(np.random.default_rng(0))
    b.keep(textures.material(textures.FLAT, np.full(3, 0.5), np.full(3, 0.5), grain=0.0))
    return b


def both_depths(scene: scenes.Scene, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    exact = scenes.cast(scene, pose, K, WIDTH, HEIGHT)[1][0].numpy()
    traced = scenes.cast(scene, pose, K, WIDTH, HEIGHT, tracer=scenes.tracer_of(scene))[1][0].numpy()
    return exact, traced


@pytest.mark.parametrize("seed", range(6))
def test_traced_depth_is_that_of_the_formulae(seed: int) -> None:
    """Boxes and rooms to rounding; round solids, which are triangles here, to the height of a facet."""
    shot = layouts.random_shots(seed)[0]
    exact, traced = both_depths(shot.scene, shot.T_world_camera)
    np.testing.assert_array_equal(np.isinf(exact).mean().round(2), np.isinf(traced).mean().round(2))
    seen = np.isfinite(exact) & np.isfinite(traced)
    apart = np.abs(traced[seen] / exact[seen] - 1)
    assert np.mean(apart < 1e-3) > 0.9
    assert np.mean(apart < 0.02) > 0.97, "but for silhouettes of facets"


def test_boxes_agree_to_rounding() -> None:
    b = builder()
    b.add(solids.ROOM, Place(0, -1.5, 0), (4.0, 1.5, 4.0), (0, 0, 0))
    tilt = layouts.look(np.zeros(3), 0.3, 0.5, 0.2)[:3, :3]
    b.add(solids.BOX, Place(0.3, -1.2, 2.0, 0.4), (0.5, 0.3, 0.6), (0, 0, 0), tilt)
    scene = b.build(UP, SKY, 0.0, 1.0)
    exact, traced = both_depths(scene, layouts.look(np.array([0, -1.4, -2.0]), 0.1, 0.1))
    np.testing.assert_allclose(np.median(np.abs(exact - traced)), 0, atol=1e-5)
    assert np.mean(np.abs(exact - traced) > 1e-3) < 0.01, "single pixels on edges"


def box_mesh(half: float, part_colors: np.ndarray) -> Asset:
    import trimesh

    box = trimesh.creation.box((2 * half,) * 3)
    vertices = np.asarray(box.vertices[box.faces].reshape(-1, 3), np.float32)
    normals = np.repeat(box.face_normals, 3, 0).astype(np.float32)
    count = len(box.faces)
    return Asset(
        vertices,
        normals,
        np.zeros((len(vertices), 2), np.float32),
        np.arange(3 * count, dtype=np.int32).reshape(-1, 3),
        np.zeros(count, np.int32),
        part_colors.astype(np.float32),
        np.array([-1], np.int32),
        np.zeros((0, 3, 8, 8), np.uint8),
    )


def test_a_mesh_is_seen_as_the_solid_it_copies() -> None:
    place = Place(0.2, -0.1, 3.0, 0.5)
    pictures, depths = [], []
    for as_mesh in (False, True):
        b = builder()
        b.add(solids.BOX, Place(0, 1.5, 0), (20.0, 0.5, 20.0), (0, 0, 0))
        if as_mesh:
            asset = box_mesh(0.5, np.full((1, 3), 0.5))
            origin, rows, tint = np.array([place.x, place.y, place.z]), np.array([-1]), np.ones((1, 3), np.float32)
            b.meshes.append(Placed(asset, place.rotation, origin, np.ones(3), rows, tint))
        else:
            b.add(solids.BOX, place, (0.5, 0.5, 0.5), (0, 0, 0))
        scene = b.build(SUN, SKY, 0.0, 0.4)
        rgb, depth = scenes.cast(scene, np.eye(4), K, WIDTH, HEIGHT, tracer=scenes.tracer_of(scene))
        pictures.append(rgb.numpy())
        depths.append(depth.numpy())
    np.testing.assert_allclose(depths[0], depths[1], atol=1e-4)
    np.testing.assert_allclose(pictures[0], pictures[1], atol=2e-3)


def test_a_mesh_stretches_turns_and_takes_a_material() -> None:
    b = builder()
    b.add(solids.BOX, Place(0, 10, 0), (1.0, 1.0, 1.0), (0, 0, 0))
    green = b.keep(textures.material(textures.FLAT, np.array([0, 1.0, 0]), np.array([0, 1.0, 0]), grain=0.0))
    asset = box_mesh(0.5, np.array([[1.0, 0, 0]]))
    turn = Place(0, 0, 0, np.pi / 2).rotation
    stretched = np.array([1.0, 1.0, 4.0])  # along the model's z, which the turn brings to the world's x
    mesh = Placed(asset, turn, np.array([0, 0, 5.0]), stretched, np.array([green]), np.ones((1, 3), np.float32))
    low, high = mesh.bounds()
    np.testing.assert_allclose(high - low, (4.0, 1.0, 1.0), atol=1e-6)
    b.meshes.append(mesh)
    rgb, depth = scenes.cast(b.build((0, 0, -1, 0), SKY, 0.0, 1.0), np.eye(4), K, WIDTH, HEIGHT)
    np.testing.assert_allclose(depth[0, 24, [16, 32, 48]], 4.5, atol=1e-4)
    assert (rgb[1, 24, 32] > 10 * rgb[0, 24, 32]).item()


def test_corners_are_darker_than_open_floor_and_shadows_darker_still() -> None:
    b = builder()
    b.add(solids.BOX, Place(0, 0.5, 5), (20.0, 0.5, 20.0), (0, 0, 0))
    b.add(solids.BOX, Place(0, -1.0, 5.0), (0.1, 1.0, 3.0), (0, 0, 0))  # a wall along the line of sight
    scene = b.build((0.8, -0.6, 0.0, 0.0), SKY, 0.0, 0.5)  # the sun stands to the right
    camera = layouts.look(np.array([0.0, -3.0, 0.5]), 0.0, 0.5)
    sharp = np.array([[240.0, 0, 128], [0, 240, 96], [0, 0, 1]])
    rgb, depth = scenes.cast(scene, camera, sharp, 256, 192, tracer=scenes.tracer_of(scene))
    v = 96
    z = float(depth[0, v, 240])

    def floor_at(x: float) -> float:
        return float(rgb[0, v, round(x / z * 240 + 128)])

    lit, corner, shadow = floor_at(2.2), floor_at(0.4), floor_at(-0.6)
    assert corner < 0.95 * lit
    assert shadow < 0.75 * lit


def test_views_of_a_bare_wall_are_told_from_views_of_a_room() -> None:
    b = builder()
    b.add(solids.ROOM, Place(0, -1.5, 0), (4.0, 1.5, 4.0), (0, 0, 0))
    b.add(solids.BOX, Place(0.5, -0.5, 1.0), (0.4, 0.5, 0.4), (0, 0, 0))
    scene = b.build(UP, SKY, 0.0, 1.0)
    tracer = scenes.tracer_of(scene)
    wall = layouts.Shot(scene, layouts.look(np.array([-3.0, -1.5, 2.0]), 0.1, 0.0), 50.0)
    box = layouts.Shot(scene, layouts.look(np.array([0.0, -1.5, -2.0]), 0.0, 0.2), 60.0)
    assert pool.relief(wall, tracer) < 1e-3
    assert pool.relief(box, tracer) > pool.LEAST_RELIEF


def test_light_does_not_depend_on_the_other_pixels_asked_for() -> None:
    """The random rays of shadows and corners are the same in every view."""
    shot = layouts.random_shots(3)[0]
    tracer = scenes.tracer_of(shot.scene)
    first, second = (scenes.cast(shot.scene, shot.T_world_camera, K, WIDTH, HEIGHT, tracer=tracer)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_glossy_floor_mirrors_what_stands_on_it() -> None:
    """Straight below a red wall's row, as far under the floor's edge as the wall is above it, the floor is redder."""
    reds = []
    for gloss in (0.0, 1.0):
        b = builder()
        grey = np.full(3, 0.3)
        floor = b.keep(textures.material(textures.FLAT, grey, grey, grain=0.0, gloss=gloss))
        red = b.keep(textures.material(textures.FLAT, np.array([1.0, 0, 0]), np.array([1.0, 0, 0]), grain=0.0))
        b.add(solids.BOX, Place(0, 0.5, 5), (20.0, 0.5, 20.0), (floor,) * 3)
        b.add(solids.BOX, Place(0, -1.5, 6.0), (5.0, 1.5, 0.5), (red,) * 3)
        scene = b.build((0.0, -0.6, -0.8, 0.0), SKY, 0.0, 0.5)
        camera = layouts.look(np.array([0.0, -1.0, 0.0]), 0.0, 0.0)
        rgb, depth = scenes.cast(scene, camera, K, WIDTH, HEIGHT, tracer=scenes.tracer_of(scene))
        v = 40  # floor at 60 / 16.5 = 3.6 m, before the wall at 5.5 m
        assert 3.5 < float(depth[0, v, 32]) < 3.8
        reds.append(float(rgb[0, v, 32] - rgb[1, v, 32]))
    assert abs(reds[0]) < 1e-3
    assert reds[1] > 0.1
