"""Semi-global matching: costs of a pixel's hypotheses, smoothed along four directions (Hirschmueller, PAMI 2008)."""

from __future__ import annotations

import torch

SMALL_STEP, LARGE_STEP = 0.04, 0.8  # penalties for a change of one hypothesis between neighbours, and of more
EDGE = 20.0  # a grey step of 1 / EDGE halves the larger penalty: surfaces end where the image changes
BEST_SIGMA = 0.25  # hypotheses' steps: no match is better than a quarter of one


def semi_global(cost: torch.Tensor, gray: torch.Tensor) -> torch.Tensor:
    """Costs (K, H, W) of hypotheses that are alike where K is, aggregated; gray (H, W) in 0..1."""
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
            far = LARGE_STEP / (1 + EDGE * (gray[row] - gray[previous]).abs())
            best = torch.minimum(path, lowest + far.clamp_min(SMALL_STEP))
            best[1:] = torch.minimum(best[1:], path[:-1] + SMALL_STEP)
            best[:-1] = torch.minimum(best[:-1], path[1:] + SMALL_STEP)
            here = here + best - lowest
        out[:, row] += here
        path, previous = here, row


def sub_step(
    smooth: torch.Tensor, score: torch.Tensor, offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Best of equally spaced offsets (K,) by a parabola through smoothed costs (K, H, W); the score there; its sigma.

    sigma = step * sqrt(noise / curvature) of the scores themselves: smoothing narrows the minimum of what is flat too.
    """
    step = offsets[1] - offsets[0]
    k = smooth.argmin(0, keepdim=True).clamp(1, len(offsets) - 2)  # (1, H, W)
    before, here, after = (smooth.gather(0, k + d)[0] for d in (-1, 0, 1))
    shift = (0.5 * (before - after) / (before + after - 2 * here).clamp_min(1e-6)).clamp(-1, 1)
    reached = score.gather(0, k)[0]
    curvature = (2 * reached - score.gather(0, k - 1)[0] - score.gather(0, k + 1)[0]).clamp_min(1e-4)
    noise = 0.25 * (1 - reached).clamp(0.02, 1)
    sigma = (step * torch.sqrt(noise / curvature)).clamp(BEST_SIGMA * float(step), 4 * float(offsets[-1]))
    return offsets[k[0]] + shift * step, reached, sigma
