"""Where textured points of a keyframe are found in its neighbours: sub-pixel, measured from the pictures.

Depth and poses only say where to look and how a window is warped; what is measured is the displacement left over. A
window of the anchor picture is searched for in the other picture, brought into the anchor's perspective, by normalised
correlation (blind to gain and offset), then shifted by Lucas and Kanade's steps (IJCAI 1981; gain as in Baker and
Matthews, IJCV 2004). It must also find its way back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..camera import normalised, project
from ..depth.device import in_parallel_or_waiting
from ..progress import Progress, Steps
from ..rigid import inverse
from ..types import Array, FloatImage, Intrinsics
from .points import HALF, Picture, Points

REACH = 6  # px of the anchor that a window may be displaced by, along both axes
LEAST_NCC = 0.8
RETURNS_PX = 1.0  # how far from its start a window may end on the way back
SHIFT_STEPS = 5


@dataclass(frozen=True, eq=False)
class Matches:
    """Points, and where others see them: point (O,) index, frame (O,) that sees it at uv (O, 2) px. tried: searches."""

    points: Points
    point: NDArray[np.int64]
    frame: NDArray[np.int64]
    uv: Array
    tried: int

    def __len__(self) -> int:
        return len(self.point)

    def of_points(self, chosen: NDArray[np.bool_]) -> Matches:
        """The observations of the points chosen (P,)."""
        keep = chosen[self.point]
        return Matches(self.points, self.point[keep], self.frame[keep], self.uv[keep], self.tried)


def find_matches(
    pictures: Mapping[int, Picture],
    points: Points,
    pairs: Sequence[tuple[int, Sequence[int]]],
    T_world_camera: Array,
    camera: Intrinsics,
    device: torch.device,
) -> Steps[Matches]:
    """Seek the points of keyframes in others, near where they should be; pairs: (keyframe, others)."""

    def one(k: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64], Array, int]]:
        anchor, others = pairs[k]
        ids = np.flatnonzero(points.frame == anchor)
        if not len(ids):
            return []
        window = _Windows(pictures[anchor], points.uv[ids], points.inverse_depth[ids], camera)
        found = []
        for other in others:
            T_other_anchor = inverse(T_world_camera[other]) @ T_world_camera[anchor]
            uv, good, tried = window.find(pictures[other], T_other_anchor)
            found.append((ids[good], np.full(int(good.sum()), other), uv[good], tried))
        return found

    found: list[tuple[NDArray[np.int64], NDArray[np.int64], Array, int]] = []
    done = 0
    for some in in_parallel_or_waiting(one, len(pairs), device):
        if some is not None:
            found += some
            done += 1
        yield Progress("match", done, len(pairs))
    point = np.concatenate([np.zeros(0, np.int64), *(f[0] for f in found)])
    frame = np.concatenate([np.zeros(0, np.int64), *(f[1] for f in found)])
    uv = np.concatenate([np.zeros((0, 2)), *(f[2] for f in found)])
    return Matches(points, point, frame, uv, sum(f[3] for f in found))


class _Windows:
    """The windows of an anchor's points, ready to be looked for in other pictures."""

    def __init__(self, picture: Picture, uv: Array, inverse_depth: Array, camera: Intrinsics) -> None:
        self._camera, self._rho = camera, inverse_depth
        ray, *steps = (normalised(uv + step, camera) for step in ((0, 0), (1, 0), (0, 1)))
        self._ray = np.concatenate([ray, np.ones((len(uv), 1))], 1)  # (N, 3)
        self._steps = [np.pad(step - ray, ((0, 0), (0, 1))) for step in steps]  # a lens is affine over a window
        self._around = _cut(np.pad(picture.gray, REACH, mode="reflect"), uv + REACH, HALF + REACH)
        self._template = self._around[:, REACH:-REACH, REACH:-REACH]  # (N, 9, 9)
        gradient = np.stack([_cut(g, uv, HALF).reshape(len(uv), -1) for g in picture.gradient], 2)
        self._gradient = gradient - gradient.mean(1, keepdims=True)  # (N, 81, 2)
        self._tensor = np.einsum("npi,npj->nij", self._gradient, self._gradient) + 1e-3 * np.eye(2)

    def find(self, other: Picture, T_other_anchor: Array) -> tuple[Array, NDArray[np.bool_], int]:
        """Pixels uv (N, 2) of the points in the other picture, which of them were found (N,), how many are in view."""
        n = len(self._rho)
        carry = self._carrier(T_other_anchor)
        start = carry(np.zeros((n, 2)), 0)[:, 0, 0]
        with np.errstate(invalid="ignore"):
            in_view = ((start > HALF) & (start < np.array([self._camera.width, self._camera.height]) - HALF)).all(1)
        region = _sampled(other.gray, carry(np.zeros((n, 2)), HALF + REACH))
        there, score = _peak(region, self._template)
        met = _cut_each(region, there + REACH, HALF)
        back, _ = _peak(self._around, met)
        good = in_view & (score > LEAST_NCC) & (np.abs(there) < REACH).all(1) & (np.abs(back) <= RETURNS_PX).all(1)
        shift, score = self._slid(other, there.astype(float), carry)
        good &= (np.abs(shift - there) < 1.0).all(1) & (score > LEAST_NCC)
        return carry(shift, 0)[:, 0, 0], good, int(in_view.sum())

    def _slid(self, other: Picture, shift: Array, carry: Callable[[Array, int], Array]) -> tuple[Array, Array]:
        """Displacements (N, 2) to a small part of a pixel from whole ones, and the correlation there."""
        n = len(shift)
        template = _centred(self._template).reshape(n, -1)
        score = np.zeros(n)
        for _ in range(SHIFT_STEPS):
            seen = _centred(_sampled(other.gray, carry(shift, HALF))).reshape(n, -1)
            power, common = (seen**2).sum(1) + 1e-6, (seen * template).sum(1)
            score = common / np.sqrt(power * ((template**2).sum(1) + 1e-6))
            error = template - (common / power)[:, None] * seen
            step = np.linalg.solve(self._tensor, np.einsum("npi,np->ni", self._gradient, error)[..., None])[..., 0]
            shift = shift + np.clip(step, -0.5, 0.5)
        return shift, score

    def _carrier(self, T_other_anchor: Array) -> Callable[[Array, int], Array]:
        """carry(shift (N, 2), half): pixels (N, side, side, 2) of the other picture that windows of the anchor's
        pixels, shifted and `half` px wide to either side, are seen at; each window at the depth of its point."""
        R, t = T_other_anchor[:3, :3], T_other_anchor[:3, 3]
        centre = self._ray @ R.T + self._rho[:, None] * t  # (N, 3)
        right, down = (step @ R.T for step in self._steps)

        def carry(shift: Array, half: int) -> Array:
            side = np.arange(-half, half + 1, dtype=np.float32)[:, None]
            begin = (centre + shift[:, :1] * right + shift[:, 1:] * down).astype(np.float32)[:, None, None]
            across, along = (step.astype(np.float32)[:, None] * side for step in (right, down))  # (N, side, 3)
            return project(begin + along[:, :, None] + across[:, None], self._camera)

        return carry


def _cut(image: FloatImage, uv: Array, half: int) -> FloatImage:
    """(N, side, side) windows of an image (H, W) around pixels uv (N, 2), `half` px wide to either side."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (2 * half + 1, 2 * half + 1))
    column, row = uv.astype(np.intp).T - half
    return windows[row, column]


def _cut_each(images: FloatImage, corner: NDArray[np.int64], half: int) -> FloatImage:
    """(N, side, side) windows, one of each image (N, h, w), from its upper left `corner` (N, 2), column and row."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (2 * half + 1, 2 * half + 1), (1, 2))
    return windows[np.arange(len(images)), corner[:, 1], corner[:, 0]]


def _sampled(image: FloatImage, uv: Array) -> FloatImage:
    """Bilinear values (N, h, w) at pixels uv (N, h, w, 2); the border's beyond it, and where uv is NaN."""
    n, h, w, _ = uv.shape
    scale = np.array([2 / image.shape[1], 2 / image.shape[0]], np.float32)
    grid = torch.as_tensor(uv.astype(np.float32, copy=False) * scale - 1).nan_to_num(-1).reshape(1, n * h, w, 2)
    found = F.grid_sample(torch.as_tensor(image)[None, None], grid, align_corners=False, padding_mode="border")
    return found.reshape(n, h, w).numpy()  # type: ignore[no-any-return]


def _centred(windows: FloatImage) -> FloatImage:
    return windows - windows.mean((1, 2), keepdims=True)


def _peak(regions: FloatImage, templates: FloatImage) -> tuple[NDArray[np.int64], Array]:
    """Displacement (N, 2) px, column and row, at which templates correlate best with regions around them; how well."""
    n, side = len(regions), templates.shape[1]
    template = _centred(templates)
    template = template / np.sqrt((template**2).sum((1, 2), keepdims=True) + 1e-6)
    x = torch.as_tensor(_centred(regions))  # (N, h, w)
    common = F.conv2d(x[None], torch.as_tensor(template)[:, None], groups=n)[0]
    power = _window_sums(x * x, side) - _window_sums(x, side) ** 2 / side**2
    ncc = common / torch.sqrt(power.clamp_min(1.0))
    width = ncc.shape[2]
    best = ncc.reshape(n, -1).argmax(1)
    at = torch.stack([best % width, best // width], 1) - width // 2
    return at.numpy(), ncc.reshape(n, -1).gather(1, best[:, None])[:, 0].numpy()


def _window_sums(x: torch.Tensor, side: int) -> torch.Tensor:
    """Sums over side x side windows of x (N, h, w) that lie inside."""
    for axis in (1, 2):
        total = F.pad(x.cumsum(axis), (1, 0) if axis == 2 else (0, 0, 1, 0))
        n = total.shape[axis] - side
        x = total.narrow(axis, side, n) - total.narrow(axis, 0, n)
    return x
