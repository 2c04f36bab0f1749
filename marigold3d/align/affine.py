"""Scale and shift that carry a network's relative depth onto known depths, solved in the network's own domain.

y(z) = scale * v + shift, with y = z, 1/z or log z for affine-invariant depth, disparity or log depth. Fitting a
disparity network in depth instead is several times worse, so the domain is taken from the estimator's tag.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import GeometryError
from ..types import Array, DepthMap, Domain, FloatImage, RelativeDepth, SparseCues
from .cue_arrays import sigma_shares
from .domains import dy_dz, from_domain, to_domain
from .identifiability import doubt, share_spanned, too_little, value_range
from .line import Line, fit_line
from .robust import Loss, mad
from .samples import sample

Determined = Literal["scale and shift", "scale only"]

AGREEMENT = 0.25  # a cue within this share of the fitted depth agrees with it
LEAST_AGREEING = 0.55  # of the cues: fewer mean that the cues contradict each other
AS_ASKED = "as asked"
FAR_FACTOR = 20.0  # depth beyond this multiple of the farthest cue is not trusted (sky, disparity near zero)


@dataclass(frozen=True, eq=False)
class AffineFit:
    """y = scale * v + shift in `domain`.

    covariance (2, 2) of (scale, shift); residual_sigma: robust standard deviation of the residuals as a share of the
    depth; inliers (N,) bool, the cues that agree; max_depth: farthest depth the fit is trusted for, scene units.
    span: the cues' range of relative values as a share of the map's; rejected: cues on valid pixels that do not agree;
    verdict: what was determined, from how much, in a sentence for people.
    """

    scale: float
    shift: float
    domain: Domain
    covariance: Array
    residual_sigma: float
    inliers: NDArray[np.bool_]
    determined: Determined
    max_depth: float = np.inf
    span: float = np.nan
    rejected: int = 0
    verdict: str = ""

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
        v = np.where(np.isfinite(z), relative.values, 0)
        c = self.covariance
        variance_y = c[0, 0] * v * v + 2 * c[0, 1] * v + c[1, 1]
        if relative.uncertainty is not None:
            variance_y = variance_y + (self.scale * relative.uncertainty) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = np.maximum(variance_y, 0) / slope**2 + (self.residual_sigma * z) ** 2
            return np.asarray(np.sqrt(variance), np.float32)


def fit_affine(
    relative: RelativeDepth, cues: SparseCues, *, robust: bool = True, loss: Loss = "tukey", scale_only: bool = False
) -> AffineFit:
    """Scale and shift by weighted least squares in the network's domain; positive scale, or none.

    robust: outliers do not matter, up to half of the cues; `loss` is what weighs them. Tukey's biweight ignores gross
    ones, Huber's loss bounds their pull. scale_only: a pure factor on depth, which is the shift in log depth.
    Falls back to scale only where the cues do not determine the shift; `verdict` says why. Raises GeometryError when no
    cue falls on a valid pixel.
    """
    v, y, share, used = _observations(relative, cues)
    low, high = value_range(relative, v)
    span = share_spanned(v, low, high)
    chosen = loss if robust else None
    trouble = AS_ASKED if scale_only else too_little(span)
    line = None if trouble else fit_line(v, y, share, chosen, logarithmic=relative.domain == "log_depth")
    if line is not None:
        span = share_spanned(v[line.agrees], low, high)
        trouble = too_little(span) or doubt(line, v, relative.domain)
    if line is None or trouble:
        line = _factor(v, y, share, chosen, relative.domain, low, high)
    z = np.asarray(cues.depth)[used]
    inliers = np.zeros(len(cues), bool)
    inliers[used] = line.agrees
    residual = (line.slope * v + line.intercept - y) / np.abs(dy_dz(z, relative.domain)) / z
    fit = AffineFit(
        line.slope,
        line.intercept,
        relative.domain,
        line.covariance,
        mad(residual),
        inliers,
        "scale only" if trouble else "scale and shift",
        FAR_FACTOR * float(z[line.agrees].max()),
        span,
        int((~line.agrees).sum()),
    )
    return replace(fit, verdict=_verdict(fit, trouble, z, v, share))


# -- what the cues say ------------------------------------------------------------------------------------------------


def _observations(relative: RelativeDepth, cues: SparseCues) -> tuple[Array, Array, Array, NDArray[np.intp]]:
    """Relative values, targets in the domain, sigma as shares of depth (M,), which cues they are (M,), M >= 1."""
    v = sample(relative.values, cues.uv).astype(float)
    used = np.flatnonzero(np.isfinite(v))
    if len(used) == 0:
        raise GeometryError(f"no cue falls on a valid pixel of the depth map: {_why_none(relative, cues)}")
    z = np.asarray(cues.depth, float)[used]
    return v[used], to_domain(z, relative.domain), sigma_shares(cues)[used], used


def _why_none(relative: RelativeDepth, cues: SparseCues) -> str:
    height, width = relative.values.shape
    if len(cues) == 0:
        return "there are no cues"
    if not np.isfinite(relative.values).any():
        return "the map has none"
    inside = np.all((cues.uv >= 0) & (cues.uv < (width, height)), axis=1)
    if not inside.any():
        return f"all {len(cues)} lie outside its {width}x{height} pixels; check the image size and pose they are for"
    return f"the {inside.sum()} inside it lie where the network gave no depth"


# -- scale only -------------------------------------------------------------------------------------------------------


def _factor(v: Array, y: Array, share: Array, loss: Loss | None, domain: Domain, low: float, high: float) -> Line:
    """A pure factor on depth: the intercept in log depth, else the slope through zero, or an offset where v <= 0.

    The offset makes the largest value eight times the smallest: the same guess as for a frame nothing is known about.
    """
    if domain == "log_depth":
        return fit_line(v, y, share, loss, "intercept", logarithmic=True)
    if v.min() > 0:
        return fit_line(v, y, share, loss, "slope")
    low, high = min(low, float(v.min())), max(high, float(v.max()))
    offset = (high - low) / 7 - low if high > low else 1.0 - low
    line = fit_line(v + offset, y, share, loss, "slope")
    turn = np.array([[1.0, 0.0], [offset, 1.0]])
    return replace(line, intercept=line.slope * offset, covariance=turn @ line.covariance @ turn.T)


# -- in words ---------------------------------------------------------------------------------------------------------


def _verdict(fit: AffineFit, trouble: str, z: Array, v: Array, share: Array) -> str:
    """What the fit is worth, for people; z, v, share (M,) are depth, map value and relative sigma of the cues used."""
    count = len(z)
    source = f"from {count - fit.rejected} of {count} cue{'s' * (count > 1)}"
    source += f" ({fit.rejected} rejected)" if fit.rejected else ""
    if not trouble:
        said = f"scale and shift {source}, which span {fit.span:.0%} of the depth range"
    elif trouble == AS_ASKED:
        said = f"scale only, {trouble}, {source}"
    else:
        said = f"shift not determined: {trouble}; scale only, {source}"
    factor = fit.depth(v.astype(np.float32)) / z
    agreeing = int((np.abs(factor - 1) < np.maximum(AGREEMENT, 2 * share)).sum())
    if agreeing < LEAST_AGREEING * count:
        return f"the cues contradict each other or the map: {agreeing} of {count} agree within {AGREEMENT:.0%}; {said}"
    return f"{said}; none is left to check them" if count <= (1 if trouble else 2) else said
