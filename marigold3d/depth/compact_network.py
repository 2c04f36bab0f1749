"""The network of the embedded estimator: EfficientNet-Lite0, attention over its two coarsest maps, a light decoder.

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
SKIP_SPREAD = (9.0, 9.0, 8.0, 5.5, 2.2)  # standard deviation of the prior's maps there
CONTEXT_CHANNELS, CONTEXT_LAYERS = (256, 192), (3, 3)  # at strides 32 and 16
DECODER_CHANNELS = (96, 48, 24)  # at strides 8, 4, 2
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LOG_SCALE_RANGE = (-4.0, 1.0)


class SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow's SAME: at stride 2 the odd pixel goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.padding_px(x)
        if rows % 2 == 0 and columns % 2 == 0:
            padding = (rows // 2, columns // 2)
            return functional.conv2d(x, self.weight, self.bias, self.stride, padding, 1, self.groups)
        return functional.conv2d(self.padded(x), self.weight, self.bias, self.stride, 0, 1, self.groups)

    def padding_px(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of zeros that x needs."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:])
        return rows, columns

    def padded(self, x: Tensor) -> Tensor:
        rows, columns = self.padding_px(x)
        return functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


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


class Context(nn.Module):
    """Attention among all cells of a map, each told where it lies: depth layout is a property of the whole image."""

    def __init__(self, channels: int, layers: int, heads: int) -> None:
        super().__init__()
        self.place = nn.Linear(6, channels)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(channels, heads, 3 * channels, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        v, u = (torch.linspace(-1, 1, n, device=x.device) for n in (height, width))
        v, u = torch.meshgrid(v, u, indexing="ij")
        # An image is taken to fill its frame: place is relative to height and width.
        place = torch.stack((u, v, u * u, v * v, (3 * u).sin(), (3 * v).sin()), -1).flatten(0, 1)  # (h * w, 6)
        tokens = x.flatten(2).transpose(1, 2) + self.place(place.to(x.dtype))  # (B, h * w, C)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens).transpose(1, 2).reshape(x.shape)


class Merge(nn.Module):
    """Bring a coarse map to a skip's size, add the skip, refine with residual pairs of convolutions."""

    def __init__(self, coarse: int, skip: int, channels: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(coarse, channels, 1)
        self.skip = nn.Conv2d(skip, channels, 1)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        x = self.skip(skip)
        x = x + functional.interpolate(self.narrow(coarse), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x + self.second(functional.leaky_relu(self.first(functional.leaky_relu(x, 0.1)), 0.1))


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
        self.coarsest = nn.Conv2d(SKIP_CHANNELS[-1], CONTEXT_CHANNELS[0], 1)
        self.contexts = nn.ModuleList(
            Context(channels, layers, channels // 32)
            for channels, layers in zip(CONTEXT_CHANNELS, CONTEXT_LAYERS, strict=True)
        )
        sizes = (CONTEXT_CHANNELS[0], CONTEXT_CHANNELS[1], *DECODER_CHANNELS)
        self.merges = nn.ModuleList(
            Merge(coarse, skip, fine)
            for coarse, skip, fine in zip(sizes[:-1], SKIP_CHANNELS[-2::-1], sizes[1:], strict=True)
        )
        self.head = nn.Conv2d(DECODER_CHANNELS[-1], 2, 3, padding=1)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.encoder((rgb - self.mean) / self.std)
        *skips, x = (m / spread for m, spread in zip(maps, SKIP_SPREAD, strict=True))
        x = self.contexts[0](self.coarsest(x))
        for stage, merge in enumerate(self.merges):
            x = merge(x, skips[-1 - stage])
            if stage == 0:
                x = x + self.contexts[1](x)
        out = functional.interpolate(
            self.head(functional.leaky_relu(x, 0.1)).float(), size=rgb.shape[-2:], mode="bilinear", align_corners=False
        )
        return out[:, :1], out[:, 1:].clamp(*LOG_SCALE_RANGE)
