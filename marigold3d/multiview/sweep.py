"""Plane sweep around an aligned prior: other views decide; the prior says where to look and fills in.

Hypotheses are factors on the prior's depth, not fronto-parallel planes: matching windows then follow the prior's
slants, and smoothness between neighbouring pixels means "keep the prior's shape". Two levels: a wide band at half
size, so that a poor prior is escaped, then a narrow band at full size. Cost: 1 - NCC of 7x7 windows, mean of the
better half of the views (occlusion); aggregation: semi-global matching (Hirschmueller, PAMI 2008), four directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..camera import ray_grid
from ..depth.device import choose_device
from ..rigid import inverse
from ..types import Array, FloatImage, Intrinsics

WINDOW = 7  # px, side of the NCC window
COARSE_BAND, COARSE_STEP = 0.50, 0.025  # half width and step of the hypotheses, log depth
FINE_BAND, FINE_STEP = 0.06, 0.01
NCC_FLOOR = (2.0 / 255) ** 2  # variance of sensor noise: windows with less texture correlate with nothing
SMALL_STEP, LARGE_STEP = 0.04, 0.30  # SGM penalties for a change of one hypothesis, and of more
PRIOR_PULL = 0.02  # cost of a hypothesis one prior sigma away: decides only where matching says nothing
NO_MATCH = -1.0  # score of a view that does not see a pixel


@dataclass(frozen=True, eq=False)
class SweepView:
    """gray (H, W) float32 in 0..1 at the sweep's size, and its pose (4, 4)."""

    gray: FloatImage
    T_world_camera: Array


@dataclass(frozen=True, eq=False)
class SweepResult:
    """depth (H, W); sigma (H, W), relative, from the cost's curvature; score (H, W): the NCC reached, -1..1."""

    depth: FloatImage
    sigma: FloatImage
    score: FloatImage


def sweep(
    view: SweepView,
    others: Sequence[SweepView],
    camera: Intrinsics,
    prior: FloatImage,
    prior_sigma: float,
    device: str = "cpu",
) -> SweepResult:
    """Depth of `view` from `others`, around `prior` (H, W), positive everywhere, of relative sigma `prior_sigma`."""
    where = choose_device(device)
    with torch.inference_mode():
        half = camera.scaled_to(camera.width // 2, camera.height // 2)
        coarse = _Level(view, others, half, where)
        z = coarse.resized(torch.as_tensor(prior, device=where)[None, None])[0, 0]
        offsets = torch.arange(-COARSE_BAND, COARSE_BAND + 1e-6, COARSE_STEP, device=where)
        bend, _, _ = coarse.best(z, offsets, prior_sigma)
        fine = _Level(view, others, camera, where)
        bend = F.interpolate(_median3(bend[None, None]), size=fine.shape, mode="bilinear", align_corners=False)[0, 0]
        start = torch.as_tensor(prior, device=where) * torch.exp(bend)
        offsets = torch.arange(-FINE_BAND, FINE_BAND + 1e-6, FINE_STEP, device=where)
        more, score, sigma = fine.best(start, offsets, FINE_BAND)
        return SweepResult(*((x.cpu().numpy()) for x in (start * torch.exp(more), sigma, score)))


class _Level:
    """The reference view and its neighbours at one image size."""

    def __init__(self, view: SweepView, others: Sequence[SweepView], camera: Intrinsics, device: torch.device) -> None:
        self.shape = (camera.height, camera.width)
        self._camera, self._device = camera, device
        self._gray = self.resized(self._tensor(view.gray))
        self._mean = _box(self._gray)
        self._variance = (_box(self._gray**2) - self._mean**2).clamp_min(0)
        self._images = [self.resized(self._tensor(o.gray)) for o in others]
        rays = torch.as_tensor(ray_grid(camera).copy(), device=device)  # (H, W, 3)
        relative = [(inverse(o.T_world_camera) @ view.T_world_camera).astype(np.float32) for o in others]
        self._turned = [rays @ torch.as_tensor(T[:3, :3].T.copy(), device=device) for T in relative]
        self._moved = [torch.as_tensor(T[:3, 3].copy(), device=device) for T in relative]

    def resized(self, image: torch.Tensor) -> torch.Tensor:
        """(1, 1, H, W) at this level's size."""
        if image.shape[-2:] == self.shape:
            return image
        return F.interpolate(image, size=self.shape, mode="area")

    def best(
        self, z: torch.Tensor, offsets: torch.Tensor, prior_sigma: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log offset (H, W) with sub-step precision, NCC there, relative sigma, for depths z * exp(offsets (K,))."""
        hypotheses = z * torch.exp(offsets)[:, None, None]  # (K, H, W)
        scores = torch.stack([self._score(i, hypotheses) for i in range(len(self._images))])  # (V, K, H, W)
        keep = max(1, (len(self._images) + 1) // 2)
        score = scores.topk(keep, dim=0).values.mean(0)  # (K, H, W)
        cost = 1 - score + PRIOR_PULL * (offsets / prior_sigma)[:, None, None] ** 2
        smooth = semi_global(cost, self._gray[0, 0])
        return _refined(smooth, score, offsets)

    def _score(self, i: int, hypotheses: torch.Tensor) -> torch.Tensor:
        """NCC (K, H, W) of the reference windows with neighbour i under every hypothesis."""
        K, (H, W) = len(hypotheses), self.shape
        points = self._turned[i] * hypotheses[..., None] + self._moved[i]  # (K, H, W, 3)
        grid, inside = self._sampling_grid(points)
        warped = F.grid_sample(
            self._images[i], grid.reshape(1, K * H, W, 2), align_corners=False, padding_mode="border"
        )
        warped = warped.reshape(K, 1, H, W)
        mean = _box(warped)
        variance = (_box(warped**2) - mean**2).clamp_min(0)
        covariance = _box(warped * self._gray) - mean * self._mean
        ncc = covariance / torch.sqrt((variance + NCC_FLOOR) * (self._variance + NCC_FLOOR))
        return torch.where(inside, ncc[:, 0], NO_MATCH)

    def _sampling_grid(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """grid_sample's coordinates (K, H, W, 2) of camera-frame points, and whether they are in view."""
        c = self._camera
        depth = points[..., 2]
        xy = points[..., :2] / depth.clamp_min(1e-6)[..., None]
        if c.distortion is not None:
            xy = _distorted(xy, c.distortion)
        u, v = (c.fx * xy[..., 0] + c.cx) / c.width, (c.fy * xy[..., 1] + c.cy) / c.height
        inside = (depth > 1e-6) & (u > 0) & (u < 1) & (v > 0) & (v < 1)
        return torch.stack([2 * u - 1, 2 * v - 1], -1), inside  # pixel centres at +0.5: align_corners=False is exact

    def _tensor(self, gray: NDArray[np.float32]) -> torch.Tensor:
        return torch.as_tensor(gray, device=self._device)[None, None]


def semi_global(cost: torch.Tensor, gray: torch.Tensor) -> torch.Tensor:
    """Costs (K, H, W) aggregated along four directions; steps cost less across image edges (gray (H, W) in 0..1)."""
    total = torch.zeros_like(cost)
    for image, volume, out in ((gray, cost, total), (gray.T, cost.transpose(1, 2), total.transpose(1, 2))):
        for reverse in (False, True):
            _aggregate(volume, image, out, reverse)
    return total / 4


def _aggregate(cost: torch.Tensor, gray: torch.Tensor, out: torch.Tensor, reverse: bool) -> None:
    """Add to `out` the path costs along axis 1 of `cost` (K, H, W)."""
    rows = range(cost.shape[1] - 1, -1, -1) if reverse else range(cost.shape[1])
    path: torch.Tensor | None = None
    previous = 0
    for row in rows:
        here = cost[:, row]
        if path is not None:
            lowest = path.amin(0, keepdim=True)  # (1, W)
            step = (gray[row] - gray[previous]).abs()
            far = LARGE_STEP / (1 + 20 * step)
            best = torch.minimum(path, lowest + far.clamp_min(SMALL_STEP))
            best[1:] = torch.minimum(best[1:], path[:-1] + SMALL_STEP)
            best[:-1] = torch.minimum(best[:-1], path[1:] + SMALL_STEP)
            here = here + best - lowest
        out[:, row] += here
        path, previous = here, row


def _refined(
    smooth: torch.Tensor, score: torch.Tensor, offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Best offset by a parabola, the raw score there, and sigma = step * sqrt(noise / curvature)."""
    step = offsets[1] - offsets[0]
    k = smooth.argmin(0, keepdim=True).clamp(1, len(offsets) - 2)  # (1, H, W)
    before, here, after = (smooth.gather(0, k + d)[0] for d in (-1, 0, 1))
    curvature = (before + after - 2 * here).clamp_min(1e-6)
    shift = (0.5 * (before - after) / curvature).clamp(-1, 1)
    reached = score.gather(0, k)[0]
    raw = (2 * reached - score.gather(0, k - 1)[0] - score.gather(0, k + 1)[0]).clamp_min(1e-4)
    noise = 0.25 * (1 - reached).clamp(0.02, 1)
    sigma = (step * torch.sqrt(noise / raw)).clamp(0.25 * float(step), 4 * float(offsets[-1]))
    return offsets[k[0]] + shift * step, reached, sigma


def _box(image: torch.Tensor) -> torch.Tensor:
    """Mean over 7x7 windows of (..., H, W), borders reflected. Pairs of pairs: three times faster than pooling."""
    half = WINDOW // 2
    padded = F.pad(image, (half, half, half, half), mode="reflect")
    return _sum7(_sum7(padded, -1), -2).mul_(1 / WINDOW**2)


def _sum7(x: torch.Tensor, axis: int) -> torch.Tensor:
    n = x.shape[axis]
    two = x.narrow(axis, 0, n - 1) + x.narrow(axis, 1, n - 1)
    four = two.narrow(axis, 0, n - 3) + two.narrow(axis, 2, n - 3)
    return (four.narrow(axis, 0, n - 6) + two.narrow(axis, 4, n - 6)).add_(x.narrow(axis, 6, n - 6))


def _median3(image: torch.Tensor) -> torch.Tensor:
    patches = F.unfold(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3)  # (1, 9, H*W)
    return patches.median(1).values.reshape(image.shape)


def _distorted(xy: torch.Tensor, coefficients: tuple[float, float, float, float]) -> torch.Tensor:
    k1, k2, p1, p2 = coefficients
    x, y = xy[..., 0], xy[..., 1]
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + k2 * r2)
    return torch.stack(
        [x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], -1
    )


def gray(rgb: NDArray[Any], width: int, height: int) -> FloatImage:
    """rgb (H, W, 3) uint8 as (height, width) float32 luma in 0..1, area-filtered."""
    luma = torch.as_tensor(rgb @ np.array([0.299, 0.587, 0.114], np.float32) / 255, dtype=torch.float32)
    return F.interpolate(luma[None, None], size=(height, width), mode="area")[0, 0].numpy()  # type: ignore[no-any-return]
