"""What people are told: a bar a stage in napari's activity dock, and errors as notifications."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from marigold3d.errors import Marigold3DError
from marigold3d.progress import Progress

STAGES = {
    "scan": "reading the clip",
    "poses": "finding the camera path",
    "depth": "estimating depth",
    "align": "reading depth",
    "guide": "guiding keyframes",
    "thumbnails": "reading pictures for flow",
    "solve": "aligning all frames",
    "apply": "writing aligned depth",
    "match": "comparing poses with the pictures",
    "sweep": "matching views",
    "agree": "comparing what views found",
    "refine": "refining keyframes",
    "between": "filling between views",
    "fuse": "fusing the cloud",
    "write": "writing files",
}


class Activity:
    """A bar a stage, and the same as a line of text with the time that the stage still takes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar: Any = None
        self._stage = self._shown = ""
        self._began, self._clock = 0.0, clock

    def line(self, progress: Progress) -> str:
        """What is done, and how long the stage still takes."""
        what = STAGES.get(progress.stage, progress.stage)
        if progress.stage != self._stage:
            self._stage, self._began = progress.stage, self._clock()
        if not progress.total:
            return f"{what} ..."
        spent = self._clock() - self._began
        left = spent / progress.done * (progress.total - progress.done) if progress.done else 0.0
        return f"{what}: {progress.done}/{progress.total}" + (f", {left:.0f} s left" if left >= 1 else "")

    def advance(self, progress: Progress) -> None:
        """Move the bar. To be called last: Qt handles other events meanwhile, a closing window among them."""
        from napari.utils import progress as activity_bar

        what = STAGES.get(progress.stage, progress.stage)
        if self._bar is None or what != self._shown:
            self.close()
            self._shown = what
            self._bar = activity_bar(total=progress.total or 0, desc=what)
        self._bar.update(progress.done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def tell_error(error: Exception) -> str:
    """One line as a notification for what the user can mend; a defect is raised, for napari to show its traceback.

    Returns the line.
    """
    from napari.utils.notifications import show_error

    if not isinstance(error, Marigold3DError):
        raise error
    show_error(str(error))
    return str(error).splitlines()[0]


def tell(line: str) -> None:
    """A notification."""
    from napari.utils.notifications import show_info

    show_info(line)
