"""Shared fixtures. No test may reach a network: the hub client is told so before anything imports it."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20240)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: on busy cores, tiny networks take ten times as long on two, which wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_marigold(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """`make_marigold(scheduler="ddim" | "lcm", vae="kl" | "tiny", prediction="v_prediction", spacing="trailing",
    zero_snr=True)`: folder of a checkpoint.

    Small random networks in diffusers' Marigold format, written once a run: copy before you damage them. Unless a test
    names a precision, they run in float32, whatever this computer's processor is fastest in.
    """
    import torch

    made: dict[tuple[str, str, str, str, bool], Path] = {}

    def make(
        scheduler: str = "ddim",
        vae: str = "kl",
        prediction: str = "v_prediction",
        spacing: str = "trailing",
        zero_snr: bool = True,
    ) -> Path:
        variant = (scheduler, vae, prediction, spacing, zero_snr)
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp("-".join(map(str, variant)))
            write_marigold(made[variant], *variant)
        return made[variant]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("marigold3d.depth.marigold.native_dtype", lambda: torch.float32)
        yield make


@pytest.fixture(scope="session")
def marigold_checkpoint(make_marigold: Callable[..., Path]) -> Path:
    """Folder of a small random Marigold checkpoint: DDIM, AutoencoderKL, velocity prediction."""
    return make_marigold()


def write_marigold(
    folder: Path, scheduler: str, vae: str, prediction: str, spacing: str = "trailing", zero_snr: bool = True
) -> None:
    """A random checkpoint of about 1 MB: 4 latent channels, 8 image pixels a latent pixel, processed at 64 px."""
    import torch

    torch.manual_seed(7)
    parts = {
        "unet": small_unet(),
        "vae": small_autoencoder(vae),
        "scheduler": _scheduler(scheduler, prediction, spacing, zero_snr),
        "text_encoder": _text_encoder(),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)  # type: ignore[attr-defined]
    _write_tokenizer(folder / "tokenizer")
    index = {
        "_class_name": "MarigoldDepthPipeline",
        "_diffusers_version": "0.35.0",
        "default_denoising_steps": 1,
        "default_processing_resolution": 64,
        "prediction_type": "depth",
        "scale_invariant": True,
        "shift_invariant": True,
        **{name: ["diffusers", type(part).__name__] for name, part in parts.items()},
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def small_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def small_autoencoder(kind: str) -> Any:
    from diffusers import AutoencoderKL, AutoencoderTiny

    if kind == "tiny":
        channels = (8, 8, 8, 8)
        tiny = AutoencoderTiny(
            encoder_block_out_channels=channels,
            decoder_block_out_channels=channels,
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        )
        tiny.decoder.layers[-1].bias.data.fill_(0.5)  # grey: around black, half of the output would be clipped away
        return tiny
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )


def _scheduler(kind: str, prediction: str, spacing: str, zero_snr: bool) -> object:
    from diffusers import DDIMScheduler, LCMScheduler

    schedule = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "clip_sample": False,
        "set_alpha_to_one": False,
        # Noise prediction cannot start from zero signal: it would divide by it.
        "rescale_betas_zero_snr": zero_snr and prediction != "epsilon",
    }
    return {"ddim": DDIMScheduler, "lcm": LCMScheduler}[kind](**schedule)


def _text_encoder() -> object:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def _write_tokenizer(folder: Path) -> None:
    """Byte pairs of a three-word vocabulary, written as files: constructors differ between versions of transformers."""
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3, "b": 4, "b</w>": 5, "ab</w>": 6}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 8}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
