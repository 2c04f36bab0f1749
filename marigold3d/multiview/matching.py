"""How well a view's pixels match other views under hypotheses of their depth: NCC of windows and their mean colours.

Normalised cross-correlation does not see what a window's brightness is, only how it varies: where nothing varies, a red
cupboard matches a white wall. So a difference of the windows' mean colours takes from the score. Exposure may change
between views: each is first brought to the brightness of the reference view, by the median over what both see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..camera import ray_grid
from ..rigid import inverse
from ..types import Array, Intrinsics

WINDOW = 7  # px, side of the windows compared
NCC_FLOOR = (2.0 / 255) ** 2  # variance of sensor noise: windows with less texture correlate with nothing
COLOUR_SHARE = 0.6  # of the score, taken by mean colours that differ by ...
COLOUR_DIFFERENCE = 0.1  # ... so much of the full range
UNSEEN = 0.0  # score of a view that does not see a point: it says nothing
TOGETHER_PX = 2**19  # pixels of all hypotheses compared at once, which bounds the memory
DARK, BRIGHT = 0.03, 0.95  # windows that are nearly black or burnt out say nothing of the exposure
MAX_GAIN = 2.0
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class SweepView:
    """rgb (H, W, 3) uint8 at the sweep's size, and its pose (4, 4)."""

    rgb: NDArray[np.uint8]
    T_world_camera: Array


class Matcher:
    """A reference view and others at the size of `camera`, in colour or in luma alone."""

    def __init__(
        self, view: SweepView, others: Sequence[SweepView], camera: Intrinsics, device: torch.device, *, colour: bool
    ) -> None:
        self._camera, self._device, self._colour = camera, device, colour
        self._image = self._pixels(view)  # (1, C, H, W)
        self._others = [self._pixels(o) for o in others]
        self._mean = box(self._image)
        self._variance = (box(self._image**2) - self._mean**2).clamp_min(0).sum(1)  # (1, H, W)
        self._floor = NCC_FLOOR * self._image.shape[1]
        rays = torch.as_tensor(ray_grid(camera).copy(), device=device)  # (H, W, 3)
        relative = [(inverse(o.T_world_camera) @ view.T_world_camera).astype(np.float32) for o in others]
        self._turned = [(rays @ torch.as_tensor(T[:3, :3].T.copy(), device=device)).permute(2, 0, 1) for T in relative]
        self._moved = [torch.as_tensor(T[:3, 3].copy(), device=device) for T in relative]

    @property
    def shape(self) -> tuple[int, int]:
        return self._camera.height, self._camera.width

    @property
    def gray(self) -> torch.Tensor:
        """(H, W) in 0..1."""
        return self._image[0].mean(0)

    @property
    def texture(self) -> torch.Tensor:
        """(H, W) from 0, plain, to 1: how much a window varies beside the sensor's noise."""
        return (self._variance / (self._variance + 4 * self._floor))[0]

    def equalise(self, z: torch.Tensor) -> None:
        """Scale the other views to the reference view's exposure, as seen at depth z (H, W)."""
        mean = self._mean[0]
        for i, other in enumerate(self._others):
            warped, inside = self._warped(i, z[None])
            seen = box(warped)[0]  # (C, H, W)
            lit = inside[0] & (torch.minimum(seen, mean).amin(0) > DARK) & (torch.maximum(seen, mean).amax(0) < BRIGHT)
            if int(lit.sum()) < 0.02 * lit.numel():
                continue
            gain = (mean / seen.clamp_min(1e-3))[:, lit].median(1).values.clamp(1 / MAX_GAIN, MAX_GAIN)
            self._others[i] = other * gain[:, None, None]

    def scores(self, hypotheses: torch.Tensor) -> torch.Tensor:
        """(K, H, W) score of depths (K, H, W), at most 1: the mean over the better half of the views.

        The worse half may look at something that stands before the surface.
        """
        keep = (len(self._others) + 1) // 2
        parts = []
        for chunk in hypotheses.split(max(1, TOGETHER_PX // hypotheses[0].numel())):
            each = torch.stack([self._score(i, chunk) for i in range(len(self._others))])  # (V, k, H, W)
            parts.append(each.topk(keep, dim=0, sorted=False).values.mean(0))
        return torch.cat(parts)

    def _score(self, i: int, hypotheses: torch.Tensor) -> torch.Tensor:
        warped, inside = self._warped(i, hypotheses)
        mean = box(warped)
        variance = (box(warped**2) - mean**2).clamp_min_(0).sum(1)
        covariance = (box(warped * self._image) - mean * self._mean).sum(1)
        ncc = covariance * torch.rsqrt((variance + self._floor) * (self._variance + self._floor))
        difference = (mean - self._mean).abs_().mean(1).mul_(1 / COLOUR_DIFFERENCE).clamp_max_(1)
        return torch.where(inside, ncc - COLOUR_SHARE * difference, UNSEEN)

    def _warped(self, i: int, hypotheses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """View i (K, C, H, W) as the reference camera would see it at depths (K, H, W), and what of it is in view."""
        c, (K, H, W) = self._camera, hypotheses.shape
        x, y, z = (self._turned[i][axis] * hypotheses + self._moved[i][axis] for axis in range(3))
        reciprocal = 1 / z.clamp_min(1e-6)
        x, y = x * reciprocal, y * reciprocal
        if c.distortion is not None:
            x, y = distorted(x, y, c.distortion)
        u, v = x * (2 * c.fx / W) + (2 * c.cx / W - 1), y * (2 * c.fy / H) + (2 * c.cy / H - 1)
        inside = (z > 1e-6) & (u.abs() < 1) & (v.abs() < 1)
        grid = torch.stack([u, v], -1).reshape(1, K * H, W, 2)  # pixel centres at +0.5: align_corners=False is exact
        warped = F.grid_sample(self._others[i], grid, align_corners=False, padding_mode="border")
        return warped.reshape(-1, K, H, W).transpose(0, 1), inside

    def _pixels(self, view: SweepView) -> torch.Tensor:
        rgb = torch.tensor(view.rgb, dtype=torch.float32, device=self._device).permute(2, 0, 1)[None] / 255
        if not self._colour:
            rgb = (rgb * torch.tensor(LUMA, device=self._device)[:, None, None]).sum(1, keepdim=True)
        return rgb if rgb.shape[-2:] == self.shape else F.interpolate(rgb, size=self.shape, mode="area")


def box(image: torch.Tensor) -> torch.Tensor:
    """Mean over WINDOW x WINDOW windows of (..., H, W), borders reflected."""
    half = WINDOW // 2
    padded = F.pad(image, (half, half, half, half), mode="reflect")
    return _sum7(_sum7(padded, -1), -2).mul_(1 / WINDOW**2)


def _sum7(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Sums of seven neighbours. Pairs of pairs: three times faster than pooling."""
    n = x.shape[axis]
    two = x.narrow(axis, 0, n - 1) + x.narrow(axis, 1, n - 1)
    four = two.narrow(axis, 0, n - 3) + two.narrow(axis, 2, n - 3)
    return (four.narrow(axis, 0, n - 6) + two.narrow(axis, 4, n - 6)).add_(x.narrow(axis, 6, n - 6))


def distorted(
    x: torch.Tensor, y: torch.Tensor, coefficients: tuple[float, float, float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """`camera.distort` in torch: the Brown-Conrady model with k1, k2, p1, p2."""
    k1, k2, p1, p2 = coefficients
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + k2 * r2)
    return x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
