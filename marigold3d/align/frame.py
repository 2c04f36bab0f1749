"""One frame: an affine fit, then the low-frequency field, then what both leave unexplained as sigma."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..types import Array, DepthMap, RelativeDepth, SparseCues
from .affine import AffineFit, fit_affine
from .cue_arrays import sigma_shares
from .field import ScaleField, fit_field, grid_shape
from .robust import mad
from .samples import sample

FIELD_MIN_CUES = 30  # fewer leave most of the field to its prior
FIELD_SPREAD = 1.5  # sigmas: a network errs by more than the cues, and where it does the field should follow
SIGMA_FLOOR = 0.005  # no depth is claimed to be better than this share


@dataclass(frozen=True, eq=False)
class FrameAlignment:
    """What carries a frame's relative depth to scene units; `residual_sigma` is the share of depth left unexplained."""

    fit: AffineFit
    field: ScaleField | None
    residual_sigma: float

    def apply(self, relative: RelativeDepth) -> DepthMap:
        """Aligned depth; sigma joins the residual, the field's own uncertainty and the network's, as shares of it."""
        z = self.fit.depth(relative.values)
        valid = np.isfinite(z)
        share = np.full(z.shape, max(self.residual_sigma, SIGMA_FLOOR), np.float32)
        if self.field is not None:
            z = z * np.exp(self.field.log_scale())
            share = np.hypot(share, self.field.sigma())
        if relative.uncertainty is not None:  # its level is calibrated by the residual, its pattern is the network's
            pattern = relative.uncertainty / max(float(np.nanmedian(relative.uncertainty)), 1e-12)
            share = share * np.clip(pattern, 0.5, 4.0)
        sigma = np.where(valid, share * z, 0).astype(np.float32)
        return DepthMap(np.where(valid, z, 0).astype(np.float32), valid, sigma)

    def depth_at(self, relative: RelativeDepth, uv: Array) -> Array:
        """Aligned depth (N,) at pixels uv (N, 2); NaN where there is none."""
        z = self.fit.depth(sample(relative.values, uv)).astype(float)
        return z if self.field is None else z * np.exp(self.field.at(uv))


def fit_frame(relative: RelativeDepth, cues: SparseCues, *, field: bool = True, columns: int = 12) -> FrameAlignment:
    """Fit scale, shift and (with `field`) the log-scale field to the cues of one frame.

    Raises GeometryError when no cue falls on a valid pixel.
    """
    fit = fit_affine(relative, cues)
    z = fit.depth(sample(relative.values, cues.uv)).astype(float)
    usable = np.isfinite(z)
    if not field or usable.sum() < FIELD_MIN_CUES:
        return FrameAlignment(fit, None, fit.residual_sigma)
    height, width = relative.values.shape
    ratio = np.log(cues.depth[usable] / z[usable])
    bend = fit_field(
        cues.uv[usable],
        ratio,
        sigma_shares(cues)[usable],
        width,
        height,
        grid_shape(width, height, columns),
        trusted=fit.inliers[usable],
        least_spread=FIELD_SPREAD,
    )
    return FrameAlignment(fit, bend, mad(ratio - bend.at(cues.uv[usable])))


def align_frame(relative: RelativeDepth, cues: SparseCues, *, field: bool = True) -> DepthMap:
    """Scene-unit depth of one frame from its relative depth and some known depths: `fit_frame`, applied."""
    return fit_frame(relative, cues, field=field).apply(relative)
