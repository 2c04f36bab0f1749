"""Work of the engine in a thread of its own, its messages delivered to the main thread one after another."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from marigold3d.progress import Progress, Steps

UPDATE_INTERVAL_S = 0.2  # more updates a second make the viewer sluggish while the network computes
PAUSE_POLL_S = 0.05


@dataclass(frozen=True, eq=False)
class Failed:
    """What ended the work. Not itself an exception: Qt workers drop a returned or raised RuntimeError, torch's kind."""

    error: Exception


@dataclass(frozen=True)
class Stopped:
    """The work was closed because somebody asked for it."""


@dataclass(frozen=True, eq=False)
class Control:
    """What the main thread tells the working one; heard at every Progress."""

    stop: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)  # clear while paused

    def __post_init__(self) -> None:
        self.go.set()

    def stopped(self) -> bool:
        """Whether to stop; waits while paused."""
        while not (self.go.wait(PAUSE_POLL_S) or self.stop.is_set()):
            pass
        return self.stop.is_set()


def throttled(
    steps: Steps[Any],
    control: Control | None = None,
    clock: Callable[[], float] = time.monotonic,
    interval_s: float = UPDATE_INTERVAL_S,
) -> Steps[Any]:
    """`steps` with at most one Progress an interval, its `payload` a tuple of all that were given meanwhile.

    The first and the last Progress of a stage always come through. Returns what `steps` returns, Failed with an error
    instead of raising it, or Stopped after closing `steps`, in the thread that runs them.
    """
    control = control or Control()
    last_s, stage, ended = -interval_s, "", False
    payloads: list[Any] = []
    try:
        while True:
            progress = next(steps)
            if control.stopped():
                return Stopped()
            begins = progress.stage != stage
            if progress.payload is not None:
                payloads.append(progress.payload)
            ends = progress.done == progress.total and (begins or not ended)
            if begins or ends or clock() - last_s >= interval_s:
                last_s, stage, ended = clock(), progress.stage, ends or (ended and not begins)
                news, payloads = tuple(payloads), []
                yield replace(progress, payload=news)
    except StopIteration as stop:
        return stop.value
    except Exception as error:
        return Failed(error)
    finally:
        steps.close()


class Worker:
    """Runs steps and calls back, on the main thread, with each Progress and with what ends them.

    That is what the steps return, Failed, or Stopped.
    """

    def __init__(self, on_progress: Callable[[Progress], None], on_end: Callable[[Any], None]) -> None:
        slots: dict[str, Callable[..., None]] = {"yielded": on_progress, "returned": on_end}
        self._slots = {signal: partial(self._receive, signal, slot) for signal, slot in slots.items()}
        self._worker: Any = None
        self._control = Control()
        self._inbox: deque[tuple[str, Callable[..., None], tuple[Any, ...]]] = deque()
        self._handling = self._abandoned = False

    @property
    def running(self) -> bool:
        return self._worker is not None

    @property
    def paused(self) -> bool:
        return self.running and not self._control.go.is_set()

    def start(self, steps: Steps[Any], interval_s: float = UPDATE_INTERVAL_S) -> None:
        """Run `steps` in a new thread."""
        from napari.qt.threading import create_worker

        self._control = Control()
        shown = throttled(steps, self._control, interval_s=interval_s)

        def work() -> Steps[Any]:
            return (yield from shown)

        self._worker = create_worker(work, _connect=self._slots, _start_thread=False)
        self._worker.start()

    def stop(self) -> None:
        """Ask the thread to end after the step it is in; paused or not."""
        self._control.stop.set()

    def pause(self, wanted: bool = True) -> None:
        """Hold after the step that is under way, or go on."""
        (self._control.go.clear if wanted else self._control.go.set)()

    def abandon(self, *_: Any) -> None:
        """Stop, and call back no more: the widgets are gone."""
        self._abandoned = True
        self.stop()

    def _receive(self, signal: str, slot: Callable[..., None], *message: Any) -> None:
        """Handle messages one after another.

        A new bar in the activity dock lets Qt deliver further messages before it returns, so slots would run inside one
        another and the last one finish first.
        """
        self._inbox.append((signal, slot, message))
        if self._handling or self._abandoned:
            return
        self._handling = True
        try:
            while self._inbox and not self._abandoned:
                signal, slot, message = self._inbox.popleft()
                if signal == "returned":
                    self._worker = None
                slot(*message)
        finally:
            self._handling = False
