"""Ctrl-C between two steps of long work, never within one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from marigold3d.progress import Progress

INTERRUPTED = 130  # exit code


@contextmanager
def interrupted_between_steps(on_progress: Callable[[Progress], None]) -> Iterator[Callable[[Progress], None]]:
    """An `on_progress` that raises KeyboardInterrupt at the first step after Ctrl-C; a second Ctrl-C acts at once.

    Python forgets a KeyboardInterrupt that strikes while it clears up an object, and HDF5 files have many to clear up.
    """
    asked = False
    before = signal.getsignal(signal.SIGINT)

    def note(*_: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    def step(progress: Progress) -> None:
        if asked:
            raise KeyboardInterrupt
        on_progress(progress)

    signal.signal(signal.SIGINT, note)
    try:
        yield step
    finally:
        signal.signal(signal.SIGINT, before)


def ignore_interrupts() -> None:
    """For workers: Ctrl-C reaches every process of a terminal, and only the first is to act on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
