"""How sure a focal length is, on COLMAP's own synthetic models, whose true one is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from marigold3d.poses.mapper import _focal_sigma_of_keypoints_px, _focal_sigma_of_parts_px, _focal_sigma_px

pycolmap = pytest.importorskip("pycolmap")
FOCAL_PX, FRAMES = 1280.0, 24


def model_of(seed: int, breathing: float = 0.0, frames: int = FRAMES) -> Any:
    """Adjusted to keypoints that err by 1 px each, and with `breathing` by a zoom that a sixth of the frames shares."""
    pycolmap.set_random_seed(seed)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, frames, 150
    model = pycolmap.synthesize_dataset(options)
    noise = pycolmap.SyntheticNoiseOptions()
    noise.point2D_stddev = 1.0
    pycolmap.synthesize_noise(noise, model)
    zoom = 1 + breathing * np.random.default_rng(seed).normal(size=6)
    centre = np.array([512.0, 384.0])
    for number, frame in enumerate(sorted(model.reg_frame_ids())):
        for data in model.frames[frame].image_ids:
            for keypoint in model.images[data.id].points2D:
                keypoint.xy = centre + (keypoint.xy - centre) * zoom[number * 6 // frames]
    quiet = pycolmap.BundleAdjustmentOptions()
    quiet.print_summary = False
    pycolmap.bundle_adjustment(model, quiet)
    return model


def focal_px(model: Any) -> float:
    return float(next(iter(model.cameras.values())).params[0])


@pytest.mark.parametrize("sigma_of", [_focal_sigma_of_keypoints_px, _focal_sigma_of_parts_px])
def test_independent_errors_are_seen_as_large_as_they_are(sigma_of: Any) -> None:
    models = [model_of(seed) for seed in range(8)]
    off = np.array([(focal_px(model) - FOCAL_PX) / sigma_of(model) for model in models])
    assert 0.4 < np.sqrt(np.mean(off**2)) < 2.0  # chi-square of 8: 0.4 to 1.8 in 99.9 % of all draws


def test_what_keypoints_share_is_seen_by_parts_of_the_path_alone() -> None:
    models = [model_of(seed, breathing=0.04) for seed in range(6)]
    off = np.array([focal_px(model) - FOCAL_PX for model in models])
    of_keypoints = np.array([_focal_sigma_of_keypoints_px(model) for model in models])
    of_parts = np.array([_focal_sigma_of_parts_px(model) for model in models])
    assert np.sqrt(np.mean((off / of_keypoints) ** 2)) > 2
    assert 0.3 < np.sqrt(np.mean((off / of_parts) ** 2)) < 2
    assert [_focal_sigma_px(m) for m in models] == pytest.approx(np.maximum(of_keypoints, of_parts))


def test_of_few_frames_the_keypoints_alone_say() -> None:
    model = model_of(0, frames=6)
    assert np.isnan(_focal_sigma_of_parts_px(model))
    assert _focal_sigma_px(model) == _focal_sigma_of_keypoints_px(model) > 0


def test_the_model_stays_as_it_is() -> None:
    model = model_of(1)
    before = focal_px(model), model.num_reg_images(), model.num_points3D(), model.compute_num_observations()
    _focal_sigma_px(model)
    assert (focal_px(model), model.num_reg_images(), model.num_points3D(), model.compute_num_observations()) == before
