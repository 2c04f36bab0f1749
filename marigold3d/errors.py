"""Errors a user can mend. The CLI prints each as one line and exits with its `exit_code`.

| exit code | meaning |
|---|---|
| 0 | finished |
| 1 | unexpected: a defect of marigold3d, shown with its traceback |
| 2 | usage: an option or its value is wrong |
| 3 | input: a clip, image, pose or camera file cannot be used |
| 4 | model: weights are missing or damaged |
| 5 | memory: not enough of it |
| 6 | geometry: the clip does not determine what was asked for (no parallax, too few cues) |
| 7 | output: the run folder exists already, or cannot be written |
| 130 | interrupted: what is finished is kept, the same command resumes |
"""

from __future__ import annotations


class Marigold3DError(Exception):
    """Base of every error that names its remedy; the message is one line."""

    exit_code = 1


class UsageError(Marigold3DError):
    """An option or argument has no usable value."""

    exit_code = 2


class InputError(Marigold3DError):
    """A clip, image, pose or camera file cannot be used."""

    exit_code = 3


class ModelError(Marigold3DError):
    """Weights are missing, damaged or of an unknown kind."""

    exit_code = 4


class OutOfMemoryError(Marigold3DError):
    """The work does not fit in memory, even after backing off."""

    exit_code = 5


class GeometryError(Marigold3DError):
    """The data do not determine what was asked for: no parallax, too few or degenerate cues."""

    exit_code = 6


class OutputError(Marigold3DError):
    """The output exists already, or cannot be written."""

    exit_code = 7
