"""Wrong keyframes leap aside and back; a hand that walks, turns, stops and hurries does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from marigold3d.poses.jumps import LEAST, without_jumps
from marigold3d.poses.sparse import SparseModel
from tests import synthetic
from tests.test_sparse_model import model_of

seeds = st.integers(0, 2**32 - 1)


def walk(seed: int, count: int = 60, shake: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Centres (count, 3) of a smooth walk that changes its pace, shaken by a share of its step; times (count,)."""
    rng = np.random.default_rng(seed)
    times_s = np.cumsum(rng.uniform(0.06, 0.14, count))
    t = times_s[:, None]
    pace = 1 + 0.7 * np.sin(rng.uniform(0.3, 1.2) * t + rng.uniform(0, 6))
    way = np.cumsum(0.08 * pace * [1.0, 0.0, 0.0], axis=0)
    sway = 0.3 * np.sin(rng.uniform(0.5, 1.5, 3) * t + rng.uniform(0, 6, 3))
    return way + sway + rng.normal(0, 0.08 * shake, (count, 3)), times_s


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_a_walk_is_believed(seed: int) -> None:
    assert without_jumps(*walk(seed)).all()


@settings(max_examples=100, deadline=None)
@given(seeds, st.lists(st.integers(3, 56), min_size=1, max_size=3, unique=True), st.floats(0.01, 100))
@example(12730, [32, 3, 34], 1.0)  # 33 looks worse than both its neighbours
def test_what_leaps_is_found_in_any_units_and_world(seed: int, wrong: list[int], unit: float) -> None:
    """By six steps and more, beside right frames and beside each other."""
    centres, times_s = walk(seed)
    rng = np.random.default_rng(seed)
    for row in wrong:
        direction = rng.normal(size=3)
        centres[row] += direction / np.linalg.norm(direction) * rng.uniform(0.6, 3)
    expected = ~np.isin(np.arange(len(centres)), wrong)
    np.testing.assert_array_equal(without_jumps(centres, times_s), expected)
    T = synthetic.look(rng.normal(size=3), *rng.uniform(-2, 2, 3))
    moved = unit * (centres @ T[:3, :3].T + T[:3, 3])
    np.testing.assert_array_equal(without_jumps(moved, times_s), expected)


def test_a_camera_that_stops_and_goes_on_is_believed() -> None:
    steps = np.repeat([0.1, 0.0, 0.15, 0.0, 0.05], 12)
    centres = np.cumsum(steps)[:, None] * [1.0, 0.2, 0.0] + np.random.default_rng(0).normal(0, 1e-4, (60, 3))
    assert without_jumps(centres, 0.1 * np.arange(60)).all()


def test_where_little_is_known_all_is_believed() -> None:
    """Few keyframes, and photos taken one after the other."""
    centres, times_s = walk(1)
    centres[5] += 2.0
    assert without_jumps(centres[:LEAST], times_s[:LEAST]).all()
    assert without_jumps(centres, 10 * times_s).all()
    assert without_jumps(centres[:0], times_s[:0]).shape == (0,)


def test_a_model_without_a_frame_keeps_what_the_others_saw(rng: np.random.Generator) -> None:
    points = rng.uniform((-0.5, -0.4, 2.0), (0.5, 0.4, 3.0), (50, 3))
    T = synthetic.walk(3, length=0.4)
    whole = model_of([0, 10, 20], T, points)
    kept = whole.of_frames(np.array([True, False, True]))
    assert kept.frames.tolist() == [0, 20]
    assert isinstance(kept, SparseModel)
    np.testing.assert_array_equal(kept.T_world_camera, T[[0, 2]])
    assert sorted(zip(kept.seen_frame.tolist(), kept.seen_point.tolist(), strict=True)) == [
        (row, p) for row in (0, 1) for p in range(50)
    ]
    for position, row in ((0, 0), (20, 2)):
        ours, theirs = kept.cues(position, T[row])[0], whole.cues(position, T[row])[0]
        assert ours.depth == pytest.approx(theirs.depth)
