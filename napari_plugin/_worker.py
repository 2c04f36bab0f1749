"""The pipeline in a thread of its own, its messages delivered to the main thread one after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from marigold3d.progress import Progress, Steps

from ._preview import Failed, throttled

if TYPE_CHECKING:
    from marigold3d.store import Run


class PipelineWorker:
    """Runs steps and calls back with each Progress (at most some a second) and with what ends them."""

    def __init__(
        self,
        on_progress: Callable[[Progress], None],
        on_result: Callable[[Run | Failed], None],
        on_stopped: Callable[[], None],
    ) -> None:
        slots: dict[str, Callable[..., None]] = {"yielded": on_progress, "returned": on_result, "aborted": on_stopped}
        self._slots = {signal: partial(self._receive, signal, slot) for signal, slot in slots.items()}
        self._worker: Any = None
        self._steps: Steps[Run | Failed] | None = None
        self._inbox: deque[tuple[str, Callable[..., None], tuple[Any, ...]]] = deque()
        self._handling = False

    @property
    def running(self) -> bool:
        return self._worker is not None

    def start(self, steps: Steps[Run]) -> None:
        """Run `steps` in a new thread."""
        from napari.qt.threading import create_worker

        self._steps = shown = throttled(steps)

        def work() -> Steps[Run | Failed]:
            return (yield from shown)

        self._worker = create_worker(work, _connect=self._slots, _start_thread=False)
        self._worker.start()

    def stop(self) -> None:
        """Ask the thread to end after the step it is in."""
        if self._worker is not None:
            self._worker.quit()

    def _receive(self, signal: str, slot: Callable[..., None], *message: Any) -> None:
        """Handle messages one after another.

        A new bar in the activity dock lets Qt deliver further messages before it returns, so slots would run inside one
        another and the last one finish first.
        """
        self._inbox.append((signal, slot, message))
        if self._handling:
            return
        self._handling = True
        try:
            while self._inbox:
                signal, slot, message = self._inbox.popleft()
                if signal != "yielded":
                    self._finish()
                slot(*message)
        finally:
            self._handling = False

    def _finish(self) -> None:
        if self._steps is not None:
            self._steps.close()  # an aborted generator is only suspended
        self._worker = self._steps = None
