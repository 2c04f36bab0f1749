"""Alignment: from a network's relative depth to scene units. Plain numpy arrays suffice."""

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
