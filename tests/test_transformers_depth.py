"""Depth networks of transformers: run on small random ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from marigold3d.config import DepthConfig
from marigold3d.depth import load_estimator
from marigold3d.depth.transformers import TransformersEstimator
from marigold3d.errors import InputError, ModelError, OutOfMemoryError, UsageError
from tests.depth_networks import DPT_SETTINGS, write_network

Frames = NDArray[np.uint8]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def frames(rng: np.random.Generator) -> Frames:
    """(3, 60, 83, 3)."""
    return rng.integers(0, 256, (3, 60, 83, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def depth_anything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Depth Anything, relative."""
    return write_network(tmp_path_factory.mktemp("depth-anything"), "depth_anything")


def values(estimator: TransformersEstimator, frames: Frames) -> NDArray[np.float32]:
    return np.stack([depth.values for depth in estimator.estimate(frames)])


def test_agrees_with_the_network_and_its_preprocessor(depth_anything: Path, frames: Frames) -> None:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    processor = AutoImageProcessor.from_pretrained(depth_anything, backend="pil")
    model = AutoModelForDepthEstimation.from_pretrained(depth_anything)
    with torch.no_grad():
        outputs = model(**processor(images=list(frames), return_tensors="pt")).predicted_depth
    resized = torch.nn.functional.interpolate(outputs[:, None], frames.shape[1:3], mode="bilinear")[:, 0].numpy()
    ours = values(TransformersEstimator(depth_anything, device="cpu"), frames)
    assert ours.std() > 1e-4
    np.testing.assert_allclose(ours, resized, atol=1e-5)


def test_a_frame_does_not_depend_on_its_batch(depth_anything: Path, frames: Frames) -> None:
    estimator = TransformersEstimator(depth_anything, device="cpu")
    alone = np.concatenate([values(estimator, frame[None]) for frame in frames])
    np.testing.assert_allclose(values(estimator, frames), alone, atol=1e-5)


def test_processing_resolution_sets_the_longest_side(depth_anything: Path, frames: Frames) -> None:
    estimator = TransformersEstimator(depth_anything, processing_resolution=84, device="cpu")
    assert estimator.preprocessor(frames, 84).shape == (3, 3, 56, 84)  # 60/83 of 84 is 60, rounded to a multiple of 14
    assert estimator.estimate(frames)[0].values.shape == (60, 83)


def test_networks_of_one_size_refuse_another(depth_anything: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(depth_anything, tmp_path / "square")
    (folder / "preprocessor_config.json").write_text(json.dumps(DPT_SETTINGS | {"keep_aspect_ratio": False}))
    assert TransformersEstimator(folder, device="cpu").domain == "disparity"
    with pytest.raises(UsageError, match="one size only"):
        TransformersEstimator(folder, processing_resolution=84, device="cpu")


def test_domain_comes_from_the_model_or_the_caller(depth_anything: Path, tmp_path: Path) -> None:
    assert TransformersEstimator(depth_anything, device="cpu").domain == "disparity"
    assert TransformersEstimator(depth_anything, domain="log_depth", device="cpu").domain == "log_depth"
    metric = write_network(tmp_path, "depth_anything", depth_estimation_type="metric", max_depth=20)
    assert TransformersEstimator(metric, device="cpu").domain == "metric"
    with pytest.raises(UsageError, match="unknown domain"):
        TransformersEstimator(depth_anything, domain="inverse", device="cpu")  # type: ignore[arg-type]


def test_the_registry_takes_its_folder(depth_anything: Path, frames: Frames) -> None:
    estimator = load_estimator(DepthConfig(model=str(depth_anything), device="cpu"))
    assert estimator.estimate(frames[:1])[0].domain == "disparity"
    assert estimator.provenance()["family"] == "transformers"
    with pytest.raises(UsageError, match="--ensemble"):
        load_estimator(DepthConfig(model=str(depth_anything), ensemble=3))


def test_out_of_memory(depth_anything: Path, frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    estimator = TransformersEstimator(depth_anything, device="cpu")
    monkeypatch.setattr(estimator, "_estimate", fail)
    with pytest.raises(OutOfMemoryError, match="83x60 frame"):
        estimator.estimate(frames)


def test_refuses_bad_frames(depth_anything: Path) -> None:
    with pytest.raises(InputError, match="uint8"):
        TransformersEstimator(depth_anything, device="cpu").estimate(np.zeros((1, 8, 8, 3)))  # type: ignore[arg-type]


def test_damaged_folders(depth_anything: Path, tmp_path: Path) -> None:
    config = json.loads((depth_anything / "config.json").read_text())
    fails_in_one_line(tmp_path, "config.json is missing")
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    fails_in_one_line(tmp_path, "type 'bert', no depth network")
    (tmp_path / "config.json").write_text(json.dumps(config))
    fails_in_one_line(tmp_path, "holds no weights")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    fails_in_one_line(tmp_path, "a pickle")
    (tmp_path / "model.safetensors").write_bytes((depth_anything / "model.safetensors").read_bytes()[:3000])
    fails_in_one_line(tmp_path, "is cut off or damaged")
    shutil.copy(depth_anything / "model.safetensors", tmp_path)
    fails_in_one_line(tmp_path, "preprocessor_config.json is missing")


def fails_in_one_line(folder: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        TransformersEstimator(folder, device="cpu")
    assert "\n" not in str(caught.value)
