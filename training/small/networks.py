"""The small networks, and the pipeline folder that the recipe starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from marigold3d.depth.checkpoint import quiet_transformers

LATENT_CHANNELS = 4
PROMPT_CHANNELS = 32
SIZE = (96, 128)  # (height, width) of the pictures; a latent is 8 pixels


def autoencoder(scaling_factor: float = 1.0) -> Any:
    """An AutoencoderKL of 1.5 M parameters: 8 pixels a latent along each side, 4 channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(24, 48, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE[1],
        mid_block_add_attention=False,
        scaling_factor=scaling_factor,
    )


def random_unet(seed: int) -> Any:
    """A U-Net of 5.4 M parameters for one latent, as an image generator has it; the recipe doubles its input."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=SIZE[1] // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=PROMPT_CHANNELS,
        attention_head_dim=4,  # heads, whatever its name says
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),  # attention from 6 x 8 on
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


def write_start(folder: Path, vae: Any, seed: int) -> None:
    """A StableDiffusionPipeline folder: `vae`, a random U-Net, and a random text encoder that knows no words.

    There is no pretrained text-to-image model of this size to start from: what the recipe fine-tunes elsewhere, it
    trains here from nothing. The prompt is empty in all of Marigold, so its embedding may be any constant.
    """
    parts = {
        "unet": random_unet(seed),
        "vae": vae,
        "scheduler": _scheduler(),
        "text_encoder": _text_encoder(seed),
    }
    with quiet_transformers():
        for name, part in parts.items():
            part.save_pretrained(folder / name)
    _write_tokenizer(folder / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.35.0",
        **{name: ["diffusers", type(part).__name__] for name, part in parts.items()},
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,  # Stable Diffusion's
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=False,
    )


def _text_encoder(seed: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=4,
            hidden_size=PROMPT_CHANNELS,
            intermediate_size=PROMPT_CHANNELS,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def _write_tokenizer(folder: Path) -> None:
    """Start, end, and one letter: enough for the empty text."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 8}
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
