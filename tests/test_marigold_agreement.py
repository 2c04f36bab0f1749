"""Every way of sampling a Marigold checkpoint gives, in float32, what diffusers' own pipeline gives to 1e-4."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from marigold3d.config import Resample
from marigold3d.depth.ensemble import merge_ensemble
from marigold3d.depth.marigold import MarigoldEstimator

Frames = NDArray[np.uint8]
Checkpoints = Callable[..., Path]
Pipelines = Callable[..., Any]

SEED = 2024

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def frames() -> Frames:
    """(2, 41, 58, 3): sides that are neither even nor multiples of eight."""
    return np.random.default_rng(5).integers(0, 256, (2, 41, 58, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pipeline_of() -> Pipelines:
    """`pipeline_of(folder)`: diffusers' own pipeline of a checkpoint, loaded once."""
    from diffusers import MarigoldDepthPipeline

    loaded: dict[Path, Any] = {}

    def load(folder: Path) -> Any:
        if folder not in loaded:
            loaded[folder] = MarigoldDepthPipeline.from_pretrained(folder)
            loaded[folder].set_progress_bar_config(disable=True)
        return loaded[folder]

    return load


@pytest.fixture(scope="module")
def estimator_of() -> Callable[..., MarigoldEstimator]:
    """`estimator_of(folder, steps=..., ...)`: in float32 on the CPU, loaded once a folder; settings of ours are put."""
    loaded: dict[Path, MarigoldEstimator] = {}

    def load(folder: Path, **settings: Any) -> MarigoldEstimator:
        if folder not in loaded:
            loaded[folder] = MarigoldEstimator(folder, device="cpu", dtype="float32", seed=SEED)
        fresh = object.__new__(MarigoldEstimator)
        vars(fresh).update(vars(loaded[folder]) | settings)
        return fresh

    return load


def generators(count: int, members: int = 1) -> list[torch.Generator]:
    """Those of frames times members, in the order of diffusers."""
    return [torch.Generator().manual_seed(SEED + k) for _ in range(count) for k in range(members)]


def values(estimator: MarigoldEstimator, frames: Frames) -> NDArray[np.float32]:
    return np.stack([depth.values for depth in estimator.estimate(frames)])


def check(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    assert ours.shape == theirs.shape
    assert ours.std() > 0.005, "a flat map agrees with anything"
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def possible(scheduler: str, prediction: str, spacing: str, zero_snr: bool) -> bool:
    """Noise cannot be predicted where there is nothing else, nor does LCM have a spacing."""
    if prediction == "epsilon" and zero_snr:
        return False
    return scheduler == "ddim" or spacing == "trailing"


SCHEDULES = [
    each
    for each in product(
        ("ddim", "lcm"), ("v_prediction", "epsilon", "sample"), ("trailing", "leading", "linspace"), (True, False)
    )
    if possible(*each)
]


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(("scheduler", "prediction", "spacing", "zero_snr"), SCHEDULES)
def test_every_schedule(
    make_marigold: Checkpoints,
    pipeline_of: Pipelines,
    estimator_of: Callable[..., MarigoldEstimator],
    frames: Frames,
    scheduler: str,
    prediction: str,
    spacing: str,
    zero_snr: bool,
    steps: int,
) -> None:
    folder = make_marigold(scheduler, "kl", prediction, spacing, zero_snr)
    theirs = pipeline_of(folder)(frames, steps, batch_size=2, generator=generators(2)).prediction[..., 0]
    check(values(estimator_of(folder, steps=steps), frames), theirs)


@pytest.mark.parametrize("resolution", [None, 0, 40, 96])
@pytest.mark.parametrize("resample", get_args(Resample))
@pytest.mark.parametrize("vae", ["kl", "tiny"])
def test_every_size_and_way_of_resampling(
    make_marigold: Checkpoints,
    pipeline_of: Pipelines,
    estimator_of: Callable[..., MarigoldEstimator],
    frames: Frames,
    vae: str,
    resample: Resample,
    resolution: int | None,
) -> None:
    folder = make_marigold("ddim", vae)
    estimator = estimator_of(folder, resample=resample)
    if resolution is not None:
        estimator.processing_resolution = resolution
    theirs = pipeline_of(folder)(
        frames,
        processing_resolution=resolution,
        resample_method_input=resample,
        resample_method_output=resample,
        batch_size=2,
        generator=generators(2),
    ).prediction[..., 0]
    check(values(estimator, frames), theirs)


# Not LCM's later steps: with latents given, the pipeline draws their noise from no generator.
@pytest.mark.parametrize(("scheduler", "steps"), [("ddim", 1), ("ddim", 2), ("lcm", 1)])
@pytest.mark.parametrize("vae", ["kl", "tiny"])
def test_zero_noise(
    make_marigold: Checkpoints,
    pipeline_of: Pipelines,
    estimator_of: Callable[..., MarigoldEstimator],
    frames: Frames,
    scheduler: str,
    vae: str,
    steps: int,
) -> None:
    folder = make_marigold(scheduler, vae)
    images = torch.from_numpy(frames.transpose(0, 3, 1, 2))  # with latents, it misreads the size of numpy images
    theirs = pipeline_of(folder)(images, steps, latents=torch.zeros(2, 4, 6, 8), batch_size=2).prediction[..., 0]
    check(values(estimator_of(folder, steps=steps, noise="zeros"), frames), theirs)


@pytest.mark.parametrize(("scheduler", "steps"), [("ddim", 1), ("ddim", 3), ("lcm", 1)])
@pytest.mark.parametrize("vae", ["kl", "tiny"])
def test_ensembles_merge_what_the_pipeline_predicts(
    make_marigold: Checkpoints,
    pipeline_of: Pipelines,
    estimator_of: Callable[..., MarigoldEstimator],
    frames: Frames,
    scheduler: str,
    vae: str,
    steps: int,
) -> None:
    """At the frame's own size nothing is resized, so that its members can be merged here."""
    folder = make_marigold(scheduler, vae)
    members = np.stack(
        [
            pipeline_of(folder)(
                frames,
                steps,
                processing_resolution=0,
                batch_size=2,
                generator=[torch.Generator().manual_seed(SEED + k) for _ in frames],
            ).prediction[..., 0]
            for k in range(3)
        ],
        axis=1,
    )  # (N, E, H, W)
    found = estimator_of(folder, steps=steps, ensemble=3, processing_resolution=0).estimate(frames)
    for depth, maps in zip(found, members, strict=True):
        merged, sigma = merge_ensemble(maps)
        check(depth.values, merged)
        assert depth.uncertainty is not None
        np.testing.assert_allclose(depth.uncertainty, sigma, atol=1e-4)


def test_a_tiny_decoder_is_the_pipelines_own(
    make_marigold: Checkpoints, pipeline_of: Pipelines, frames: Frames
) -> None:
    """The pipeline whose VAE was replaced, but for the image latent, which stays that of the checkpoint's encoder."""
    from diffusers import AutoencoderTiny

    folder, tiny = make_marigold(), make_marigold("ddim", "tiny") / "vae"
    estimator = MarigoldEstimator(folder, tiny_vae=tiny, device="cpu", dtype="float32", processing_resolution=0)
    latent = pipeline_of(folder)(
        frames, processing_resolution=0, batch_size=2, generator=generators(2), output_latent=True
    ).latent
    decoder = AutoencoderTiny.from_pretrained(tiny)
    with torch.no_grad():
        depth = (decoder.decode(latent / decoder.config.scaling_factor).sample.mean(1).clip(-1, 1) + 1) / 2
    check(values(estimator, frames), depth[:, :41, :58].numpy())
    assert estimator.provenance()["decoder"] == "vae"
    assert (
        estimator.provenance()["weights_sha256"]
        != MarigoldEstimator(folder, device="cpu").provenance()["weights_sha256"]
    )
