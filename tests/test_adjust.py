"""Disturbed poses and a wrong focal length are found again; good ones, and what pictures cannot tell, stay as given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from marigold3d.camera import project
from marigold3d.errors import InputError
from marigold3d.multiview.adjust import (
    INCONSISTENT_PX,
    Adjusted,
    adjust_poses,
    carried_onto,
    photometric_residual,
)
from marigold3d.multiview.bundle import Prior, Seen, State
from marigold3d.multiview.matches import Matches, find_matches
from marigold3d.multiview.points import Picture, find_points, neighbours
from marigold3d.progress import run
from marigold3d.rigid import Similarity, inverse, transform
from marigold3d.types import DepthMap, Intrinsics
from tests import synthetic

CAMERA = synthetic.camera(160, 120)
DEPTH = 2.5  # typical of the room
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clip() -> synthetic.Clip:
    return synthetic.Clip(CAMERA, synthetic.walk(7, length=0.7))


def grays(clip: synthetic.Clip) -> list[np.ndarray]:
    return [luma(rgb) for rgb, _ in clip.frames]


def luma(rgb: np.ndarray) -> np.ndarray:
    return (rgb @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)


def bent(clip: synthetic.Clip, amount: float) -> list[DepthMap]:
    """Depth maps that are wrong by up to `amount`, smoothly, and know that they may be."""
    z = [
        (m.depth * np.exp(amount * synthetic.wave(m.depth.shape))).astype(np.float32)
        for m in synthetic.depth_maps(clip)
    ]
    return [DepthMap(d, np.ones(d.shape, bool), np.float32(0.1) * d) for d in z]


def disturbed(T: np.ndarray, degrees: float = 0.3, shift: float = 0.01 * DEPTH) -> np.ndarray:
    """Poses off by so much, each on its own."""
    rng = np.random.default_rng(3)
    off = np.tile(np.eye(4), (len(T), 1, 1))
    off[:, :3, :3] = Rotation.from_rotvec(np.radians(degrees / np.sqrt(3)) * rng.normal(size=(len(T), 3))).as_matrix()
    off[:, :3, 3] = shift / np.sqrt(3) * rng.normal(size=(len(T), 3))
    return T @ off


def errors(T: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """RMS error of rotations, degrees, and of centres, after the best similarity of the world."""
    centres = [(P[:, :3, 3] - P[:, :3, 3].mean(0)) for P in (T, truth)]
    scale = np.sqrt((centres[1] ** 2).sum() / max((centres[0] ** 2).sum(), 1e-12))
    off = inverse(truth) @ carried_onto(T, truth, float(scale))
    turn = Rotation.from_matrix(off[:, :3, :3]).magnitude()
    return float(np.degrees(np.sqrt((turn**2).mean()))), float(np.sqrt((off[:, :3, 3] ** 2).sum(1).mean()))


def adjusted(clip: synthetic.Clip, T: np.ndarray, bend: float = 0.1, **options: bool) -> Adjusted:
    return run(adjust_poses(grays(clip), T, clip.camera, bent(clip, bend).__getitem__, **options))


def assert_found_again(result: Adjusted, given: np.ndarray, truth: np.ndarray, share: float = 0.25) -> None:
    before, after = errors(given, truth), errors(result.T_world_camera, truth)
    assert result.kept, result.reason
    assert after[0] < share * before[0]
    assert after[1] < share * before[1]
    assert result.rms_after_px < 0.5 * result.rms_before_px


LENS = replace(CAMERA, distortion=(-0.15, 0.04, 0.001, -0.002))


@pytest.mark.parametrize("camera", [CAMERA, LENS], ids=["pinhole", "lens"])
@pytest.mark.parametrize("focal_error", [1.0, 1.02])
def test_disturbed_poses_and_a_wrong_focal_length_are_found_again(camera: Intrinsics, focal_error: float) -> None:
    clip = synthetic.Clip(camera, synthetic.walk(7, length=0.7))
    given = disturbed(clip.T_world_camera)
    wrong = replace(camera, fx=camera.fx * focal_error, fy=camera.fy * focal_error)
    result = run(adjust_poses(grays(clip), given, wrong, bent(clip, 0.1).__getitem__))
    assert_found_again(result, given, clip.T_world_camera)
    assert result.camera.fx == pytest.approx(camera.fx, rel=0.01 if camera.distortion else 0.007)
    assert result.camera.fx == pytest.approx(wrong.fx * result.focal_factor)
    assert result.camera.fx / result.camera.fy == pytest.approx(camera.fx / camera.fy)


def test_poses_too_far_off_for_one_round_of_matching_are_found_again(clip: synthetic.Clip) -> None:
    given = disturbed(clip.T_world_camera, 2.0, 0.05 * DEPTH)
    start = run(photometric_residual(grays(clip), given, CAMERA, bent(clip, 0.1).__getitem__))
    assert start.matches < 0.5 * start.tried
    result = adjusted(clip, given)
    assert_found_again(result, given, clip.T_world_camera, share=0.1)


def test_a_focal_length_that_is_known_stays(clip: synthetic.Clip) -> None:
    given = disturbed(clip.T_world_camera)
    result = adjusted(clip, given, focal=False)
    assert_found_again(result, given, clip.T_world_camera)
    assert result.camera.fx == pytest.approx(CAMERA.fx, rel=1e-6)


@pytest.mark.parametrize("bend", [0.0, 0.1])
def test_exact_poses_stay_as_they_are_whatever_the_depth(clip: synthetic.Clip, bend: float) -> None:
    result = adjusted(clip, clip.T_world_camera, bend)
    assert not result.kept
    assert "held-out" in result.reason
    assert result.T_world_camera is clip.T_world_camera
    assert result.camera is CAMERA
    assert result.focal_factor == 1.0
    assert result.rms_before_px < 0.25


def test_a_turn_on_the_spot_is_adjusted_too() -> None:
    clip = synthetic.Clip(CAMERA, synthetic.pan(6, angle=0.4))
    given = disturbed(clip.T_world_camera, 0.4, 0.0)
    result = adjusted(clip, given)
    assert result.kept
    assert errors(result.T_world_camera, clip.T_world_camera)[0] < 0.25 * errors(given, clip.T_world_camera)[0]


def test_frame_and_unit_of_the_world_do_not_matter(clip: synthetic.Clip) -> None:
    given = disturbed(clip.T_world_camera)
    here = adjusted(clip, given)
    other = Similarity(7.0, Rotation.from_rotvec([0.4, -1.1, 0.3]).as_matrix(), np.array([20.0, -3.0, 11.0]))
    maps = [m.scaled(7.0) for m in bent(clip, 0.1)]
    there = run(adjust_poses(grays(clip), other.apply_to_poses(given), CAMERA, maps.__getitem__))
    np.testing.assert_allclose(there.T_world_camera, other.apply_to_poses(here.T_world_camera), atol=2e-3)
    assert there.rms_after_px == pytest.approx(here.rms_after_px, rel=0.02)
    assert there.focal_factor == pytest.approx(here.focal_factor, abs=2e-4)


def test_the_path_stays_where_it_was_and_the_scene_as_large_as_the_depth_maps_say(clip: synthetic.Clip) -> None:
    given = disturbed(clip.T_world_camera)
    given[:, :3, 3] *= 1.05  # the depth maps are right
    result = adjusted(clip, given, bend=0.0)
    assert result.kept
    centres, truth = result.T_world_camera[:, :3, 3], clip.T_world_camera[:, :3, 3]
    np.testing.assert_allclose(centres.mean(0), given[:, :3, 3].mean(0), atol=1e-9)
    turned = np.einsum("nij,nkj->ik", given[:, :3, :3], result.T_world_camera[:, :3, :3])
    np.testing.assert_allclose(turned, turned.T, atol=1e-9)  # the best rotation between the two is none
    assert (centres - centres.mean(0)).std() == pytest.approx((truth - truth.mean(0)).std(), rel=0.01)


def test_carrying_a_path_onto_itself_undoes_any_similarity() -> None:
    line = np.stack([synthetic.look((x, 0, 0), 0.2 * x) for x in (0.0, 1.0, 2.0)])  # determines no rotation by itself
    turn = Rotation.from_rotvec([1.0, 2.0, 0.5]).as_matrix()
    moved = Similarity(3.0, turn, np.array([1.0, 2, 3])).apply_to_poses(line)
    np.testing.assert_allclose(carried_onto(moved, line, 1 / 3), line, atol=1e-12)
    np.testing.assert_allclose(carried_onto(line[:1], moved[:1], 3.0), moved[:1], atol=1e-12)


def test_something_that_moves_does_not_pull(clip: synthetic.Clip) -> None:
    """A textured square, an eighth of the picture, that goes its own way."""
    noise = np.random.default_rng(1).integers(0, 256, (12, 12)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    pictures = grays(clip)
    for i, picture in enumerate(pictures):
        picture[40 + 3 * i : 88 + 3 * i, 30 + 2 * i : 78 + 2 * i] = noise
    given = disturbed(clip.T_world_camera)
    result = run(adjust_poses(pictures, given, CAMERA, bent(clip, 0.1).__getitem__))
    assert result.kept
    before, after = errors(given, clip.T_world_camera), errors(result.T_world_camera, clip.T_world_camera)
    assert after[0] < 0.3 * before[0]
    assert after[1] < 0.3 * before[1]


def test_brightness_and_contrast_do_not_matter(clip: synthetic.Clip) -> None:
    pictures = [(gray * (1 - 0.07 * i) + 9 * i).astype(np.uint8) for i, gray in enumerate(grays(clip))]
    given = disturbed(clip.T_world_camera)
    result = run(adjust_poses(pictures, given, CAMERA, bent(clip, 0.1).__getitem__))
    assert_found_again(result, given, clip.T_world_camera)


def test_without_texture_nothing_is_touched(clip: synthetic.Clip) -> None:
    blank = [np.full_like(gray, 128) for gray in grays(clip)]
    given = disturbed(clip.T_world_camera)
    result = run(adjust_poses(blank, given, CAMERA, bent(clip, 0.0).__getitem__))
    assert not result.kept
    assert result.T_world_camera is given
    assert "matches" in result.reason
    assert result.matches == 0
    found = run(photometric_residual(blank, given, CAMERA, bent(clip, 0.0).__getitem__))
    assert np.isnan(found.across_px)
    assert found.matches == 0


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pictures_have_nothing_to_be_adjusted_to(clip: synthetic.Clip, count: int) -> None:
    given = clip.T_world_camera[:count]
    result = run(adjust_poses(grays(clip)[:count], given, CAMERA, bent(clip, 0.0).__getitem__))
    assert not result.kept
    assert result.T_world_camera is given
    assert result.reason


def test_two_pictures_are_brought_in_line(clip: synthetic.Clip) -> None:
    two = synthetic.Clip(CAMERA, clip.T_world_camera[2:4])
    given = disturbed(two.T_world_camera, 0.5)
    result = adjusted(two, given, focal=False)
    assert result.kept
    turn = [
        Rotation.from_matrix((inverse(T[0]) @ T[1])[:3, :3]) for T in (two.T_world_camera, given, result.T_world_camera)
    ]
    assert (turn[0].inv() * turn[2]).magnitude() < 0.3 * (turn[0].inv() * turn[1]).magnitude()


def test_equal_input_gives_equal_output(clip: synthetic.Clip) -> None:
    given = disturbed(clip.T_world_camera)
    np.testing.assert_array_equal(adjusted(clip, given).T_world_camera, adjusted(clip, given).T_world_camera)


def test_sizes_that_do_not_belong_together_are_refused(clip: synthetic.Clip) -> None:
    maps = bent(clip, 0.0)
    with pytest.raises(InputError, match="poses"):
        run(adjust_poses(grays(clip), clip.T_world_camera[:3], CAMERA, maps.__getitem__))
    with pytest.raises(InputError, match="camera"):
        run(adjust_poses(grays(clip), clip.T_world_camera, CAMERA.scaled_to(80, 60), maps.__getitem__))


def test_the_residual_across_epipolar_lines_sees_poses_not_depth(clip: synthetic.Clip) -> None:
    def residual(T: np.ndarray, bend: float) -> tuple[float, float]:
        found = run(photometric_residual(grays(clip), T, CAMERA, bent(clip, bend).__getitem__))
        assert 0.5 * found.tried < found.matches <= found.tried
        return found.across_px, found.along_px

    exact, exact_bent = residual(clip.T_world_camera, 0.0), residual(clip.T_world_camera, 0.15)
    assert exact[0] < 0.05
    assert exact_bent[0] < 0.08
    assert exact_bent[1] > 5 * exact[1]
    assert residual(disturbed(clip.T_world_camera, 0.4), 0.15)[0] > INCONSISTENT_PX


def test_poses_without_parallax_are_judged_too() -> None:
    clip = synthetic.Clip(CAMERA, synthetic.pan(6, angle=0.4))
    maps = bent(clip, 0.1).__getitem__
    assert run(photometric_residual(grays(clip), clip.T_world_camera, CAMERA, maps)).across_px < 0.05
    given = disturbed(clip.T_world_camera, 0.4, 0.0)
    assert run(photometric_residual(grays(clip), given, CAMERA, maps)).across_px > INCONSISTENT_PX


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_picture_disagrees_with_nothing(clip: synthetic.Clip, count: int) -> None:
    maps = bent(clip, 0.0).__getitem__
    found = run(photometric_residual(grays(clip)[:count], clip.T_world_camera[:count], CAMERA, maps))
    assert np.isnan(found.across_px)
    assert found.tried == 0


def measure(clip: synthetic.Clip, maps: Callable[[int], DepthMap], anchor: int, others: list[int]) -> Matches:
    pictures = {i: Picture.of(gray) for i, gray in enumerate(grays(clip))}
    points = find_points(anchor, pictures[anchor], maps(anchor))
    return run(find_matches(pictures, points, [(anchor, others)], clip.T_world_camera, clip.camera, CPU))


def test_matches_are_true_to_a_small_part_of_a_pixel(clip: synthetic.Clip) -> None:
    """From depth that is wrong by up to a tenth: the truth is where the surface really is."""
    found = measure(clip, bent(clip, 0.1).__getitem__, 3, [1, 2, 5])
    column, row = found.points.uv.astype(int).T
    z = clip.frames[3][1][row, column].astype(float)
    K = CAMERA
    rays = np.stack([(found.points.uv[:, 0] - K.cx) / K.fx, (found.points.uv[:, 1] - K.cy) / K.fy, np.ones(len(z))], 1)
    world = transform(clip.T_world_camera[3], rays * z[:, None])[found.point]
    T = inverse(clip.T_world_camera)[found.frame]
    true_uv = project(np.einsum("oij,oj->oi", T[:, :3, :3], world) + T[:, :3, 3], CAMERA)
    off = np.linalg.norm(found.uv - true_uv, axis=1)
    assert len(found) > 0.5 * found.tried
    assert np.median(off) < 0.06
    assert (off < 0.5).mean() > 0.95


def test_derivatives_are_those_of_the_residuals(clip: synthetic.Clip) -> None:
    lens = synthetic.Clip(LENS, clip.T_world_camera[:4])
    found = measure(lens, bent(lens, 0.1).__getitem__, 1, [0, 2, 3])
    state = State(disturbed(lens.T_world_camera), LENS, found.points.inverse_depth, DEPTH)
    seen, small = Seen.of(found, state), 1e-6
    zero, still = np.zeros((4, 6)), np.zeros(len(found.points))

    def numeric(poses: np.ndarray, focal: float, rho: np.ndarray) -> np.ndarray:
        there, back = (Seen.of(found, state.moved(k * poses, k * focal, k * rho)).residual_px for k in (small, -small))
        return (there - back) / (2 * small)

    for k in range(6):
        for frame, expected in ((1, seen.by_anchor), (2, seen.by_frame)):
            step = zero.copy()
            step[frame, k] = 1
            of = found.frame == 2
            np.testing.assert_allclose(numeric(step, 0, still)[of], expected[of, :, k], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(numeric(zero, 1, still), seen.by_log_focal, rtol=2e-3, atol=2e-2)
    np.testing.assert_allclose(numeric(zero, 0, still + 1), seen.by_inverse_depth, rtol=1e-4, atol=1e-3)


def test_the_prior_is_nothing_where_it_was_taken(clip: synthetic.Clip) -> None:
    points = find_points(0, Picture.of(grays(clip)[0]), bent(clip, 0.0)[0])
    state = State(clip.T_world_camera, CAMERA, points.inverse_depth, DEPTH)
    prior = Prior(points, clip.T_world_camera, CAMERA, focal=True)
    assert prior.cost(state) == pytest.approx(0, abs=1e-9)
    step = np.zeros((7, 6))
    step[3] = 0.01 * np.arange(1, 7)
    np.testing.assert_allclose(prior.off(state.moved(step, 0.02, 0 * points.inverse_depth))[0], step, atol=1e-9)


def test_neighbours_see_the_same_and_hold_the_chain(clip: synthetic.Clip) -> None:
    T = synthetic.walk(40, length=1.2)
    for i in range(39):
        near = neighbours(T, CAMERA, DEPTH, i, 4)
        assert i + 1 in near
        assert i not in near
        assert 4 <= len(near) <= 5
    away = T.copy()
    away[20:] = away[20:] @ synthetic.look((0, 0, 0), np.pi)
    assert max(neighbours(away, CAMERA, DEPTH, 5, 8)) < 20
