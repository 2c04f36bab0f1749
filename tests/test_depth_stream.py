"""Depth of a stream: in order, bounded, overlapping, and what must be read again after an interruption."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from marigold3d.depth import frames_to_read, stream, stream_or_waiting
from marigold3d.depth.overlap import Stopped, check_stopped, overlapped
from marigold3d.depth.protocol import ClipPass
from marigold3d.types import Domain, RelativeDepth

Rgb = NDArray[np.uint8]


class Counting:
    """Depth is the frame's first byte; remembers the batches it was given."""

    name = "counting"
    domain: Domain = "depth"

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def estimate(self, rgb: Rgb) -> list[RelativeDepth]:
        self.batches.append(rgb.shape)
        return [RelativeDepth(one[..., 0].astype(np.float32), "depth") for one in rgb]

    def provenance(self) -> dict[str, str]:
        return {}


class Leaning(Counting):
    """Every frame adds the depth of the frame before, in segments of four."""

    segment = 4

    def batch_size(self, height: int, width: int) -> int:
        return 3

    def clip_pass(self) -> ClipPass:
        state = {"position": -9, "sum": 0.0}

        def call(positions: Sequence[int], rgb: Rgb) -> list[RelativeDepth]:
            found = []
            for position, one in zip(positions, rgb, strict=True):
                leans = position % self.segment != 0 and position == state["position"] + 1
                state["sum"] = (state["sum"] if leans else 0.0) + float(one[0, 0, 0])
                state["position"] = position
                found.append(RelativeDepth(np.full(one.shape[:2], state["sum"], np.float32), "depth"))
            return found

        return call


def numbered(positions: Sequence[int], size: tuple[int, int] = (2, 3)) -> Iterator[tuple[int, Rgb]]:
    for position in positions:
        yield position, np.full((*size, 3), position, np.uint8)


def first_values(
    frames: Sequence[tuple[int, Rgb]] | Iterator[tuple[int, Rgb]], estimator: Counting
) -> dict[int, float]:
    return {frame.position: float(frame.depth.values[0, 0]) for frame in stream(estimator, frames)}


@pytest.mark.parametrize("batch", [None, 1, 3, 100])
def test_every_frame_comes_out_once_in_order(batch: int | None) -> None:
    found = list(stream(Counting(), numbered(range(10)), batch))
    assert [frame.position for frame in found] == list(range(10))
    assert all((frame.depth.values == frame.position).all() for frame in found)
    assert all((frame.rgb == frame.position).all() for frame in found)


def test_frames_of_other_sizes_do_not_share_a_batch() -> None:
    estimator = Counting()
    frames = [*numbered([0, 1], (2, 3)), *numbered([2], (5, 5)), *numbered([3, 4], (2, 3))]
    assert list(first_values(frames, estimator)) == [0, 1, 2, 3, 4]
    assert [shape[0] for shape in estimator.batches] == [2, 1, 2]


def test_estimators_say_how_many_fit() -> None:
    assert list(first_values(numbered(range(7)), Leaning())) == list(range(7))
    parallel = Counting()
    parallel.frames_at_once = 2  # type: ignore[attr-defined]
    assert list(first_values(numbered(range(7)), parallel)) == list(range(7))
    assert {shape[0] for shape in parallel.batches} == {1}


def test_reading_goes_on_while_a_frame_is_estimated() -> None:
    """The first estimate ends only when the second frame was read: one after the other, it would wait for ever."""
    second_read = threading.Event()

    class Slow(Counting):
        def estimate(self, rgb: Rgb) -> list[RelativeDepth]:
            assert second_read.wait(30)
            return super().estimate(rgb)

    def frames() -> Iterator[tuple[int, Rgb]]:
        yield from numbered([0])
        second_read.set()
        yield from numbered([1])

    assert [frame.position for frame in stream(Slow(), frames(), 1)] == [0, 1]


def test_memory_is_bounded_by_batches_not_by_the_clip() -> None:
    read, used, most = 0, 0, 0

    def frames() -> Iterator[tuple[int, Rgb]]:
        nonlocal read, most
        for one in numbered(range(50)):
            read += 1
            most = max(most, read - used)
            yield one

    for _ in stream(Counting(), frames(), 2):
        used += 1
    assert most <= 6


def test_an_unreadable_frame_is_reported_after_the_depth_before_it() -> None:
    def frames() -> Iterator[tuple[int, Rgb]]:
        yield from numbered(range(3))
        raise OSError("torn")

    results = stream(Counting(), frames(), 1)
    assert [next(results).position for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="torn"):
        next(results)


def test_errors_of_the_estimator_arrive() -> None:
    class Failing(Counting):
        def estimate(self, rgb: Rgb) -> list[RelativeDepth]:
            if rgb[0, 0, 0, 0] == 2:
                raise ValueError("two")
            return super().estimate(rgb)

    results = stream(Failing(), numbered(range(5)), 1)
    assert [next(results).position for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_a_caller_that_waits_is_told_and_may_leave() -> None:
    """Work notices within a moment that nobody waits for it."""
    ended = threading.Event()

    def work(_: int) -> int:
        try:
            while True:
                time.sleep(0.01)
                check_stopped()
        except Stopped:
            ended.set()
            raise

    results = overlapped(work, range(3), 1)
    assert next(results) is None
    results.close()
    assert ended.wait(30)

    waiting = stream_or_waiting(Counting(), numbered(range(2)))
    assert [frame.position for frame in waiting if frame is not None] == [0, 1]


def test_outside_of_a_stream_nothing_stops() -> None:
    check_stopped()


@given(
    positions=st.sets(st.integers(0, 40)).map(sorted),
    done=st.sets(st.integers(0, 40)),
)
def test_a_resumed_clip_gets_the_same_depth(positions: list[int], done: set[int]) -> None:
    whole = first_values(numbered(positions), Leaning())
    read = frames_to_read(Leaning(), positions, done)
    again = first_values(numbered(read), Leaning())
    assert set(positions) - done <= set(again) <= set(positions)
    assert again == {position: whole[position] for position in again}
    assert frames_to_read(Counting(), positions, done) == [p for p in positions if p not in done]
    assert frames_to_read(Leaning(), positions, set(positions)) == []
