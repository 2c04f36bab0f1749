"""What is minimised: three ways to train the same U-Net.

`Diffusion`: Ke et al. (arXiv 2312.02145), eq. 2. `EndToEnd`: Martin Garcia et al. (arXiv 2409.11355), sec. 4.
`Consistency`: Luo et al. (arXiv 2310.04378), alg. 1, without guidance, since every prompt is empty.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor

from training.recipe import latents, noise
from training.recipe.config import LcmConfig, Recipe
from training.recipe.diffusion import Process
from training.recipe.latents import LatentBatch
from training.recipe.networks import Networks, predict

SIGMA_DATA = 0.5  # of the boundary condition: Song et al., "Consistency Models", 2023


class Objective(Protocol):
    """A loss of one micro-batch. `needs_pixels`: it compares with metric depth, so latents alone do not suffice."""

    needs_pixels: bool

    def loss(self, unet: Any, batch: LatentBatch) -> Tensor:
        """A scalar: the mean over what is valid, zero (with a gradient of zero) where nothing is."""
        ...


def objective_of(recipe: Recipe, networks: Networks, device: torch.device, target: Any = None) -> Objective:
    """The objective that a recipe names; `target` is the running average of the U-Net, for distillation."""
    process = Process(networks.scheduler, device)
    prompt = networks.prompt.to(device)
    if recipe.objective == "end_to_end":
        return EndToEnd(process, prompt, networks.vae)
    if recipe.objective == "lcm":
        teacher = teacher_of(networks)
        return Consistency(recipe.lcm, process, prompt, teacher, target, recipe)
    return Diffusion(process, prompt, recipe)


class Diffusion:
    """The mean squared error of the predicted velocity (or noise, or sample) over the valid latents."""

    needs_pixels = False

    def __init__(self, process: Process, prompt: Tensor, recipe: Recipe) -> None:
        self.process, self.prompt, self.recipe = process, prompt, recipe

    def loss(self, unet: Any, batch: LatentBatch) -> Tensor:
        process, recipe = self.process, self.recipe
        t = noise.timesteps(recipe.seed, batch.samples, process.steps)  # (N,)
        added = noise.draw(recipe.noise, recipe.seed, batch.samples, batch.depth.shape[1:], t / process.steps)
        t, added = t.to(batch.depth.device), added.to(batch.depth.device)
        noisy = process.mix(batch.depth, added, t)
        output = predict(unet, self.prompt, batch.image, noisy, t)
        return masked_mean((output - process.target(batch.depth, added, t)).square(), batch.mask)


class EndToEnd:
    """One step from nothing: x_T = 0 at t = T - 1, through the frozen decoder, affine-invariant L1 against metres."""

    needs_pixels = True

    def __init__(self, process: Process, prompt: Tensor, vae: Any) -> None:
        self.process, self.prompt, self.vae = process, prompt, vae

    def loss(self, unet: Any, batch: LatentBatch) -> Tensor:
        t = torch.full((len(batch.image),), self.process.steps - 1, device=batch.image.device)
        zeros = torch.zeros_like(batch.image)
        x0 = self.process.x0(predict(unet, self.prompt, batch.image, zeros, t), zeros, t)
        depth = latents.decode(self.vae, x0).clamp(-1.0, 1.0)  # (N, 1, H, W)
        if batch.depth_m is None or batch.valid is None:
            raise ValueError("end-to-end training needs metric depth, but these batches hold latents only")
        return affine_invariant_l1(depth, batch.depth_m, batch.valid)


class Consistency:
    """A student whose answer at t must be its own average's answer one DDIM jump of the teacher later."""

    needs_pixels = False

    def __init__(
        self, config: LcmConfig, process: Process, prompt: Tensor, teacher: Any, target: Any, recipe: Recipe
    ) -> None:
        self.config, self.process, self.prompt, self.recipe = config, process, prompt, recipe
        self.teacher, self.target = teacher, target
        self.jump = process.steps // config.ddim_steps

    def loss(self, unet: Any, batch: LatentBatch) -> Tensor:
        recipe, device = self.recipe, batch.depth.device
        place = noise.timesteps(recipe.seed, batch.samples, self.config.ddim_steps).to(device)
        t = (place + 1) * self.jump - 1  # the solver's grid: jump - 1 … T - 1
        white = noise.draw(recipe.noise, recipe.seed, batch.samples, batch.depth.shape[1:], t / self.process.steps)
        x_t = self.process.mix(batch.depth, white.to(device), t)
        answer = self.consistent(unet, batch.image, x_t, t)
        with torch.no_grad():
            x_s, s = self.solver_step(batch.image, x_t, t)
            wanted = self.consistent(self.target, batch.image, x_s, s)
        error = (answer - wanted).square()
        if self.config.loss == "huber":
            error = (error + self.config.huber_c**2).sqrt() - self.config.huber_c
        return masked_mean(error, batch.mask)

    def consistent(self, unet: Any, image: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """f(x_t, t) = c_skip x_t + c_out x_0, which is x_t itself at the end, t < 0 (Luo et al., eq. 9)."""
        at = t.clamp_min(0)
        x0 = self.process.x0(predict(unet, self.prompt, image, x_t, at), x_t, at)
        c_skip, c_out = boundary(at, self.config.timestep_scaling)
        return c_skip * x_t + c_out * x0

    def solver_step(self, image: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """One DDIM step of the teacher from t to s = t - jump; s < 0 is the clean latent."""
        output = predict(self.teacher, self.prompt, image, x_t, t)
        x0, added = self.process.x0(output, x_t, t), self.process.noise(output, x_t, t)
        s = t - self.jump
        x_s = self.process.mix(x0, added, s.clamp_min(0))
        return torch.where((s < 0).view(-1, 1, 1, 1), x0, x_s), s


def boundary(t: Tensor, timestep_scaling: float) -> tuple[Tensor, Tensor]:
    """c_skip and c_out (N, 1, 1, 1) of a consistency model: 1 and 0 at t = 0. As LCMScheduler has them."""
    scaled = (t * timestep_scaling).float().view(-1, 1, 1, 1)
    total = scaled.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / total.sqrt()


def teacher_of(networks: Networks) -> Any:
    """A frozen copy of the U-Net as it is now."""
    return deepcopy(networks.unet).eval().requires_grad_(False)


def masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Mean of error (N, C, h, w) where mask (N, 1, h, w); 0 where nothing is."""
    weight = mask.expand_as(error).float()
    return (error * weight).sum() / weight.sum().clamp_min(1.0)


def affine_invariant_l1(prediction: Tensor, depth_m: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid pixels of |s prediction + t - depth_m|, s and t the least squares of each image.

    All (N, 1, H, W). The fit is differentiated too. Images with fewer than two valid pixels do not count; a prediction
    without variation gets s = 0.
    """
    weight = valid.float()
    count = weight.sum(dim=(1, 2, 3), keepdim=True)
    total = count.clamp_min(1.0)
    mean_p = (prediction * weight).sum(dim=(1, 2, 3), keepdim=True) / total
    mean_d = (depth_m * weight).sum(dim=(1, 2, 3), keepdim=True) / total
    p, d = (prediction - mean_p) * weight, (depth_m - mean_d) * weight
    variance = p.square().sum(dim=(1, 2, 3), keepdim=True)
    covariance = (p * d).sum(dim=(1, 2, 3), keepdim=True)
    scale = torch.where(variance > 1e-8 * total, covariance / variance.clamp_min(1e-12), 0.0)
    weight = weight * (count >= 2.0)
    return ((scale * p - d).abs() * weight).sum() / weight.sum().clamp_min(1.0)
