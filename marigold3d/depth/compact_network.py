"""The network of the embedded estimator: EfficientNet-Lite0, global attention over its coarsest map, a light decoder.

Encoder: Tan & Le 2019 without squeeze-excitation and with ReLU6 ("Lite"); batch normalisation is folded into the
convolutions (`training/prior.py` does so with the ImageNet weights), which keeps the prior's statistics of real
images. Output: log z-depth up to a shift an image, and the log scale of its Laplace error.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# (blocks, kernel, stride, expansion, channels) of each stage
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
SKIP_AFTER_BLOCK = (0, 2, 4, 10, 15)  # the last block at strides 2, 4, 8, 16, 32
SKIP_CHANNELS = (16, 24, 40, 112, 320)
DECODER_CHANNELS = (16, 32, 64, 96, 192)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LOG_SCALE_RANGE = (-4.0, 1.0)


class SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow's SAME: at stride 2 the odd pixel goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = x.shape[-2:]
        rows = max((-(-height // stride) - 1) * stride + kernel - height, 0)
        columns = max((-(-width // stride) - 1) * stride + kernel - width, 0)
        if rows % 2 == 0 and columns % 2 == 0:
            return functional.conv2d(x, self.weight, self.bias, self.stride, (rows // 2, columns // 2), 1, self.groups)
        x = functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return functional.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)


class InvertedResidual(nn.Module):
    """Expand, filter depth-wise, project; a residual where the shape allows."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.is_residual = stride == 1 and inputs == outputs
        self.expand = SameConv(inputs, inner, 1) if expansion != 1 else None
        self.depthwise = SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = SameConv(inner, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else functional.relu6(self.expand(x))
        y = self.project(functional.relu6(self.depthwise(y)))
        return x + y if self.is_residual else y


class Encoder(nn.Module):
    """EfficientNet-Lite0 without its head: rgb (B, 3, H, W), normalised, to five maps at strides 2, 4, 8, 16, 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, 2)
        blocks, inputs = [], 32
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, kernel, stride if repeat == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = functional.relu6(self.stem(x))
        skips = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in SKIP_AFTER_BLOCK:
                skips.append(x)
        return skips


class GlobalContext(nn.Module):
    """Attention among all cells of the coarsest map, each told where it lies:
    depth layout is a property of the whole image.
    """

    def __init__(self, channels: int, layers: int = 3, heads: int = 6) -> None:
        super().__init__()
        self.place = nn.Linear(6, channels)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(channels, heads, 3 * channels, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        v, u = (torch.linspace(-1, 1, n, device=x.device) for n in (height, width))
        v, u = torch.meshgrid(v, u, indexing="ij")
        # An image is taken to fill its frame: place is relative to height and width.
        place = torch.stack((u, v, u * u, v * v, (3 * u).sin(), (3 * v).sin()), -1).flatten(0, 1)  # (h * w, 6)
        tokens = x.flatten(2).transpose(1, 2) + self.place(place.to(x.dtype))  # (B, h * w, C)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens.transpose(1, 2).reshape(x.shape)


class Merge(nn.Module):
    """Bring a coarse map to a skip's size, add the skip, refine with a residual pair of convolutions."""

    def __init__(self, coarse: int, channels: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(coarse, channels, 1)
        self.norm = nn.GroupNorm(8, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        x = skip + functional.interpolate(
            self.narrow(coarse), size=skip.shape[-2:], mode="bilinear", align_corners=False
        )
        return x + self.second(functional.relu(self.first(functional.relu(x))))


class CompactNetwork(nn.Module):
    """rgb (B, 3, H, W) in 0..1, any size from 32 up, to log depth (B, 1, H, W) up to a shift and log Laplace scale
    (B, 1, H, W).
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
        self.encoder = Encoder()
        self.skips = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.GroupNorm(8, outputs))
            for inputs, outputs in zip(SKIP_CHANNELS, DECODER_CHANNELS, strict=True)
        )
        self.context = GlobalContext(DECODER_CHANNELS[-1])
        coarse_to_fine = list(zip(DECODER_CHANNELS[1:], DECODER_CHANNELS[:-1], strict=True))[::-1]
        self.merges = nn.ModuleList(Merge(coarse, fine) for coarse, fine in coarse_to_fine)
        self.head = nn.Sequential(
            nn.GroupNorm(8, DECODER_CHANNELS[0]), nn.ReLU(), nn.Conv2d(DECODER_CHANNELS[0], 2, 3, padding=1)
        )

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        skips = [adapt(x) for adapt, x in zip(self.skips, self.encoder((rgb - self.mean) / self.std), strict=True)]
        x = self.context(skips[-1])
        for merge, skip in zip(self.merges, skips[-2::-1], strict=True):
            x = merge(x, skip)
        out = functional.interpolate(self.head(x).float(), size=rgb.shape[-2:], mode="bilinear", align_corners=False)
        return out[:, :1], out[:, 1:].clamp(*LOG_SCALE_RANGE)
