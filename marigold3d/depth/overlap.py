"""Work on threads while the caller's own thread reads what comes next and writes what came out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOMENT_S = 0.2  # a front-end that hears nothing for longer feels stuck

_here = threading.local()


class Stopped(Exception):
    """Nobody waits for this work any more."""


def check_stopped() -> None:
    """Raises Stopped in a worker whose results are no longer wanted; long work calls it now and then."""
    wanted = getattr(_here, "wanted", None)
    if wanted is not None and not wanted.is_set():
        raise Stopped


def overlapped(
    work: Callable[[T], R], items: Iterable[T], workers: int, begin: Callable[[], None] = lambda: None
) -> Generator[R | None, None, None]:
    """work(item) for each of items, none of them None, in order, on `workers` threads; None whenever a moment went by.

    `items` are read, and results used, in the caller's thread, while the workers go on; at most workers + 1 items are
    held. begin: what a worker does first. An error while reading is raised after the results that precede it. Closing
    does not wait for work under way, which `check_stopped` ends soon.
    """
    wanted = threading.Event()
    wanted.set()

    def prepared() -> None:
        _here.wanted = wanted
        begin()

    source, pending, closed = iter(items), deque[Future[R]](), False
    failure: Exception | None = None
    pool = ThreadPoolExecutor(workers, initializer=prepared)
    try:
        reading = True
        while reading or pending:
            while reading and len(pending) <= workers:
                try:
                    pending.append(pool.submit(work, next(source)))
                except StopIteration:
                    reading = False
                except Exception as error:
                    reading, failure = False, error
            if pending:
                yield pending.popleft().result() if wait([pending[0]], MOMENT_S).done else None
        if failure is not None:
            raise failure
    except GeneratorExit:
        closed = True
        raise
    finally:
        wanted.clear()
        pool.shutdown(wait=not closed, cancel_futures=True)
