"""Cues kept in a file are the cues that were given, however they are asked for."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marigold3d.align import cue_store
from marigold3d.align.cue_arrays import joined
from marigold3d.align.cue_store import CueStore, JoinedCues
from marigold3d.errors import OutputError
from marigold3d.types import SparseCues


def cues_of(count: int, stated: bool, seed: int) -> SparseCues:
    rng = np.random.default_rng(seed)
    sigma = rng.uniform(0.01, 1, count) if stated else None
    return SparseCues(rng.normal(size=(count, 2)), rng.uniform(0.1, 9, count), sigma, f"source {seed}")


frames = st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.integers(0, 99)), max_size=12)


def same(a: SparseCues, b: SparseCues) -> bool:
    assert (a.sigma is None) == (b.sigma is None)
    np.testing.assert_array_equal(a.uv, b.uv)
    np.testing.assert_array_equal(a.depth, b.depth)
    if a.sigma is not None and b.sigma is not None:
        np.testing.assert_array_equal(a.sigma, b.sigma)
    return a.source == b.source


@given(frames, st.sampled_from([0, 100, 2**25]), st.randoms())
def test_what_goes_in_comes_out(kinds: list[tuple[int, bool, int]], in_memory: int, order: object) -> None:
    """From memory and from disk, in any order, from the end, and in slices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cue_store, "IN_MEMORY", max(in_memory, 1))
        store, given = CueStore(), [cues_of(*kind) for kind in kinds]
        for cues in given:
            store.append(cues)
    assert len(store) == len(given)
    rows = list(range(-len(given), len(given)))
    order.shuffle(rows)  # type: ignore[attr-defined]
    assert all(same(store[i], given[i]) for i in rows)
    assert all(same(a, b) for a, b in zip(store[1::2], given[1::2], strict=True))
    assert [len(c) for c in store] == [len(c) for c in given]
    for beyond in (len(given), -len(given) - 1):
        with pytest.raises(IndexError):
            store[beyond]


@given(st.integers(1, 3), st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=8))
def test_joined_cues_are_the_parts_of_each_frame(parts: int, kinds: list[tuple[int, bool]]) -> None:
    stores = [[cues_of(n * (k % 2 or n), s, k) for n, s in kinds] for k in range(parts)]
    together = JoinedCues(stores, len(kinds))
    expected = {i: joined([store[i] for store in stores]) for i in range(len(kinds))}
    assert list(together) == [i for i, cues in expected.items() if len(cues)]
    assert all(same(together[i], expected[i]) for i in together)
    for i in set(expected) - set(together):
        assert together.get(i) is None
        with pytest.raises(KeyError):
            together[i]


def test_a_full_disk_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cue_store, "IN_MEMORY", 1)
    store = CueStore()

    def full(_: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    store.append(cues_of(1, True, 0))
    monkeypatch.setattr(store._file, "write", full)
    with pytest.raises(OutputError, match=r"space"):
        store.append(cues_of(5, True, 0))
