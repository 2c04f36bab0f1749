"""Straight-line regression y = slope * x + intercept: weighted, robust, with a covariance that holds what it says.

The robust fit follows MM-estimation (Yohai 1987): a start that withstands nearly half of the points being wrong, a
spread that outliers do not inflate, then reweighted least squares with that spread held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..types import Array
from .candidates import steady_line
from .robust import TUKEY, Loss, core_spread, slope_of_psi, weight

Free = Literal["both", "slope", "intercept"]
"""What is estimated. "slope" holds the intercept at 0, "intercept" holds the slope at 1."""

FEW = 5  # fewer points cannot tell which of them is wrong: they are fitted plainly
LEAST_SPREAD = 0.01  # of a point's own sigma: residuals this small are rounding, and never tell good points from bad
LEAST_LEVEL = 0.2  # of the median y: far below, errors no longer shrink with y
ROUNDING = 1e-12
ROUNDS = 30  # of reweighting, at most
CLOSE = 1e-6  # of a sigma: where the line moves by less, the rounds end
SETTLING = 6  # rounds in which the spread follows the fit
FEW_TO_TRUST = 50  # points at which a point's own error counts as much as the mean of all

Theta = tuple[float, float]
Residual = Callable[[Theta], Array]


@dataclass(frozen=True, eq=False)
class Line:
    """covariance (2, 2) of (slope, intercept), zero for what was held; agrees (N,) bool: the points not rejected."""

    slope: float
    intercept: float
    covariance: Array
    agrees: NDArray[np.bool_]


def fit_line(
    x: Array, y: Array, share: Array, loss: Loss | None, free: Free = "both", *, logarithmic: bool = False
) -> Line:
    """Line through points (x, y) (N,), N >= 1; plain weighted least squares without a `loss`.

    share (N,): standard deviation of y as a share of y > 0, or of y itself where y is `logarithmic`.
    """
    start = _start(x, y, free, logarithmic) if loss is not None and len(x) >= FEW else None
    if start is None or loss is None:
        sigma = share if logarithmic else share * y
        theta = _weighted(x, y, sigma**-2.0, free)
        agrees, psi = np.ones(len(x), bool), (theta[0] * x + theta[1] - y) / sigma
    else:
        parameters = 2 if free == "both" else 1
        residual, level = _residual(x, y, logarithmic)
        share = _with_scatter(share, core_spread(residual(start), parameters))
        sigma = share if logarithmic else share * level(start)
        theta, u = _reweighted(x, y, sigma, lambda t: residual(t) / share, start, loss, free)
        agrees = np.abs(u) < TUKEY
        bend = max(float(slope_of_psi(u, loss)[agrees].mean()), 0.1)
        psi = (theta[0] * x + theta[1] - y) / sigma * weight(u, loss) / bend
    return Line(*theta, _covariance(x, agrees / sigma**2, psi, free), agrees)


def _start(x: Array, y: Array, free: Free, logarithmic: bool) -> Theta | None:
    if free == "intercept":
        return 1.0, float(np.median(y - x))
    if free == "slope":
        ratio = y[x > 0] / x[x > 0]
        return (float(np.median(ratio)), 0.0) if len(ratio) else None
    return steady_line(x, y, logarithmic)


def _with_scatter(share: Array, spread: float) -> Array:
    """Sigmas (N,) joined by what the points scatter beyond them: the network's error, the same for all."""
    return np.sqrt(share**2 + max(spread**2 - float(np.median(share)) ** 2, 0.0))


def _residual(x: Array, y: Array, logarithmic: bool) -> tuple[Residual, Residual]:
    """Functions of a line: the factor, less 1, by which it is off at each point (N,), signed; its y there, floored.

    Twice as much weighs as half as much. It is the line's y, not the point's, that a relative sigma is a share of:
    else a wrong point would weigh the more the smaller its y is.
    """
    least = LEAST_LEVEL * float(np.median(y))
    log_y = y if logarithmic else np.log(np.maximum(y, least))

    def level(theta: Theta) -> Array:
        return np.maximum(theta[0] * x + theta[1], least)

    def residual(theta: Theta) -> Array:
        off = (theta[0] * x + theta[1] if logarithmic else np.log(level(theta))) - log_y
        return np.copysign(np.expm1(np.minimum(np.abs(off), 30.0)), off)

    return residual, level


def _reweighted(
    x: Array, y: Array, sigma: Array, residual: Residual, start: Theta, loss: Loss, free: Free
) -> tuple[Theta, Array]:
    """Line and standardised residuals (N,) by iteratively reweighted least squares.

    The spread follows the fit for some rounds, since that of the start's rough line is too large, then it is held.
    Only then does Huber's loss take over: the outliers it does not ignore would inflate the spread.
    """
    theta, spread, precision = start, 1.0, sigma**-2.0
    reach, close = float(np.abs(x).max()), CLOSE * float(sigma.min())
    for k in range(ROUNDS):
        r = residual(theta)
        if k < SETTLING:
            spread = max(core_spread(r, 2 if free == "both" else 1), LEAST_SPREAD)
        w = weight(r / spread, "tukey" if k < SETTLING else loss) * precision
        before, theta = theta, _weighted(x, y, w, free)
        if k >= SETTLING and abs(theta[0] - before[0]) * reach + abs(theta[1] - before[1]) < close:
            break
    return theta, r / spread


def _weighted(x: Array, y: Array, w: Array, free: Free) -> Theta:
    """Closed-form weighted least squares."""
    total = float(w.sum())
    if free == "intercept":
        return 1.0, float(w @ (y - x)) / total
    if free == "slope":
        wx = w * x
        return float(wx @ y) / max(float(wx @ x), 1e-300), 0.0
    mean_x, mean_y = float(w @ x) / total, float(w @ y) / total
    centred = x - mean_x
    wx = w * centred
    square = float(wx @ centred)
    if square <= ROUNDING * float((w * x) @ x):  # all at one x, but for float32
        return 0.0, mean_y
    slope = float(wx @ y) / square
    return slope, mean_y - slope * mean_x


def _covariance(x: Array, w: Array, psi: Array, free: Free) -> Array:
    """(2, 2) covariance of slope and intercept from the errors `psi` (N,), in sigmas, and the precisions `w` (N,).

    Each point moves the estimate by its influence times its error, and the squares add up (Huber 1981, 6.5). Its
    squared error is its own, blown up for what the fit absorbed of it (HC3, MacKinnon & White 1985), which is right
    also where the sigmas have wrong proportions; joined, where few points make that noisy, with the mean of all. Where
    no more than one point is left over, errors are no smaller than the sigmas say. At last Student's variance.
    """
    total, count, parameters = float(w.sum()), int(np.count_nonzero(w)), 2 if free == "both" else 1
    mean = float(w @ x) / total if free == "both" else 0.0
    centred = x - mean
    square = max(float((w * centred) @ centred), 1e-300)
    on_slope = w * centred / square if free != "intercept" else np.zeros(len(x))
    on_level = w / total if free != "slope" else np.zeros(len(x))
    leverage = np.minimum(on_slope * centred + on_level, 0.9)
    freedom = max(count - parameters, 1)
    common = float(psi @ psi) / freedom
    if count <= parameters + 1:
        common = max(common, 1.0)
    own = (psi / (1 - leverage)) ** 2
    squared = (common * FEW_TO_TRUST + own * count) / (FEW_TO_TRUST + count) * max(freedom, 3) / max(freedom - 2, 1)
    influence = np.stack([on_slope, on_level]) * np.sqrt(squared / np.where(w > 0, w, np.inf))  # (2, N)
    turn = np.array([[1.0, 0.0], [-mean, 1.0]])  # level at the mean x -> intercept
    covariance: Array = turn @ (influence @ influence.T) @ turn.T
    return covariance
