"""Scale and shift that carry a network's relative depth onto known depths, solved in the network's own domain.

y(z) = scale * v + shift, with y = z, 1/z or log z for affine-invariant depth, disparity or log depth. Fitting a
disparity network in depth instead is several times worse, so the domain is taken from the estimator's tag.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import GeometryError
from ..types import Array, DepthMap, Domain, FloatImage, RelativeDepth, SparseCues
from .domains import dy_dz, from_domain, to_domain
from .robust import mad, tukey
from .samples import sample

Determined = Literal["scale and shift", "scale only"]

UNSTATED_SIGMA = 0.02  # relative standard deviation of cues that come without one
MIN_SPAN = 0.05  # cues that span less of the map's 2-98 % range leave the shift open
LEAST_SPREAD = 0.01  # of a cue's own sigma: residuals this small are rounding, and never tell good cues from bad
FAR_FACTOR = 20.0  # depth beyond this multiple of the farthest cue is not trusted (sky, disparity near zero)


@dataclass(frozen=True, eq=False)
class AffineFit:
    """y = scale * v + shift in `domain`.

    covariance (2, 2) of (scale, shift); residual_sigma: robust standard deviation of the residuals as a share of the
    depth; inliers (N,) bool, the cues that agree; max_depth: farthest depth the fit is trusted for, scene units.
    """

    scale: float
    shift: float
    domain: Domain
    covariance: Array
    residual_sigma: float
    inliers: NDArray[np.bool_]
    determined: Determined
    max_depth: float = np.inf

    def depth(self, values: FloatImage) -> FloatImage:
        """z-depth (H, W) of relative values (H, W); NaN where it is not positive or beyond `max_depth`."""
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            z = from_domain(np.float32(self.scale) * values + np.float32(self.shift), self.domain)
            trusted: FloatImage = np.where(np.isfinite(z) & (z > 0) & (z <= self.max_depth), z, np.nan)
            return np.asarray(trusted, np.float32)

    def apply(self, relative: RelativeDepth) -> DepthMap:
        """The aligned depth map; sigma is from the fit's residuals and covariance and the network's own uncertainty."""
        z = self.depth(relative.values)
        valid = np.isfinite(z)
        return DepthMap(np.where(valid, z, 0), valid, np.where(valid, self._sigma(relative, z), 0).astype(np.float32))

    def _sigma(self, relative: RelativeDepth, z: FloatImage) -> FloatImage:
        slope = np.abs(dy_dz(z, self.domain))
        v = relative.values
        c = self.covariance
        variance_y = c[0, 0] * v * v + 2 * c[0, 1] * v + c[1, 1]
        if relative.uncertainty is not None:
            variance_y = variance_y + (self.scale * relative.uncertainty) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = np.maximum(variance_y, 0) / slope**2 + (self.residual_sigma * z) ** 2
            return np.asarray(np.sqrt(variance), np.float32)


def fit_affine(relative: RelativeDepth, cues: SparseCues, *, robust: bool = True) -> AffineFit:
    """Weighted least-squares scale and shift; with `robust`, from a RANSAC start refined by IRLS with Tukey's biweight.

    Falls back to scale only when the cues do not determine the shift (too little span, or a scale that is not
    positive). Raises GeometryError when no cue falls on a valid pixel.
    """
    v, y, sigma_y, used = _observations(relative, cues)
    if len(v) == 0:
        raise GeometryError("no cue falls on a valid pixel of the depth map: check the cues' image size and pose")
    start = _ransac(v, y, sigma_y, relative.domain) if robust else None
    fits = [_solve(v, y, sigma_y, start, relative.domain, robust)] if _span(relative, v) >= MIN_SPAN else []
    if not fits or not _usable(fits[0], v, relative.domain):
        offset = _offset(relative, v)
        fits = [_shifted(_solve(v + offset, y, sigma_y, None, relative.domain, robust, scale_only=True), offset)]
    (scale, shift), covariance, weights, determined = fits[0]
    z = np.asarray(cues.depth)[used]
    residual = (scale * v + shift - y) / np.abs(dy_dz(z, relative.domain)) / z
    inliers = np.zeros(len(cues), bool)
    inliers[used] = weights > 0
    return AffineFit(
        float(scale),
        float(shift),
        relative.domain,
        covariance,
        mad(residual),
        inliers,
        determined,
        FAR_FACTOR * float(z.max()),
    )


# -- the solver -------------------------------------------------------------------------------------------------------

_Solution = tuple[tuple[float, float], Array, Array, Determined]


def _observations(relative: RelativeDepth, cues: SparseCues) -> tuple[Array, Array, Array, NDArray[np.intp]]:
    """Relative values, targets and their sigma in the domain (M,), and which cues they come from (M,)."""
    v = sample(relative.values, cues.uv).astype(float)
    used = np.flatnonzero(np.isfinite(v))
    z = cues.depth[used]
    sigma = UNSTATED_SIGMA * z if cues.sigma is None else cues.sigma[used]
    return v[used], to_domain(z, relative.domain), sigma * np.abs(dy_dz(z, relative.domain)), used


def _span(relative: RelativeDepth, v: Array) -> float:
    """The cues' 5-95 % range of relative values as a share of the map's 2-98 % range."""
    low, high = np.nanpercentile(relative.values[::4, ::4], (2, 98))
    cue_low, cue_high = np.percentile(v, (5, 95))
    return float((cue_high - cue_low) / max(high - low, 1e-12))


def _offset(relative: RelativeDepth, v: Array) -> float:
    """What to add to a network's values so that a pure factor makes depths of them; 0 where they are positive already.

    Otherwise the largest value becomes eight times the smallest: the same guess as for a frame nothing is known about.
    """
    if relative.domain == "log_depth" or v.min() > 0:
        return 0.0
    low, high = np.nanpercentile(relative.values[::4, ::4], (2, 98))
    low, high = min(float(low), v.min()), max(float(high), v.max())
    return float((high - low) / 7 - low) if high > low else 1.0 - float(low)


def _shifted(solution: _Solution, offset: float) -> _Solution:
    """A scale-only solution for values v + offset, as one for v."""
    (scale, shift), covariance, weights, determined = solution
    if offset == 0:
        return solution
    turn = np.array([[1.0, 0.0], [offset, 1.0]])
    return (scale, shift + scale * offset), turn @ covariance @ turn.T, weights, determined


def _usable(solution: _Solution, v: Array, domain: Domain) -> bool:
    (scale, shift), covariance, _, _ = solution
    if scale <= 0 or np.sqrt(covariance[0, 0]) > 0.5 * scale:
        return False
    return domain == "log_depth" or bool(np.median(scale * v + shift) > 0)


def _solve(
    v: Array,
    y: Array,
    sigma: Array,
    start: tuple[float, float] | None,
    domain: Domain,
    robust: bool,
    scale_only: bool = False,
) -> _Solution:
    """(scale, shift), covariance (2, 2), final robust weights (N,), verdict."""
    theta = start
    weights: Array = np.ones(len(v))
    for _ in range(20 if robust else 1):
        if theta is not None:
            r = (theta[0] * v + theta[1] - y) / sigma
            weights = tukey(r / max(mad(r), LEAST_SPREAD))
        previous, theta = theta, _weighted(v, y, weights / sigma**2, domain, scale_only)
        if previous is not None and np.allclose(previous, theta, rtol=1e-7, atol=1e-12):
            break
    r = (theta[0] * v + theta[1] - y) / sigma  # type: ignore[index]
    spread = max(mad(r) if robust else float(np.sqrt(np.mean(r**2))), LEAST_SPREAD)
    covariance = _covariance(v, weights / (sigma * spread) ** 2, domain, scale_only)
    return theta, covariance, weights, "scale only" if scale_only else "scale and shift"  # type: ignore[return-value]


def _weighted(v: Array, y: Array, w: Array, domain: Domain, scale_only: bool) -> tuple[float, float]:
    """Closed-form weighted least squares. Scale only means a pure factor on z: the shift, in log depth."""
    if scale_only:
        if domain == "log_depth":
            return 1.0, float((w * (y - v)).sum() / w.sum())
        return float((w * v * y).sum() / max((w * v * v).sum(), 1e-300)), 0.0
    total = w.sum()
    mean_v, mean_y = (w * v).sum() / total, (w * y).sum() / total
    scale = (w * (v - mean_v) * (y - mean_y)).sum() / max((w * (v - mean_v) ** 2).sum(), 1e-300)
    return float(scale), float(mean_y - scale * mean_v)


def _covariance(v: Array, w: Array, domain: Domain, scale_only: bool) -> Array:
    """Inverse of the normal matrix; zero for what was not estimated."""
    if scale_only:
        information = np.array([0.0, w.sum()]) if domain == "log_depth" else np.array([(w * v * v).sum(), 0.0])
        return np.diag([1 / i if i > 0 else 0.0 for i in information])
    return np.linalg.pinv(np.array([[(w * v * v).sum(), (w * v).sum()], [(w * v).sum(), w.sum()]]))


def _ransac(v: Array, y: Array, sigma: Array, domain: Domain, trials: int = 300) -> tuple[float, float] | None:
    """The line through two cues that the median cue fits best (least median of squares, Rousseeuw 1984); seeded."""
    if len(v) < 3:
        return None
    rng = np.random.default_rng(0)
    i, j = rng.integers(len(v), size=(2, trials))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = (y[i] - y[j]) / (v[i] - v[j])  # (trials,)
        shift = y[i] - scale * v[i]
    good = np.isfinite(scale) & (scale > 0)
    if not good.any():
        return None
    scale, shift = scale[good], shift[good]
    some = rng.permutation(len(v))[:500]
    r = np.abs(scale[:, None] * v[some] + shift[:, None] - y[some]) / sigma[some]  # (trials, M)
    best = int(np.median(r, axis=1).argmin())
    return float(scale[best]), float(shift[best])
