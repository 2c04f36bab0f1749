"""Sparse cues steer the sampler of a Marigold checkpoint: depth that bends to them, not only a scale and a shift.

Viola et al., "Marigold-DC" (arXiv 2412.13389): at every timestep the clean latent is previewed, decoded and compared
with the cues; the gradient moves the noisy latent and the map's scale and shift. The checkpoint stays as it is.

    y = a^2 * span * d + b^2 * low        y: z-depth or 1/z, whichever the checkpoint predicts; d: decoded map

`low` and `low + span` are the cues' 2nd and 98th percentiles, since Marigold's training maps these percentiles of a
depth map to 0 and 1. Beyond the paper: cues weigh by their sigma; those that contradict their neighbours do not count;
the map is not clipped, because clipped pixels pass no gradient; after the last step the decoder alone corrects the
latent on grids from coarse to fine, which is all the guidance that a single step gets; scale and shift are at last
solved in closed form.

Measured on a toy (tests/test_guided.py: Gaussian latents, their exact denoiser, a linear decoder), AbsRel over all
pixels, mean of six scenes. Not measured on a trained checkpoint: none was at hand.

    | cues                     | best affine fit | sampler alone | + 20 corrections | + 50 |
    |---|---|---|---|---|
    | 100 exact                | 0.191 | 0.035 | 0.017 | 0.015 |
    | 100, 3 % noise           | 0.191 | 0.036 | 0.032 | 0.035 |
    | 90 exact, 10 wrong by 3  | 0.191 | 0.036 | 0.018 | 0.016 |
    | 20 exact                 | 0.191 | 0.060 | 0.048 | 0.047 |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ..depth.device import run_within_memory
from ..depth.images import check_rgb, resized
from ..depth.marigold import MarigoldEstimator
from ..errors import GeometryError, ModelError, UsageError
from ..types import Array, DepthMap, Domain, FloatImage, RelativeDepth, SparseCues
from .affine import AffineFit, fit_affine
from .cue_arrays import sigma_shares
from .domains import dy_dz, to_domain
from .robust import mad
from .samples import sample

STEPS = 50  # the paper's error stops falling there; below 25, it distorts
CORRECTIONS = 20  # more follow noise in the cues
ONE_STEP_CORRECTIONS = 50
CORRECTION_RATE = 0.4  # of the latent's rate, falling to zero
STRIDES = (1, 2, 4, 8, 16)  # latent pixels between the nodes of a correction; coarse ones carry it between cues
FEWEST_CUES = 3
FEWEST_HELD_OUT = 5
LEAST_RATIO = 1.05  # farthest over nearest cue: below, the cues say nothing on how the map is to be stretched
LEAST_SIGMA = 0.01  # of the span: a cue is not trusted further, nor does the decoder resolve more
NEIGHBOURS, ALIKE = 8, 3  # a cue stands out if fewer than 3 of the 8 nearest are like it
LEAST_SPREAD = 0.05  # of the span, or in log depth: who stands out less than TUKEY times this is no outlier
TUKEY = 4.685
LEAST_TRUST = 0.5  # of a cue, to count in the final fit

REMEDY = "guidance needs cues that span depths: run without --guide"

Guided = tuple[torch.Tensor, torch.Tensor, list[float]]
"""Clean latent (1, C, h, w), (a, b), and the loss of every optimisation step."""


@dataclass(frozen=True, eq=False)
class GuidedDepth:
    """A frame's depth, bent to its cues.

    depth: scene units of the cues; its sigma is from the held-out cues or, without them, from the residuals at the cues
    and their own sigma, which is too little between distant cues; and from the spread of the ensemble. relative: the
    map before `fit`, which carries it to scene units. loss: at every optimisation step, the sampler's before the
    corrections', mean over the ensemble. rejected: cues that guided and in the end did not count. cue_error: mean of
    |z - cue| / cue over the others, with (a, b) and with `fit`. held_out_error: its median over the cues that did not
    guide; NaN without them. `fit.inliers` is over the cues that guided.
    """

    depth: DepthMap
    relative: RelativeDepth
    fit: AffineFit
    loss: Array
    rejected: int
    cue_error: tuple[float, float]
    held_out_error: float = float("nan")

    @property
    def scale(self) -> float:
        """Depth (disparity) = scale * relative + shift."""
        return self.fit.scale

    @property
    def shift(self) -> float:
        """Depth (disparity) = scale * relative + shift."""
        return self.fit.shift


class GuidedEstimator:
    """Marigold-DC around any Marigold checkpoint.

    steps: of the sampler; 50 unless given, 1 for a checkpoint trained from zeros. latent_rate, scale_rate: Adam's
    learning rates for the latent and for (a, b). iterations: optimisation steps a timestep; a single timestep gets
    none. corrections: optimisation steps after the sampler; 20 unless given, 50 behind a single timestep.
    held_out: share of the cues kept aside, to tell how good the others make the map; none of fewer than 50 cues at 0.1.
    checkpointing: activations are computed again in the backward pass instead of kept.

    Raises UsageError for settings the checkpoint cannot follow.
    """

    def __init__(
        self,
        estimator: MarigoldEstimator,
        *,
        steps: int | None = None,
        latent_rate: float = 0.05,
        scale_rate: float = 0.005,
        iterations: int = 1,
        corrections: int | None = None,
        held_out: float = 0.1,
        checkpointing: bool = True,
    ) -> None:
        self.estimator = estimator
        self.steps = steps if steps is not None else 1 if estimator.noise == "zeros" else STEPS
        default = ONE_STEP_CORRECTIONS if self.steps == 1 else CORRECTIONS
        self.corrections = default if corrections is None else corrections
        self.latent_rate, self.scale_rate, self.iterations = latent_rate, scale_rate, iterations
        self.held_out, self.checkpointing = held_out, checkpointing
        if min(self.steps, iterations, latent_rate, scale_rate) <= 0 or self.corrections < 0:
            raise UsageError("guidance needs positive steps, iterations and rates")
        if not 0 <= held_out <= 0.5:
            raise UsageError(f"at most half of the cues can be held out, got a share of {held_out}")
        if estimator.dtype == torch.float16 and estimator.device.type == "cpu":
            estimator.to_float32()  # chosen for speed; gradients of hundreds of layers leave its range
        estimator.timesteps(self.steps)  # now, so that an impossible number is reported before any frame is read

    def align(self, rgb: NDArray[np.uint8], cues: SparseCues) -> GuidedDepth:
        """Depth of rgb (H, W, 3) uint8 in the units of the cues, whose uv are pixels of it.

        On the CPU, equal input gives equal bytes. Raises InputError for another image, GeometryError for cues off the
        image, fewer than three, or all at one depth, OutOfMemoryError, and ModelError for numbers that overflow.
        """
        check_rgb(rgb[None])
        guiding, aside = _split(_on_image(cues, rgb.shape[:2]), self.held_out)
        _check_span(guiding)
        with _checkpointed(self.estimator.model, self.checkpointing):
            (guided,) = run_within_memory(lambda batch: [self._align(batch, guiding)], rgb[None])
        return _judged(guided, aside) if len(aside) else guided

    def _align(self, rgb: NDArray[np.uint8], cues: SparseCues) -> GuidedDepth:
        size = (rgb.shape[1], rgb.shape[2])
        with torch.no_grad():
            image_latent, network_size = self.estimator.image_latent(rgb)
        cost = CueCost(cues, size, network_size, self.estimator.domain, image_latent)
        members, losses = [], []
        for member in range(self.estimator.ensemble):
            with torch.enable_grad():
                latent, ab, loss = self._corrected(self._sampled(image_latent, member, cost), cost)
            members.append(self._fitted(latent, ab, cost, size, cues))
            losses.append(loss)
        return _merged(members, np.mean(losses, axis=0), cues)

    def _sampled(self, image_latent: torch.Tensor, member: int, cost: CueCost) -> Guided:
        """The sampler with a nudge before each of its steps."""
        start, generators = self.estimator.start(image_latent, member)
        latent, ab = start.clone().requires_grad_(), torch.ones_like(cost.target[:2]).requires_grad_()
        optimiser = self._optimiser([latent], ab, self.latent_rate)
        losses = []
        for t in self.estimator.timesteps(self.steps):
            for _ in range(self.iterations if self.steps > 1 else 0):
                output = self.estimator.predict_noise(image_latent, latent, t)
                clean, noise = preview(self.estimator.model.scheduler, output, t, latent)
                losses.append(self._backward(clean, ab, cost))
                # Adam's step depends on how gradients compare over time: as noise fades, the nudges fade with it.
                _rescale(latent, noise.detach().norm())
                optimiser.step()
                optimiser.zero_grad()
            with torch.no_grad():
                if self.steps == 1:
                    output = self.estimator.predict_noise(image_latent, latent, t)
                step = self.estimator.model.scheduler.step
                latent.copy_(step(output.detach(), t, latent.detach(), generator=generators, return_dict=False)[0])
        return latent.detach(), ab.detach(), losses

    def _corrected(self, guided: Guided, cost: CueCost) -> Guided:
        """The latent moved on by its gradients through the decoder, on grids whose upsampled sum is the correction."""
        plain, start, losses = guided
        grids = [plain.new_zeros(1, plain.shape[1], -(-plain.shape[2] // s), -(-plain.shape[3] // s)) for s in STRIDES]
        ab = start.clone().requires_grad_()
        rate = CORRECTION_RATE * self.latent_rate
        optimiser = self._optimiser([grid.requires_grad_() for grid in grids], ab, rate)
        for i in range(self.corrections):
            optimiser.param_groups[0]["lr"] = rate * (1 - i / self.corrections)
            losses = losses + [self._backward(plain + _upsampled_sum(grids, plain), ab, cost)]
            optimiser.step()
            optimiser.zero_grad()
        return (plain + _upsampled_sum(grids, plain)).detach(), ab.detach(), losses

    def _optimiser(self, latents: list[torch.Tensor], ab: torch.Tensor, rate: float) -> torch.optim.Optimizer:
        groups = [{"params": latents, "lr": rate}, {"params": [ab], "lr": self.scale_rate}]
        return torch.optim.Adam(groups)

    def _backward(self, clean: torch.Tensor, ab: torch.Tensor, cost: CueCost) -> float:
        """Gradients of the loss of a clean latent; returns the loss."""
        loss = cost(self.estimator.decode_unclipped(clean), ab)
        if not bool(torch.isfinite(loss)):
            self.estimator.check_finite(loss)
        # Adam minds no factor, float16 does: the gradient of a mean over many cues would vanish in it.
        (loss * len(cost.target)).backward()
        return float(loss.detach())

    def _fitted(
        self, latent: torch.Tensor, ab: torch.Tensor, cost: CueCost, size: tuple[int, int], cues: SparseCues
    ) -> _Member:
        with torch.no_grad():
            depth = self.estimator.decode_unclipped(latent)
            self.estimator.check_finite(depth)
            trusted = (cost.trust(cost.residuals(depth, ab)) > LEAST_TRUST).cpu().numpy()
            values = resized(depth[..., : cost.height, : cost.width], size, antialias=False)[0, 0].float()
        relative = RelativeDepth(values.cpu().numpy(), self.estimator.domain)
        a, b = ab.cpu().double().numpy() ** 2
        return _refitted(relative, a * cost.span, b * cost.low, trusted, cues)


class CueCost:
    """How far a decoded map (1, 1, h, w) is from N cues, as a share of their span in the checkpoint's domain.

    low, span: 2nd percentile of the cues and from there to the 98th. The map is read where resizing it bilinearly to
    the frame would put the pixels that hold the cues.
    """

    def __init__(
        self, cues: SparseCues, size: tuple[int, int], network_size: tuple[int, int], domain: Domain, like: torch.Tensor
    ) -> None:
        y = to_domain(np.asarray(cues.depth, float), domain)
        self.height, self.width = network_size
        near = _neighbours(cues.uv)
        self.low, self.span = _range(y, near)
        sigma = np.full(len(y), 1.0)
        if cues.sigma is not None:
            sigma = np.hypot(cues.sigma * np.abs(dy_dz(cues.depth, domain)) / self.span, LEAST_SIGMA)
        self.target = torch.as_tensor(y / self.span).to(like)  # (N,)
        self.weight = torch.as_tensor(np.median(sigma) / sigma).to(like)  # (N,)
        pixels, shares = _taps(np.asarray(cues.uv, float), size, network_size)
        self.pixels = torch.as_tensor(pixels, device=like.device)  # (4N,)
        self.shares = torch.as_tensor(shares).to(like)  # (N, 4)
        self.near = torch.as_tensor(near, device=like.device)
        self.plain = _stand_in(torch.as_tensor(np.log(y)).to(like), self.near)  # (N,)

    def residuals(self, depth: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
        """(N,) map minus cues, as shares of the span."""
        # index_select on one axis: its gradient is summed in order, so that equal input gives equal bytes.
        map_ = depth[0, 0, : self.height, : self.width].reshape(-1)
        seen = (map_.index_select(0, self.pixels).reshape(-1, 4) * self.shares).sum(1)
        scale, shift = ab**2
        return scale * seen + shift * (self.low / self.span) - self.target

    def trust(self, residual: torch.Tensor) -> torch.Tensor:
        """(N,) 1 for a cue that resembles its neighbours in depth or in residual, 0 where it stands out in both.

        In depth alone a cue may stand out for being on a small object, in residual alone because the map is wrong; and
        where the map is wrong all cues of a region say so, and shall be heard.
        """
        with torch.no_grad():
            return torch.maximum(_stand_in(residual, self.near, self.weight), self.plain)

    def __call__(self, depth: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
        """Mean absolute plus mean squared residual, weighted by the cues' sigma and trust."""
        residual = self.residuals(depth, ab)
        trust, weight = self.trust(residual), self.weight
        absolute = (trust * weight * residual.abs()).sum() / weight.sum()
        return absolute + (trust * (weight * residual) ** 2).sum() / (weight**2).sum()


def preview(
    scheduler: Any, output: torch.Tensor, t: torch.Tensor, latent: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean latent x0 and noise that the U-Net's `output` at timestep t implies, shapes as `latent`.

    x_t = sqrt(alpha_t) x0 + sqrt(1 - alpha_t) noise, with v = sqrt(alpha_t) noise - sqrt(1 - alpha_t) x0 (Song et al.,
    arXiv 2010.02502, eq. 12; Salimans and Ho, arXiv 2202.00512, appendix D).
    """
    alpha = scheduler.alphas_cumprod[int(t)].to(latent)
    signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (latent - spread * output) / signal, output
    if kind == "sample":
        return output, (latent - signal * output) / spread
    return signal * latent - spread * output, signal * output + spread * latent


# -- cues -------------------------------------------------------------------------------------------------------------


def _on_image(cues: SparseCues, size: tuple[int, ...]) -> SparseCues:
    """The cues on an image of size (H, W); GeometryError if they are too few."""
    height, width = size
    inside: NDArray[np.bool_] = np.all((cues.uv >= 0) & (cues.uv < (width, height)), axis=1)
    seen = cues.select(inside)
    if len(seen) == 0:
        raise GeometryError(f"none of {len(cues)} cues falls on the {width}x{height} image: check their size and pose")
    if len(seen) < FEWEST_CUES:
        raise GeometryError(f"{len(seen)} of {len(cues)} cues fall on the image: {REMEDY}")
    return seen


def _check_span(cues: SparseCues) -> None:
    """GeometryError unless the cues span depths."""
    low, span = _range(np.asarray(cues.depth, float), _neighbours(cues.uv))
    if low + span < LEAST_RATIO * low:
        raise GeometryError(f"all {len(cues)} cues lie at about depth {low + span / 2:.4g}: {REMEDY}")


def _split(cues: SparseCues, share: float) -> tuple[SparseCues, SparseCues]:
    """The cues that guide, and the share held out; none are if they would be too few to say anything."""
    count = int(share * len(cues))
    if count < FEWEST_HELD_OUT:
        return cues, SparseCues.empty()
    aside = np.zeros(len(cues), bool)
    aside[np.random.default_rng(0).permutation(len(cues))[:count]] = True
    return cues.select(~aside), cues.select(aside)


def _range(y: Array, near: NDArray[np.intp]) -> tuple[float, float]:
    """2nd percentile of positive y (N,) and from there to the 98th, over cues that do not contradict neighbours."""
    low, high = np.percentile(y[_stand_in(torch.as_tensor(np.log(y)), torch.as_tensor(near)).numpy() > 0], (2, 98))
    return float(low), float(high - low)


def _neighbours(uv: Array) -> NDArray[np.intp]:
    """(N, 9) the nearest cues of each cue, itself among them; fewer columns where there are fewer cues."""
    near = cKDTree(uv).query(uv, min(NEIGHBOURS + 1, len(uv)))[1]
    return np.asarray(near).reshape(len(uv), -1)


def _stand_in(x: torch.Tensor, near: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
    """(N,) Tukey's biweight of how far x (N,) is from the third of its neighbours most like it; 1 if they are few."""
    if len(x) <= NEIGHBOURS:
        return torch.ones_like(x)
    out = (x[near] - x[:, None]).abs().sort(dim=1).values[:, ALIKE] * weight  # the first is the cue itself
    spread = (1.4826 * out.median()).clamp(min=LEAST_SPREAD)
    return (1 - (out / (TUKEY * spread)) ** 2).clamp(min=0.0) ** 2


def _taps(uv: Array, size: tuple[int, int], network_size: tuple[int, int]) -> tuple[NDArray[np.intp], Array]:
    """Flat indices (4N,) and shares (N, 4) that read a map of network_size at the centres of the pixels at uv."""
    below, share = [], []
    for axis in (0, 1):
        count = network_size[axis]
        x = (np.floor(uv[:, 1 - axis]) + 0.5) * count / size[axis] - 0.5
        x = np.clip(x, 0, count - 1)
        below.append(np.floor(x).astype(int))
        share.append(x - below[-1])
    (row, column), (down, right) = below, share
    rows = np.stack([row, np.minimum(row + 1, network_size[0] - 1)], axis=1)  # (N, 2)
    columns = np.stack([column, np.minimum(column + 1, network_size[1] - 1)], axis=1)
    shares = np.stack([1 - down, down], axis=1)[:, :, None] * np.stack([1 - right, right], axis=1)[:, None]
    return (rows[:, :, None] * network_size[1] + columns[:, None]).reshape(-1), shares.reshape(-1, 4)


# -- optimisation -----------------------------------------------------------------------------------------------------


def _upsampled_sum(grids: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """(1, C, h, w) from grids (1, C, h/s, w/s)."""
    size = (like.shape[2], like.shape[3])
    return torch.stack([resized(grid, size, antialias=False) for grid in grids]).sum(0)


def _rescale(latent: torch.Tensor, norm: torch.Tensor) -> None:
    """Gives the gradient of `latent` the norm `norm`; a zero gradient stays zero."""
    gradient = latent.grad
    if gradient is None or not bool(torch.isfinite(gradient).all()):
        raise ModelError("the gradient of the guidance is not finite in this precision: use float32 or bfloat16")
    length = gradient.norm()
    if length > 0:  # with no signal at all in the noise, a network may ignore its latent
        gradient.mul_(norm / length)


@contextmanager
def _checkpointed(model: Any, wanted: bool) -> Iterator[None]:
    """Gradient checkpointing in the U-Net and the decoder while it lasts."""
    networks = [model.unet, model.vae] if wanted else []
    for network in networks:
        network.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for network in networks:
            network.disable_gradient_checkpointing()


# -- from the guided map to depth -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Member:
    """A guided map with its fit; `error`: mean relative error at trusted cues, with (a, b) and with the fit."""

    relative: RelativeDepth
    fit: AffineFit
    error: tuple[float, float]


def _refitted(
    relative: RelativeDepth, scale: float, shift: float, trusted: NDArray[np.bool_], cues: SparseCues
) -> _Member:
    """Robust scale and shift over the trusted cues; the guided ones where these are no better."""
    kept = cues.select(trusted)
    fit = fit_affine(relative, kept)
    guided = replace(fit, scale=scale, shift=shift, covariance=np.zeros((2, 2)))
    before, after = _errors(guided, relative, kept), _errors(fit, relative, kept)
    if fit.determined == "scale only" or after.mean() > before.mean():
        fit, after = guided, before
    # A residual cannot show that the depth is better known than the cue it was measured against.
    stated = float(np.median(sigma_shares(kept)))
    spread = float(np.hypot(mad(after), stated))
    fit = replace(fit, inliers=trusted, residual_sigma=spread)
    return _Member(relative, fit, (float(before.mean()), float(after.mean())))


def _errors(fit: AffineFit, relative: RelativeDepth, cues: SparseCues) -> Array:
    """(N,) |z - cue| / cue; 1 where the map has no depth."""
    z = sample(fit.depth(relative.values), cues.uv)
    return np.nan_to_num(np.abs(z - cues.depth) / cues.depth, nan=1.0)


def _merged(members: list[_Member], loss: Array, cues: SparseCues) -> GuidedDepth:
    """Per-pixel median of the members' depth (disparity), with their spread as uncertainty."""
    fits = [member.fit for member in members]
    scale, shift, spread = (
        float(np.median([getattr(f, n) for f in fits])) for n in ("scale", "shift", "residual_sigma")
    )
    inliers = np.mean([f.inliers for f in fits], axis=0) > 0.5
    fit = replace(fits[0], scale=scale, shift=shift, residual_sigma=spread, inliers=inliers)
    relative = members[0].relative
    if len(members) > 1:
        relative = _median_map(members, fit)
    before, after = np.mean([member.error for member in members], axis=0)
    return GuidedDepth(
        fit.apply(relative), relative, fit, np.asarray(loss), int((~inliers).sum()), (float(before), float(after))
    )


def _median_map(members: list[_Member], fit: AffineFit) -> RelativeDepth:
    """Median of the members on the scale of `fit`."""
    maps: FloatImage = np.stack(
        [(m.fit.scale * m.relative.values + (m.fit.shift - fit.shift)) / fit.scale for m in members]
    ).astype(np.float32)  # (E, H, W)
    middle = np.median(maps, axis=0)
    spread = 1.4826 * np.median(np.abs(maps - middle), axis=0)
    return RelativeDepth(middle, fit.domain, spread.astype(np.float32))


def _judged(guided: GuidedDepth, aside: SparseCues) -> GuidedDepth:
    """With the error at cues that did not guide, and sigma as large as that error."""
    errors = _errors(guided.fit, guided.relative, aside)
    fit = replace(guided.fit, residual_sigma=max(guided.fit.residual_sigma, mad(errors)))
    return replace(guided, fit=fit, depth=fit.apply(guided.relative), held_out_error=float(np.median(errors)))
