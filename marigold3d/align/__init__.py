"""Alignment: from a network's relative depth to scene units. Plain numpy arrays suffice."""

from .affine import AffineFit, fit_affine
from .alignment import Alignment, solve_clip
from .clip import AlignmentReport, align_clip
from .field import ScaleField, fit_field
from .frame import FrameAlignment, align_frame, fit_frame
from .joint import JointSettings

__all__ = [
    "AffineFit",
    "Alignment",
    "AlignmentReport",
    "FrameAlignment",
    "JointSettings",
    "ScaleField",
    "align_clip",
    "align_frame",
    "fit_affine",
    "fit_field",
    "fit_frame",
    "solve_clip",
]
