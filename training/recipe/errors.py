"""Errors of training beyond those of the package."""

from marigold3d.errors import Marigold3DError


class DivergedError(Marigold3DError):
    """The loss or a gradient is no longer a finite number. The last good checkpoint is kept."""

    exit_code = 8
