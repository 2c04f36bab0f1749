"""The Marigold estimator: it samples as diffusers' pipeline does, and says what is wrong with a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from marigold3d.depth import device as device_module
from marigold3d.depth.ensemble import merge_ensemble
from marigold3d.depth.marigold import MarigoldEstimator
from marigold3d.errors import InputError, ModelError, OutOfMemoryError, UsageError

Frames = NDArray[np.uint8]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def frames(rng: np.random.Generator) -> Frames:
    """(3, 50, 71, 3): sides that are neither even nor multiples of eight."""
    return rng.integers(0, 256, (3, 50, 71, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pipelines() -> Callable[[Path], Any]:
    """`pipelines(folder)`: diffusers' own pipeline of a checkpoint."""
    from diffusers import MarigoldDepthPipeline

    def load(folder: Path) -> Any:
        pipeline = MarigoldDepthPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


def generators(seed: int, frames: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for _ in range(frames)]


def values(estimator: MarigoldEstimator, frames: Frames) -> NDArray[np.float32]:
    return np.stack([depth.values for depth in estimator.estimate(frames)])


@pytest.mark.parametrize(
    ("scheduler", "vae", "prediction", "steps", "resolution"),
    [
        ("ddim", "kl", "v_prediction", 1, None),
        ("ddim", "kl", "v_prediction", 4, 40),
        ("ddim", "kl", "v_prediction", 3, 0),
        ("ddim", "kl", "epsilon", 2, 96),
        ("ddim", "kl", "sample", 2, None),
        ("ddim", "tiny", "v_prediction", 2, None),
        ("lcm", "kl", "v_prediction", 1, None),
        ("lcm", "kl", "v_prediction", 4, None),
    ],
)
def test_agrees_with_diffusers(
    make_marigold: Callable[..., Path],
    pipelines: Callable[[Path], Any],
    frames: Frames,
    scheduler: str,
    vae: str,
    prediction: str,
    steps: int,
    resolution: int | None,
) -> None:
    folder = make_marigold(scheduler, vae, prediction)
    estimator = MarigoldEstimator(folder, steps=steps, processing_resolution=resolution, device="cpu")
    theirs = pipelines(folder)(
        frames,
        num_inference_steps=steps,
        processing_resolution=resolution,
        batch_size=len(frames),
        generator=generators(estimator.seed, len(frames)),
    ).prediction[..., 0]  # (N, H, W)
    ours = values(estimator, frames)
    assert ours.shape == frames.shape[:3]
    assert ours.std() > 0.005
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_agrees_with_diffusers_on_given_latents(
    marigold_checkpoint: Path, pipelines: Callable[[Path], Any], frames: Frames
) -> None:
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu")
    noise = torch.cat([torch.randn((1, 4, 6, 8), generator=g) for g in generators(estimator.seed, len(frames))])
    images = torch.from_numpy(frames.transpose(0, 3, 1, 2))  # with latents, it misreads the size of numpy images
    theirs = pipelines(marigold_checkpoint)(images, latents=noise, batch_size=2).prediction[..., 0]
    np.testing.assert_allclose(values(estimator, frames), theirs, atol=1e-4)


def test_ensemble_merges_what_diffusers_predicts(
    marigold_checkpoint: Path, pipelines: Callable[[Path], Any], frames: Frames
) -> None:
    # At the frame's own size nothing is resized, so that the members can be merged here.
    estimator = MarigoldEstimator(marigold_checkpoint, ensemble=3, steps=2, processing_resolution=0, device="cpu")
    pipeline = pipelines(marigold_checkpoint)
    members = [
        pipeline(frames[:1], 2, processing_resolution=0, generator=generators(estimator.seed + k, 1)).prediction[
            0, ..., 0
        ]
        for k in range(3)
    ]
    merged, uncertainty = merge_ensemble(np.stack(members))
    depth = estimator.estimate(frames[:1])[0]
    np.testing.assert_allclose(depth.values, merged, atol=1e-4)
    assert depth.uncertainty is not None
    np.testing.assert_allclose(depth.uncertainty, uncertainty, atol=1e-4)
    assert depth.uncertainty.mean() > 1e-3


@pytest.mark.parametrize("scheduler", ["ddim", "lcm"])
def test_a_frame_does_not_depend_on_its_batch(
    make_marigold: Callable[..., Path], frames: Frames, scheduler: str
) -> None:
    estimator = MarigoldEstimator(make_marigold(scheduler), steps=3, device="cpu")
    together = values(estimator, frames)
    alone = np.concatenate([values(estimator, frame[None]) for frame in frames[::-1]])[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_equal_frames_get_equal_depth_and_seeds_differ(marigold_checkpoint: Path, frames: Frames) -> None:
    still = np.repeat(frames[:1], 2, axis=0)
    first, second = values(MarigoldEstimator(marigold_checkpoint, device="cpu"), still)
    np.testing.assert_allclose(first, second, atol=1e-5)
    other = values(MarigoldEstimator(marigold_checkpoint, seed=1, device="cpu"), still)[0]
    assert np.abs(first - other).max() > 1e-3


def test_settings_default_to_the_checkpoint(marigold_checkpoint: Path) -> None:
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu")
    assert (estimator.steps, estimator.processing_resolution, estimator.domain) == (1, 64, "depth")
    assert MarigoldEstimator(marigold_checkpoint, steps=4, processing_resolution=0).processing_resolution == 0


def test_text_encoder_is_released(marigold_checkpoint: Path) -> None:
    model = MarigoldEstimator(marigold_checkpoint, device="cpu").model
    assert model.empty_prompt.shape == (1, 2, 16)
    assert not hasattr(model, "text_encoder")
    assert not hasattr(model, "tokenizer")


def test_zero_noise_ignores_the_seed(marigold_checkpoint: Path, frames: Frames) -> None:
    first, second = (
        values(MarigoldEstimator(marigold_checkpoint, noise="zeros", seed=seed, device="cpu"), frames[:1])
        for seed in (1, 2)
    )
    np.testing.assert_array_equal(first, second)
    with pytest.raises(UsageError, match="--ensemble 1"):
        MarigoldEstimator(marigold_checkpoint, noise="zeros", ensemble=3)


def test_disparity_checkpoints_say_so(marigold_checkpoint: Path, tmp_path: Path) -> None:
    folder = damaged(marigold_checkpoint, tmp_path, index={"prediction_type": "disparity"})
    assert MarigoldEstimator(folder, device="cpu").domain == "disparity"


def test_timestep_spacing_can_be_overridden(marigold_checkpoint: Path) -> None:
    estimator = MarigoldEstimator(marigold_checkpoint, steps=2, timestep_spacing="leading", device="cpu")
    assert estimator.model.scheduler.timesteps.tolist() == [500, 0]
    assert "leading" in estimator.provenance()["scheduler"]


def test_provenance_names_weights_and_settings(make_marigold: Callable[..., Path]) -> None:
    first = MarigoldEstimator(make_marigold(), steps=2, device="cpu", licence="MIT").provenance()
    second = MarigoldEstimator(make_marigold("ddim", "tiny"), device="cpu").provenance()
    assert first["weights_sha256"] != second["weights_sha256"]
    assert (first["steps"], first["seed"], first["dtype"], first["licence"]) == ("2", "2024", "float32", "MIT")
    assert first["scheduler"] == "DDIMScheduler, trailing"
    assert all(isinstance(value, str) for value in first.values())


def test_halves_the_batch_until_it_fits(
    marigold_checkpoint: Path, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu")
    expected, sizes = values(estimator, frames), []
    run = estimator._estimate

    def cramped(rgb: Frames) -> Any:
        sizes.append(len(rgb))
        if len(rgb) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(rgb)

    monkeypatch.setattr(estimator, "_estimate", cramped)
    np.testing.assert_allclose(values(estimator, frames), expected, atol=1e-5)
    assert sizes == [3, 1, 2, 1, 1]


@pytest.mark.parametrize("message", ["MPS backend out of memory", "DefaultCPUAllocator: can't allocate memory"])
def test_out_of_memory_names_its_remedy(
    marigold_checkpoint: Path, frames: Frames, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(message)

    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu")
    monkeypatch.setattr(estimator, "_estimate", fail)
    with pytest.raises(OutOfMemoryError, match=r"71x50 frame .* lower --processing-resolution"):
        estimator.estimate(frames)


def test_other_failures_are_not_mistaken_for_memory(
    marigold_checkpoint: Path, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu")
    monkeypatch.setattr(estimator, "_estimate", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        estimator.estimate(frames)


def test_refuses_bad_frames_and_settings(marigold_checkpoint: Path) -> None:
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu")
    with pytest.raises(InputError, match=r"\(N, H, W, 3\)"):
        estimator.estimate(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="uint8"):
        estimator.estimate(np.zeros((1, 8, 8, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="too narrow"):
        estimator.estimate(np.zeros((1, 2, 900, 3), np.uint8))
    for settings in (
        {"steps": 0},
        {"ensemble": 0},
        {"processing_resolution": -1},
        {"noise": "pink"},
        {"device": "tpu"},
    ):
        with pytest.raises(UsageError):
            MarigoldEstimator(marigold_checkpoint, **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="lower --steps"):
        MarigoldEstimator(marigold_checkpoint, steps=100_000)
    with pytest.raises(UsageError, match="precision"):
        MarigoldEstimator(marigold_checkpoint, dtype="float8")


def test_half_precision_is_close(marigold_checkpoint: Path, frames: Frames) -> None:
    full, half = (MarigoldEstimator(marigold_checkpoint, device="cpu", dtype=d) for d in ("float32", "bfloat16"))
    np.testing.assert_allclose(values(half, frames), values(full, frames), atol=0.05)


def test_running_out_of_memory_while_loading(marigold_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import UNet2DConditionModel

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", fail)
    with pytest.raises(OutOfMemoryError, match="does not fit in memory"):
        MarigoldEstimator(marigold_checkpoint, device="cpu")


def test_says_when_numbers_overflow(marigold_checkpoint: Path, frames: Frames) -> None:
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu")
    estimator.model.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="no finite depth in float32"):
        estimator.estimate(frames)


def test_absent_device_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="cuda"):
        device_module.choose_device("cuda")


def test_precision_follows_the_device() -> None:
    assert device_module.choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert device_module.choose_dtype("auto", torch.device("cuda")) == torch.float16


def damaged(checkpoint: Path, tmp_path: Path, remove: str = "", index: dict[str, Any] | None = None) -> Path:
    """A copy of the checkpoint without the file or folder `remove`, and with changes to its model_index.json."""
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    path = folder / remove
    if remove:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if index:
        content = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(content | index))
    return folder


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("model_index.json", "model_index.json is missing"),
        ("vae", "folder vae/ is missing"),
        ("unet/diffusion_pytorch_model.safetensors", r"holds no weights \(\*.safetensors\)"),
        ("unet/config.json", "get the checkpoint again"),
        ("text_encoder/model.safetensors", "holds no weights"),
        ("scheduler/scheduler_config.json", "scheduler_config.json is missing"),
    ],
)
def test_incomplete_checkpoints(marigold_checkpoint: Path, tmp_path: Path, remove: str, message: str) -> None:
    fails_in_one_line(damaged(marigold_checkpoint, tmp_path, remove), message)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "use a Marigold depth checkpoint"),
        ({"prediction_type": "normals"}, "predicts 'normals'"),
        ({"vae": ["diffusers", "VQModel"]}, "AutoencoderKL or AutoencoderTiny"),
        ({"unet": [None, None]}, "unet is None"),
    ],
)
def test_other_kinds_of_checkpoint(
    marigold_checkpoint: Path, tmp_path: Path, index: dict[str, Any], message: str
) -> None:
    fails_in_one_line(damaged(marigold_checkpoint, tmp_path, index=index), message)


def test_pickled_weights_are_refused(marigold_checkpoint: Path, tmp_path: Path) -> None:
    folder = damaged(marigold_checkpoint, tmp_path, "unet/diffusion_pytorch_model.safetensors")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    fails_in_one_line(folder, "a pickle, which can run code")


def test_truncated_weights(marigold_checkpoint: Path, tmp_path: Path) -> None:
    folder = damaged(marigold_checkpoint, tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    fails_in_one_line(folder, "get the checkpoint again")


def test_missing_tensors(marigold_checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = damaged(marigold_checkpoint, tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["conv_out.weight"]
    save_file(tensors, weights)
    fails_in_one_line(folder, "conv_out.weight")


def test_the_image_generator_itself_is_refused(marigold_checkpoint: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    folder = damaged(marigold_checkpoint, tmp_path)
    settings = json.loads((folder / "unet" / "config.json").read_text()) | {"in_channels": 4}
    UNet2DConditionModel.from_config(settings).save_pretrained(folder / "unet")
    fails_in_one_line(folder, "not the 8 of image and depth latent")


def test_half_precision_files_alone_will_do(marigold_checkpoint: Path, tmp_path: Path, frames: Frames) -> None:
    folder = damaged(marigold_checkpoint, tmp_path)
    for path in list(folder.glob("*/*.safetensors")):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    expected = values(MarigoldEstimator(marigold_checkpoint, device="cpu"), frames)
    np.testing.assert_allclose(values(MarigoldEstimator(folder, device="cpu"), frames), expected, atol=1e-6)


@pytest.mark.parametrize("offline", [True, False])
def test_missing_weights_without_a_network(offline: bool) -> None:
    fails_in_one_line("prs-eth/marigold-depth-v1-1-absent", "hf download prs-eth/marigold-depth-v1-1-absent", offline)


def test_missing_folder() -> None:
    fails_in_one_line("./no/such/folder", "does not exist")


def fails_in_one_line(source: str | Path, message: str, offline: bool = True) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        MarigoldEstimator(source, device="cpu", offline=offline)
    assert "\n" not in str(caught.value)
