"""A finished run aligned anew: known depths and lengths come late, depth need not be estimated again for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .config import AlignConfig, RunConfig
from .errors import InputError
from .pipeline import reconstruct
from .progress import Progress
from .store import Run


def realign(run: Run, settings: AlignConfig, *, on_progress: Callable[[Progress], None] = lambda _: None) -> Run:
    """The run with other alignment settings: cameras and relative depth are kept, what follows from them is made anew.

    Raises InputError for a run that is not finished or whose clip is gone. An error on the way leaves it as it was.
    """
    if not run.finished:
        raise InputError(f"{run.path} is not finished: run `marigold3d video` again, which resumes it")
    config = replace(RunConfig.from_dict(run.manifest["settings"]), align=settings)
    return reconstruct(run.manifest["clip"], run.path, config, overwrite=True, on_progress=on_progress)
