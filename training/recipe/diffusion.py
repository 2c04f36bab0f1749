"""The forward process and what its network's three kinds of output say: Ho et al. 2020; Salimans and Ho 2022."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from marigold3d.errors import ModelError


class Process:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, over a scheduler's timesteps 0 … T - 1, on one device."""

    def __init__(self, scheduler: Any, device: Any) -> None:
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.to(device)  # (T,)
        self.steps = len(self.alphas_cumprod)
        self.predicts: str = scheduler.config.prediction_type
        if self.predicts not in ("epsilon", "v_prediction", "sample"):
            raise ModelError(f"the scheduler predicts {self.predicts!r}: use epsilon, v_prediction or sample")

    def mix(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t (N, C, h, w) at timesteps t (N,)."""
        signal, sigma = self.signal_and_noise(t)
        return signal * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should say at x_t: v = sqrt(a) noise - sqrt(1 - a) x_0, or noise, or x_0."""
        if self.predicts == "epsilon":
            return noise
        if self.predicts == "sample":
            return x0
        signal, sigma = self.signal_and_noise(t)
        return signal * noise - sigma * x0

    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean latent that the network's output at x_t implies."""
        if self.predicts == "sample":
            return output
        signal, sigma = self.signal_and_noise(t)
        if self.predicts == "epsilon":
            return (x_t - sigma * output) / signal
        return signal * x_t - sigma * output

    def noise(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that the network's output at x_t implies."""
        if self.predicts == "epsilon":
            return output
        signal, sigma = self.signal_and_noise(t)
        if self.predicts == "sample":
            return (x_t - signal * output) / sigma
        return signal * output + sigma * x_t

    def signal_and_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a_t) and sqrt(1 - a_t), (N, 1, 1, 1)."""
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return a.sqrt(), (1.0 - a).sqrt()
