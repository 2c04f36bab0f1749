"""What the compact network is judged by: log depth up to a shift an image; other domains for comparison."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from training.pool import FAR_M

DepthDomain = Literal["log_depth", "depth", "disparity"]

SKY_WEIGHT = 0.1
GRADIENT_WEIGHT = 0.5


def weights(log_depth: Tensor) -> Tensor:
    """(B, 1, H, W): the sky, clamped to FAR_M, counts little, but something: far must come out far."""
    return torch.where(log_depth > math.log(FAR_M) - 0.01, SKY_WEIGHT, 1.0)


def residual(prediction: Tensor, log_depth: Tensor, weight: Tensor, domain: DepthDomain = "log_depth") -> Tensor:
    """Prediction minus truth (B, 1, H, W), in the domain that the network predicts.

    log_depth: after the shift that zeroes its median over the non-sky pixels of each image. depth, disparity: both
    brought to median 0 and mean absolute deviation 1 there (MiDaS, eq. 5 to 7).
    """
    if domain == "log_depth":
        error = prediction - log_depth
        return error - _ground_median(error, weight)
    truth = log_depth.exp() if domain == "depth" else (-log_depth).exp()
    return _standardised(prediction, weight) - _standardised(truth, weight)


def _ground_median(x: Tensor, weight: Tensor) -> Tensor:
    """(B, 1, 1, 1) over the non-sky pixels; 0 where there are none."""
    ground = torch.where(weight >= 1.0, x, torch.nan).flatten(1)
    return ground.nanmedian(1).values.nan_to_num(0.0)[:, None, None, None]


def _standardised(x: Tensor, weight: Tensor) -> Tensor:
    ground = (weight >= 1.0).float()
    centred = x - _ground_median(x, weight)
    deviation = (centred.abs() * ground).sum((1, 2, 3), keepdim=True) / ground.sum((1, 2, 3), keepdim=True).clamp_min(1)
    return centred / deviation.clamp_min(1e-3)


def gradient_loss(error: Tensor, weight: Tensor, scales: int = 4) -> Tensor:
    """Mean absolute difference between neighbours of the error, at `scales` halvings: edges where they belong.

    MiDaS (Ranftl et al. 2020), equation 11.
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
    prediction: Tensor,
    log_scale: Tensor,
    log_depth: Tensor,
    gradient_weight: float = GRADIENT_WEIGHT,
    domain: DepthDomain = "log_depth",
) -> Tensor:
    """L1 + gradient matching + Laplace likelihood; the scale learns from the error but does not bend the depth."""
    weight = weights(log_depth)
    error = residual(prediction, log_depth, weight, domain)
    norm = weight.sum().clamp_min(1.0)
    l1 = (error.abs() * weight).sum() / norm
    likelihood = ((error.detach().abs() * torch.exp(-log_scale) + log_scale) * weight).sum() / norm
    return l1 + gradient_weight * gradient_loss(error, weight) + 0.1 * likelihood
