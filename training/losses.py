"""What the compact network is judged by: log depth up to a shift an image."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from training.pool import FAR_M

SKY_WEIGHT = 0.1
GRADIENT_WEIGHT = 0.5


def weights(log_depth: Tensor) -> Tensor:
    """(B, 1, H, W): the sky, clamped to FAR_M, counts little, but something: far must come out far."""
    return torch.where(log_depth > math.log(FAR_M) - 0.01, SKY_WEIGHT, 1.0)


def residual(prediction: Tensor, log_depth: Tensor, weight: Tensor) -> Tensor:
    """Prediction minus truth (B, 1, H, W) after the shift that zeroes the median over the non-sky pixels of each
    image.
    """
    error = prediction - log_depth
    ground = torch.where(weight >= 1.0, error, torch.nan).flatten(1)
    shift = ground.nanmedian(1).values.nan_to_num(0.0)
    return error - shift[:, None, None, None]


def gradient_loss(error: Tensor, weight: Tensor, scales: int = 4) -> Tensor:
    """Mean absolute difference between neighbours of the error at `scales` halvings (MiDaS, eq.

    11): edges where they belong.
    """
    total = error.new_zeros(())
    solid = (weight >= 1.0).float()
    for _ in range(scales):
        across = (error[..., 1:] - error[..., :-1]).abs() * solid[..., 1:] * solid[..., :-1]
        down = (error[..., 1:, :] - error[..., :-1, :]).abs() * solid[..., 1:, :] * solid[..., :-1, :]
        total = total + (across.mean() + down.mean()) / solid.mean().clamp_min(0.05)
        error, solid = functional.avg_pool2d(error, 2), (functional.avg_pool2d(solid, 2) > 0.99).float()
    return total


def depth_loss(
    prediction: Tensor, log_scale: Tensor, log_depth: Tensor, gradient_weight: float = GRADIENT_WEIGHT
) -> Tensor:
    """L1 + gradient matching + Laplace likelihood; the scale learns from the error but does not bend the depth."""
    weight = weights(log_depth)
    error = residual(prediction, log_depth, weight)
    norm = weight.sum().clamp_min(1.0)
    l1 = (error.abs() * weight).sum() / norm
    likelihood = ((error.detach().abs() * torch.exp(-log_scale) + log_scale) * weight).sum() / norm
    return l1 + gradient_weight * gradient_loss(error, weight) + 0.1 * likelihood
