"""The networks of a latent diffusion checkpoint in diffusers' folder format, made ready to learn depth.

From any StableDiffusionPipeline folder: the U-Net's first convolution is doubled, so that it takes the picture's latent
and the depth's (Ke et al., arXiv 2312.02145, sec. 3.2). From a MarigoldDepthPipeline folder: as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from marigold3d.depth.checkpoint import read_json
from marigold3d.depth.device import load_error
from marigold3d.depth.marigold_model import empty_prompt, load_network
from marigold3d.errors import ModelError, UsageError

FROZEN = ("vae", "text_encoder", "tokenizer")
"""Parts that every checkpoint of a run takes over unchanged from its base."""


@dataclass(frozen=True, eq=False)
class Networks:
    """`unet` learns; `vae` is frozen; `scheduler` (DDIMScheduler) and `prompt` (1, tokens, channels) are constants."""

    unet: Any
    vae: Any
    scheduler: Any
    prompt: Tensor
    folder: Path

    @property
    def latent_channels(self) -> int:
        """Channels C of a latent."""
        return int(self.vae.config.latent_channels)

    @property
    def reduction(self) -> int:
        """Picture pixels a latent, along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


def load_networks(folder: Path, prediction_type: str | None = None, zero_snr: bool = True) -> Networks:
    """The networks in `folder`, float32 on the CPU. Raises ModelError for a folder that cannot be trained from."""
    if not folder.is_dir():
        raise ModelError(f"base checkpoint {folder} does not exist: give a folder in diffusers' format")
    index = read_json(folder / "model_index.json")
    for part in ("unet", "scheduler", *FROZEN):
        if not (folder / part).is_dir():
            raise ModelError(
                f"{folder} ({index.get('_class_name')}) has no {part}/: a Stable Diffusion or Marigold depth pipeline "
                "in diffusers' format has unet, vae, scheduler, text_encoder and tokenizer"
            )
    scheduler = ddim_scheduler(folder / "scheduler", prediction_type, zero_snr)
    unet = network(folder, "unet", "UNet2DConditionModel")
    vae = network(folder, "vae", "AutoencoderKL").eval().requires_grad_(False)
    channels, latent = unet.config.in_channels, vae.config.latent_channels
    if channels == latent:
        double_input(unet)
    elif channels != 2 * latent:
        raise ModelError(f"{folder}: its U-Net takes {channels} channels, not {latent} (one latent) or {2 * latent}")
    return Networks(unet, vae, scheduler, empty_prompt(folder), folder)


def network(folder: Path, part: str, class_name: str) -> Any:
    """One network of a checkpoint, whole, in float32."""
    return load_network(folder / part, class_name, torch.float32)


def ddim_scheduler(folder: Path, prediction_type: str | None, zero_snr: bool) -> Any:
    """DDIM over the checkpoint's own betas, trailing, with no signal left at the last timestep unless told otherwise.

    Lin et al. (arXiv 2305.08891) for both; sampling starts from pure noise, so training must see it.
    """
    import diffusers

    config = read_json(folder / "scheduler_config.json")
    predicts = prediction_type or config.get("prediction_type", "epsilon")
    if predicts == "epsilon" and zero_snr:
        raise UsageError(
            f"{folder.parent} predicts the noise, which says nothing where all is noise: "
            "use zero_snr=false, or prediction_type=v_prediction to teach it that"
        )
    changes = {
        "prediction_type": predicts,
        "rescale_betas_zero_snr": zero_snr,
        "timestep_spacing": "trailing",
        "clip_sample": False,
        "set_alpha_to_one": bool(config.get("set_alpha_to_one", False)),
    }
    try:
        return diffusers.DDIMScheduler.from_pretrained(folder, **changes)
    except Exception as error:
        raise load_error(folder, error) from error


def double_input(unet: Any) -> None:
    """Make `unet` take two latents where it took one: its first weights twice, halved.

    With the same latent on both sides its output is what it was, so that the activations keep their size.
    """
    old = unet.conv_in
    doubled = nn.Conv2d(2 * old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    with torch.no_grad():
        doubled.weight.copy_(torch.cat([old.weight, old.weight], dim=1) / 2.0)
        doubled.bias.copy_(old.bias)  # type: ignore[union-attr]
    unet.conv_in = doubled
    unet.register_to_config(in_channels=doubled.in_channels)


def prepare_for_training(networks: Networks, device: torch.device, checkpointing: bool, sharded: bool) -> None:
    """Move everything to `device` and choose what is fastest there."""
    from diffusers.models.attention_processor import AttnProcessor

    networks.unet.to(device).train().requires_grad_(True)
    if not sharded:  # FSDP takes contiguous parameters only
        networks.unet.to(memory_format=torch.channels_last)
    networks.vae.to(device)
    if (
        device.type == "cpu"
    ):  # torch's fused attention: 0.59 s a step of a 5 M U-Net, its backward pass alone half of it
        networks.unet.set_attn_processor(AttnProcessor())  # 0.45 s
    if checkpointing:
        networks.unet.enable_gradient_checkpointing()
        networks.vae.enable_gradient_checkpointing()  # end to end, gradients pass through its decoder


def predict(unet: Any, prompt: Tensor, image_latent: Tensor, latent: Tensor, t: Tensor) -> Tensor:
    """The U-Net's output (N, C, h, w) float32 at timesteps t (N,), beside the picture's latent (N, C, h, w)."""
    both = torch.cat([image_latent, latent], dim=1)  # (N, 2C, h, w): picture first
    both = both.contiguous(memory_format=torch.channels_last)
    text = prompt.to(both).expand(len(both), -1, -1)  # (N, tokens, channels)
    output: Tensor = unet(both, t, encoder_hidden_states=text, return_dict=False)[0]
    return output.float()
