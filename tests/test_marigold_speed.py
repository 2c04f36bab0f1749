"""Precision, memory and layout: what makes diffusion fast leaves depth as it was, and what fails is taken back."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from marigold3d.config import DepthConfig
from marigold3d.depth import batching, device, load_estimator, stream_or_waiting
from marigold3d.depth.images import rgb_at_size, rgb_tensor
from marigold3d.depth.marigold import MarigoldEstimator
from marigold3d.depth.tuning import DepthConv
from marigold3d.errors import InputError, ModelError, OutOfMemoryError, UsageError

Frames = NDArray[np.uint8]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def frames(rng: np.random.Generator) -> Frames:
    """(2, 40, 56, 3) of noise."""
    return rng.integers(0, 256, (2, 40, 56, 3), dtype=np.uint8)


def values(estimator: MarigoldEstimator, frames: Frames) -> NDArray[np.float32]:
    return np.stack([depth.values for depth in estimator.estimate(frames)])


def has(monkeypatch: pytest.MonkeyPatch, *abilities: str) -> torch.dtype:
    """The precision for a CPU with these instruction sets and no other."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(abilities, True), raising=False)
    return device.native_dtype()


def test_the_cpu_decides_on_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has(monkeypatch, "avx512_f", "amx_bf16", "amx_fp16") == torch.float16
    assert has(monkeypatch, "avx512_f", "avx512_bf16") == torch.bfloat16
    assert has(monkeypatch, "avx512_f", "avx2") == torch.float32
    assert has(monkeypatch) == torch.float32
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert has(monkeypatch, "amx_fp16") == torch.float32
    auto = (device.choose_dtype("auto", torch.device(kind), torch.bfloat16) for kind in ("cpu", "cuda", "mps"))
    assert list(auto) == [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.06), ("float16", 0.006)])
@pytest.mark.parametrize("vae", ["kl", "tiny"])
def test_half_precision_is_close_to_float32(
    make_marigold: Callable[..., Path], frames: Frames, vae: str, dtype: str, error: float
) -> None:
    """Relative to the spread of depth; and depth itself is no coarser than float32."""
    full = values(MarigoldEstimator(make_marigold("ddim", vae), device="cpu", dtype="float32"), frames)
    half = values(MarigoldEstimator(make_marigold("ddim", vae), device="cpu", dtype=dtype), frames)
    assert 1e-6 < np.sqrt(np.mean((half - full) ** 2)) / full.std() < error
    inside = half[(half > 0) & (half < 1)]
    assert len(np.unique(inside)) > 0.5 * inside.size


def test_what_overflows_is_repeated_in_float32(
    marigold_checkpoint: Path, frames: Frames, caplog: pytest.LogCaptureFixture
) -> None:
    exact = MarigoldEstimator(marigold_checkpoint, device="cpu", dtype="float32")
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu", dtype="float16")
    for one in (exact, estimator):  # beyond the largest float16 within the decoder, normalised behind it
        one.model.vae.decoder.conv_in.register_forward_hook(lambda _, __, maps: maps * 1e4 * 1e4)
    with caplog.at_level(logging.WARNING, "marigold3d"):
        found = values(estimator, frames)
        again = values(estimator, frames)
    assert estimator.dtype == torch.float32
    assert len(caplog.records) == 1
    assert "float16: from here on it runs in float32" in caplog.text
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, again)
    np.testing.assert_allclose(found, values(exact, frames), atol=2e-3)  # its weights were rounded before


def test_numbers_that_float32_cannot_hold_either(marigold_checkpoint: Path, frames: Frames) -> None:
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu", dtype="bfloat16")
    estimator.model.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="no finite depth in float32: its weights are damaged"):
        estimator.estimate(frames)


def test_the_mean_of_three_channels_is_one_convolution(rng: np.random.Generator) -> None:
    conv = torch.nn.Conv2d(8, 3, 3, padding=1)
    x = torch.from_numpy(rng.normal(size=(2, 8, 9, 7))).float()
    ours = DepthConv(conv)
    torch.testing.assert_close(ours(x), conv(x).mean(1, keepdim=True), atol=1e-6, rtol=1e-5)
    assert ours.half()(x.half()).dtype == torch.float32
    assert ours.weight.dtype == torch.float32


# -- memory -----------------------------------------------------------------------------------------------------------


def test_batches_follow_the_free_memory(marigold_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu", processing_resolution=0)
    assert estimator.batch_size(480, 640) == 1, "a CPU gains nothing by batches"
    a_frame = batching.bytes_per_pixel(estimator.model.vae, estimator.dtype) * 480 * 640
    monkeypatch.setattr(batching, "free_bytes", lambda _: int(6.5 * a_frame / batching.SHARE))
    assert estimator.batch_size(480, 640) == 6
    assert estimator.batch_size(960, 640) == 3
    assert estimator.batch_size(9600, 6400) == 1
    estimator.ensemble = 3
    assert estimator.batch_size(480, 640) == 2
    estimator.warm_start = True
    assert estimator.batch_size(480, 640) == 1
    monkeypatch.setattr(batching, "free_bytes", lambda _: 1 << 50)
    assert MarigoldEstimator(marigold_checkpoint, device="cpu").batch_size(480, 640) == batching.MOST_ROWS


def test_free_memory_counts_what_torch_keeps_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"mem_get_info": (100, 1000), "memory_reserved": 70, "memory_allocated": 30}.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    assert batching.free_bytes(torch.device("cuda")) == 140
    assert batching.free_bytes(torch.device("cpu")) is None


def test_chunks_are_halved_until_they_fit() -> None:
    tried: list[int] = []

    def run(rows: Sequence[int]) -> list[int]:
        tried.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [10 * row for row in rows]

    assert batching.in_chunks(run, range(7), 5) == [0, 10, 20, 30, 40, 50, 60]
    assert tried == [5, 2, 2, 2, 1]

    def never(rows: Sequence[int]) -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        batching.in_chunks(never, range(4), 4)


def test_an_ensemble_that_does_not_fit_together(
    marigold_checkpoint: Path, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator = MarigoldEstimator(marigold_checkpoint, ensemble=4, device="cpu", dtype="float32")
    expected = values(estimator, frames)
    monkeypatch.setattr(batching, "free_bytes", lambda _: 1 << 50)
    decode, rows = estimator.decode, []

    def cramped(latent: torch.Tensor) -> torch.Tensor:
        rows.append(len(latent))
        if len(latent) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return decode(latent)

    monkeypatch.setattr(estimator, "decode", cramped)
    np.testing.assert_allclose(values(estimator, frames), expected, atol=1e-4)
    assert rows[:2] == [8, 4]
    assert max(rows[2:]) <= 3
    monkeypatch.setattr(estimator, "decode", lambda _: cramped(torch.zeros(9)))
    with pytest.raises(OutOfMemoryError, match="lower --processing-resolution"):
        estimator.estimate(frames[:1])


def test_large_pictures_pass_in_tiles_without_seams(marigold_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 64 px on a picture of 160: no step between neighbouring pixels that the whole does not have too."""
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu", dtype="float32", processing_resolution=0)
    y, x = np.mgrid[:160, :160] / 160
    smooth = np.stack([y, x, 0.5 + 0.5 * np.sin(5 * x * y)], axis=-1)
    picture = (255 * smooth).astype(np.uint8)[None]
    whole = values(estimator, picture)[0]
    estimator.model.vae.tile_sample_min_size, estimator.model.vae.tile_latent_min_size = 64, 8
    monkeypatch.setattr("marigold3d.depth.sampling.TILED_PX", 100 * 100)
    tiled = values(estimator, picture)[0]
    assert np.abs(tiled - whole).max() > 1e-6
    assert np.sqrt(np.mean((tiled - whole) ** 2)) < whole.std()
    steps = [max(np.abs(np.diff(depth, axis=axis)).max() for axis in (0, 1)) for depth in (tiled, whole)]
    assert steps[0] < 1.5 * steps[1]
    monkeypatch.undo()
    np.testing.assert_array_equal(values(estimator, picture)[0], whole)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_very_large_pictures_are_shrunk_in_strips(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, resample: Any
) -> None:
    rgb = rng.integers(0, 256, (1, 203, 117, 3), dtype=np.uint8)
    whole = rgb_at_size(rgb, (40, 23), torch.device("cpu"), resample)
    monkeypatch.setattr("marigold3d.depth.images._WHOLE_PX", 117 * 10)
    torch.testing.assert_close(rgb_at_size(rgb, (40, 23), torch.device("cpu"), resample), whole, atol=1e-6, rtol=0)
    assert rgb_tensor(rgb, torch.device("cpu")).shape == (1, 3, 203, 117)


def test_a_picture_of_one_pixel(marigold_checkpoint: Path) -> None:
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu")
    with pytest.raises(InputError, match="a 1x1 frame is too narrow for depth: give at least 8x8 pixels"):
        estimator.estimate(np.zeros((1, 1, 1, 3), np.uint8))


@pytest.mark.parametrize("ensemble", [1, 2])
def test_small_ensembles(marigold_checkpoint: Path, frames: Frames, ensemble: int) -> None:
    found = MarigoldEstimator(marigold_checkpoint, ensemble=ensemble, device="cpu").estimate(frames)
    for depth in found:
        assert np.isfinite(depth.values).all()
        assert (depth.uncertainty is None) == (ensemble == 1)


def test_work_that_nobody_waits_for_ends_between_blocks(marigold_checkpoint: Path, frames: Frames) -> None:
    """The stream is closed while the encoder's first convolution runs; its last is never reached."""
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu")
    begun, closed, reached = threading.Event(), threading.Event(), []
    encoder = estimator.model.vae.encoder
    encoder.conv_in.register_forward_hook(lambda *_: (begun.set(), closed.wait(30), None)[-1])
    encoder.conv_out.register_forward_hook(lambda *_: reached.append(1))
    results = stream_or_waiting(estimator, enumerate(frames))
    assert next(results) is None
    assert begun.wait(30)
    results.close()
    closed.set()
    while any("ThreadPool" in thread.name for thread in threading.enumerate()):
        time.sleep(0.01)
    assert not reached


# -- configuration ----------------------------------------------------------------------------------------------------


def test_an_end_to_end_checkpoint_says_so(
    marigold_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """ "_noise" in model_index.json makes it deterministic here, and does not trouble diffusers."""
    from diffusers import MarigoldDepthPipeline

    folder = tmp_path / "e2e"
    shutil.copytree(marigold_checkpoint, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_noise": "zeros"}))
    estimator: Any = load_estimator(DepthConfig(model=str(folder), device="cpu"))
    assert (estimator.noise, estimator.steps) == ("zeros", 1)
    with pytest.raises(UsageError, match="deterministic"):
        load_estimator(DepthConfig(model=str(folder), device="cpu", ensemble=3))
    MarigoldDepthPipeline.from_pretrained(folder)
    assert "_noise" not in caplog.text
    (folder / "model_index.json").write_text(json.dumps(index | {"_noise": "pink"}))
    with pytest.raises(ModelError, match="gaussian or zeros"):
        MarigoldEstimator(folder, device="cpu")


def test_all_settings_reach_the_estimator(make_marigold: Callable[..., Path]) -> None:
    config = DepthConfig(
        model=str(make_marigold()),
        device="cpu",
        ensemble=3,
        dtype="bfloat16",
        resample="bicubic",
        tiny_vae=str(make_marigold("ddim", "tiny") / "vae"),
        warm_start=True,
        sigma_every=4,
    )
    estimator: Any = load_estimator(config)
    assert (estimator.dtype, estimator.resample, estimator.warm_start) == (torch.bfloat16, "bicubic", True)
    assert (estimator.sigma_every, estimator.segment) == (4, 32)
    said = estimator.provenance()
    assert (said["dtype"], said["resample"], said["decoder"], said["sigma_every"]) == (
        "bfloat16",
        "bicubic",
        "vae",
        "4",
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"ensemble": 0},
        {"sigma_every": 0},
        {"steps": 0},
        {"batch": 0},
        {"processing_resolution": -1},
        {"resample": "lanczos"},
        {"dtype": "float8"},
    ],
)
def test_impossible_settings_are_refused_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        DepthConfig(**settings)


def test_small_decoders_that_do_not_fit(make_marigold: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--tiny-vae takes an AutoencoderTiny"):
        MarigoldEstimator(make_marigold(), tiny_vae=make_marigold() / "vae", device="cpu")
    from diffusers import AutoencoderTiny

    channels = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    blocks = {"num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4}
    AutoencoderTiny(**channels, **blocks, latent_channels=8).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="takes 8 channels"):
        MarigoldEstimator(make_marigold(), tiny_vae=tmp_path, device="cpu")
