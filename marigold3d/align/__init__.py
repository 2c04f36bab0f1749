"""Alignment: from a network's relative depth to scene units. Works on plain numpy arrays, without the rest of marigold3d."""

from .affine import AffineFit, fit_affine
from .clip import AlignmentReport, align_clip
from .field import ScaleField, fit_field
from .frame import FrameAlignment, align_frame, fit_frame

__all__ = [
    "AffineFit",
    "AlignmentReport",
    "FrameAlignment",
    "ScaleField",
    "align_clip",
    "align_frame",
    "fit_affine",
    "fit_field",
    "fit_frame",
]
