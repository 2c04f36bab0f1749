"""What makes a diffusion checkpoint's networks fast and small without changing what they compute.

Measured at 384x512 with Stable Diffusion 2's sizes on one core with AMX: a decoder in bfloat16 takes 12 s as it comes
and 3 s with channels last, since oneDNN then need not rearrange every map around every convolution; in float32, 21 s
either way. tests/benchmarks/diffusion_speed.py measures the whole. Attention is fused (torch's SDPA) in diffusers
itself, in the autoencoder too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batching import TILE_PX
from .overlap import check_stopped

_LONG = ("ResnetBlock2D", "Transformer2DModel", "Upsample2D", "AutoencoderTinyBlock")  # classes of diffusers


class DepthConv(nn.Module):
    """The decoder's last convolution, for the mean of its three channels alone, in float32.

    The mean of convolutions is the convolution with the mean of their weights. In half precision, depth would come in
    visible steps: bfloat16 has 256 values between 0.5 and 1.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.padding = conv.padding
        bias = torch.zeros(len(conv.weight), device=conv.weight.device) if conv.bias is None else conv.bias
        self.register_buffer("weight", conv.weight.detach().float().mean(0, keepdim=True))  # (1, C, k, k)
        self.register_buffer("bias", bias.detach().float().mean(0, keepdim=True))  # (1,)

    def _apply(self, fn: Any, recurse: bool = True) -> DepthConv:
        """Moved between devices with its decoder, and kept in float32."""
        super()._apply(fn, recurse)
        self.weight, self.bias = self.weight.float(), self.bias.float()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.float(), self.weight, self.bias, padding=self.padding)  # (N, 1, H, W)


def tune(unet: Any, vae: Any, decoder: Any, compiled: bool) -> None:
    """Prepare the networks of a checkpoint, in place: `vae` encodes, `decoder` (often the same) decodes depth."""
    for network in {id(n): n for n in (unet, vae, decoder)}.values():
        network.to(memory_format=torch.channels_last)
    _give_depth_only(decoder.decoder)
    for autoencoder in (vae, decoder):
        autoencoder.tile_sample_min_size = TILE_PX
        autoencoder.tile_latent_min_size = TILE_PX // reduction(autoencoder)
    if compiled:
        for network in (unet, vae.encoder, decoder.decoder):
            network.compile()
    else:
        for network in (unet, vae.encoder, decoder.decoder):
            _make_stoppable(network)


def is_compiler_error(error: Exception) -> bool:
    """Whether torch.compile failed, for lack of a C++ compiler, say."""
    return any(type(e).__module__.startswith(("torch._dynamo", "torch._inductor")) for e in (error, error.__cause__))


def reduction(autoencoder: Any) -> int:
    """Image pixels a latent pixel, along each side."""
    return int(2 ** (len(autoencoder.config.block_out_channels) - 1))


def _give_depth_only(decoder: Any) -> None:
    if hasattr(decoder, "conv_out"):  # AutoencoderKL
        decoder.conv_out = DepthConv(decoder.conv_out)
    else:  # AutoencoderTiny
        decoder.layers[-1] = DepthConv(decoder.layers[-1])


def _make_stoppable(network: nn.Module) -> None:
    """A pass takes many seconds on a CPU: blocks look whether anyone still waits for it."""
    for module in network.modules():
        if type(module).__name__ in _LONG:
            module.register_forward_pre_hook(lambda *_: check_stopped())
