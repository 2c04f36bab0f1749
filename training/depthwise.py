"""Depth-wise convolutions that keep their weights: the library's backward pass would take most of a step on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from marigold3d.depth.compact_network import SameConv


class FrozenDepthwise(torch.autograd.Function):
    """y = conv(x, weight) + bias, channel by channel; its gradient by x is another convolution, which is fast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            x, weight, bias = (t.to(torch.get_autocast_dtype("cpu")) for t in (x, weight, bias))
        ctx.save_for_backward(weight)
        ctx.stride, ctx.size = stride, x.shape[-2:]
        return functional.conv2d(x, weight, bias, stride, 0, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        (weight,) = ctx.saved_tensors
        kernel = weight.shape[-1]
        if ctx.stride > 1:  # as if every step had been taken, the others with no gradient
            rows, columns = ctx.size
            every = grad.new_zeros(*grad.shape[:2], rows - kernel + 1, columns - kernel + 1)
            every = every.contiguous(memory_format=torch.channels_last)
            every[..., :: ctx.stride, :: ctx.stride] = grad
            grad = every
        back = functional.conv2d(grad, weight.flip(-1, -2), None, 1, kernel - 1, 1, grad.shape[1])
        return back, None, None, None


class FrozenSameConv(SameConv):
    """A depth-wise `SameConv` as `FrozenDepthwise` computes it."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return super().forward(x)
        return FrozenDepthwise.apply(self.padded(x), self.weight, self.bias, self.stride[0])  # type: ignore[no-any-return,no-untyped-call]


def freeze(module: nn.Module) -> None:
    """Turn every depth-wise SameConv within into a FrozenSameConv; parameters and their names stay."""
    for part in module.modules():
        if isinstance(part, SameConv) and part.groups > 1:
            part.requires_grad_(False)
            part.__class__ = FrozenSameConv
