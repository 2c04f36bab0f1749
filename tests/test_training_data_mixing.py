"""Batches of several sources: shares, epochs, any world size, any place to resume, damaged samples, sizes."""

import itertools
import logging
import pickle
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from marigold3d.errors import InputError, UsageError
from training.data import mixing
from training.data.mixing import BLOCK, Batch, MixedBatches, batches_a_block, read_by_workers
from training.data.samples import ENDLESS, CorruptSample, Sample


class Numbered:
    """Sample i is 2 x 3 px; its left column's depth is i + 1, its right column's i + 1.5; `damaged` cannot be read."""

    def __init__(
        self, name: str, length: int, damaged: frozenset[int] = frozenset(), size: tuple[int, int] = (2, 3)
    ) -> None:
        self.name, self.length, self.damaged, self.size = name, length, damaged, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if index in self.damaged:
            raise CorruptSample(f"{self.name}/{index}.png: cut short")
        depth = torch.full((1, *self.size), index + 1.0)
        depth[..., -1] += 0.5
        rgb = torch.full((3, *self.size), 51, dtype=torch.uint8)
        rgb[..., -1] = 255
        return Sample(rgb, depth, depth > 0, f"{self.name}/{index}")


def numbers(batch: Batch) -> list[int]:
    return [int(name.split("/")[1]) for name in batch.names]


def flipped(batch: Batch) -> list[bool]:
    """Whether the right column came to the left."""
    return [bool(d[0, 0, 0] % 1 == 0.5) for d in batch.depth_m]


def same(a: Batch, b: Batch) -> bool:
    return a.names == b.names and all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("rgb", "depth_m", "valid"))


def test_a_batch_is_from_one_source_and_has_its_shapes_and_units() -> None:
    batches = MixedBatches([Numbered("a", 50), Numbered("b", 50)], [1, 1], 4, seed=3, flip=0.0)
    for k in range(30):
        batch = batches.batch(k)
        assert len({name[0] for name in batch.names}) == 1
        assert batch.rgb.shape == (4, 3, 2, 3)
        assert batch.rgb.dtype == torch.float32
        assert batch.depth_m.shape == batch.valid.shape == (4, 1, 2, 3)
        assert batch.valid.dtype == torch.bool
        assert batch.rgb[0, 0, 0].tolist() == pytest.approx([0.2, 0.2, 1.0])
        assert batch.depth_m[:, 0, 0, 0].tolist() == [n + 1 for n in numbers(batch)]


def test_of_every_thousand_batches_nine_hundred_are_from_the_source_of_weight_nine_tenths() -> None:
    batches = MixedBatches([Numbered("a", 7), Numbered("b", 5)], [0.9, 0.1], 1, seed=0)
    names = [batches.read(k).names[0][0] for k in range(2 * BLOCK)]
    assert Counter(names[:BLOCK]) == Counter(names[BLOCK:]) == {"a": 900, "b": 100}
    assert names[:BLOCK] != names[BLOCK:]  # the order is random
    longest = max(len(list(run)) for name, run in itertools.groupby(names) if name == "a")
    assert longest > 20  # and no regular pattern, whose longest run would be 9


@given(st.lists(st.floats(0.01, 1e3), min_size=1, max_size=6))
def test_shares_add_up_and_are_off_by_less_than_one(weights: list[float]) -> None:
    if min(weights) / sum(weights) < 1.5 / BLOCK:
        return
    shares = batches_a_block(weights, [str(w) for w in weights])
    assert sum(shares) == BLOCK
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - BLOCK * weight / sum(weights)) < 1


@pytest.mark.parametrize("length", [10, 13])  # 13: batches of 4 reach over the ends of epochs
def test_every_epoch_holds_every_sample_once_in_a_new_order(length: int) -> None:
    batches = MixedBatches([Numbered("a", length)], [1], 4, seed=1)
    order = [n for k in range(3 * length) for n in numbers(batches.batch(k))]
    epochs = [order[i : i + length] for i in range(0, len(order), length)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_epochs_of_mixed_sources_are_whole_too() -> None:
    batches = MixedBatches([Numbered("a", 30), Numbered("b", 6)], [0.7, 0.3], 2, seed=5)
    seen: dict[str, list[int]] = {"a": [], "b": []}
    for k in range(2 * BLOCK + 100):  # over the ends of blocks
        batch = batches.batch(k)
        seen[batch.names[0][0]] += numbers(batch)
    for name, length in (("a", 30), ("b", 6)):
        whole = len(seen[name]) // length * length
        for begin in range(0, whole, length):
            assert sorted(seen[name][begin : begin + length]) == list(range(length))


def test_an_endless_source_is_read_in_its_own_order() -> None:
    batches = MixedBatches([Numbered("a", ENDLESS)], [1], 3, seed=1)
    assert [n for k in range(4) for n in numbers(batches.batch(k))] == list(range(12))
    assert numbers(batches.batch(10**12)) == [3 * 10**12, 3 * 10**12 + 1, 3 * 10**12 + 2]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_parts_of_all_processes_are_the_same_batch(world_size: int) -> None:
    sources = [Numbered("a", 19, damaged=frozenset({4})), Numbered("b", 11)]
    alone = MixedBatches(sources, [2, 1], 8, seed=9)
    shared = [MixedBatches(sources, [2, 1], 8, seed=9, rank=r, world_size=world_size) for r in range(world_size)]
    for k in (0, 1, 2, 57, 1003):
        parts = [batches.batch(k) for batches in shared]
        assert all(len(part.names) == 8 // world_size for part in parts)
        whole = Batch(
            torch.cat([p.rgb for p in parts]),
            torch.cat([p.depth_m for p in parts]),
            torch.cat([p.valid for p in parts]),
            tuple(name for p in parts for name in p.names),
        )
        assert same(whole, alone.batch(k))


@given(st.integers(0, 5000))
def test_a_run_goes_on_from_any_batch(k: int) -> None:
    sources = [Numbered("a", 19, damaged=frozenset({3})), Numbered("b", 11)]
    first = MixedBatches(sources, [3, 1], 4, seed=2)
    for earlier in range(max(0, k - 2), k):
        first.batch(earlier)
    assert same(first.batch(k), MixedBatches(sources, [3, 1], 4, seed=2).batch(k))


def test_other_seeds_give_other_batches() -> None:
    orders = {tuple(numbers(MixedBatches([Numbered("a", 100)], [1], 8, seed=seed).batch(0))) for seed in range(5)}
    assert len(orders) == 5


def test_half_of_the_samples_are_mirrored_with_their_depth() -> None:
    batches = MixedBatches([Numbered("a", 1000)], [1], 10, seed=0)
    mirrored = []
    for k in range(100):
        batch = batches.batch(k)
        mirrored += flipped(batch)
        for rgb, is_flipped in zip(batch.rgb, flipped(batch), strict=True):
            assert rgb[0, 0, 0 if is_flipped else -1] == 1.0
    assert 0.45 < sum(mirrored) / len(mirrored) < 0.55  # 3 sigma of a thousand


@pytest.mark.parametrize(("flip", "expected"), [(0.0, {False}), (1.0, {True})])
def test_flips_can_be_never_or_always(flip: float, expected: set[bool]) -> None:
    batches = MixedBatches([Numbered("a", 40)], [1], 4, seed=0, flip=flip)
    assert {f for k in range(10) for f in flipped(batches.batch(k))} == expected


def test_a_damaged_sample_is_replaced_by_the_next_of_its_epoch_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    whole = MixedBatches([Numbered("a", 12)], [1], 4, seed=6)
    order = [n for k in range(3) for n in numbers(whole.batch(k))]
    bad = order[5]
    batches = MixedBatches([Numbered("a", 12, damaged=frozenset({bad}))], [1], 4, seed=6)
    with caplog.at_level(logging.WARNING):
        got = [n for k in range(3) for n in numbers(batches.batch(k))]
    assert got == [*order[:5], order[6], *order[6:]]
    assert batches.skipped == 1
    assert f"a/{bad}.png: cut short" in caplog.text


def test_less_than_one_per_cent_of_damaged_samples_is_borne() -> None:
    batches = MixedBatches([Numbered("a", 1000, damaged=frozenset(range(0, 900, 100)))], [1], 10, seed=0)
    for k in range(500):
        batches.batch(k)
    assert batches.skipped >= 9 * 5 > mixing.FEWEST_CORRUPT  # in five epochs


def test_more_than_one_per_cent_stops_the_run_with_one_line() -> None:
    batches = MixedBatches([Numbered("a", 1000, damaged=frozenset(range(0, 1000, 50)))], [1], 10, seed=0)
    line = r"^2\d of 1\d\d\d samples cannot be read, more than 1%; the last: a/\d+.png: cut short$"
    with pytest.raises(InputError, match=line):
        list(map(batches.batch, range(500)))
    assert mixing.FEWEST_CORRUPT <= batches.skipped <= mixing.FEWEST_CORRUPT + 10


def test_a_source_that_cannot_be_read_at_all_stops_at_once() -> None:
    batches = MixedBatches([Numbered("a", 5, damaged=frozenset(range(5)))], [1], 2, seed=0)
    with pytest.raises(InputError, match="a: 20 samples in a row cannot be read; the first: a/"):
        batches.batch(0)


def test_samples_of_two_sizes_need_a_crop() -> None:
    class TwoSizes(Numbered):
        def __getitem__(self, index: int) -> Sample:
            return Numbered("a", 10, size=(2, 3 + index % 2))[index]

    batches = MixedBatches([TwoSizes("a", 10)], [1], 8, seed=0)
    with pytest.raises(UsageError, match=r"is [34]x2 but a/\d is [34]x2, and a batch needs one size: give .* crop"):
        batches.batch(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": [], "weights": []}, "no data"),
        ({"weights": [1]}, "1 weights for 2 sources"),
        ({"weights": [1, 0]}, "the weight of b is 0"),
        ({"weights": [1, float("nan")]}, "the weight of b is nan"),
        ({"weights": [1, 1e-6]}, "less than 1/1000"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 3, "world_size": 2}, r"batch_size \(3\) must be a multiple .* \(2\)"),
        ({"world_size": 2, "rank": 2}, "give 0 to 1"),
        ({"flip": 1.5}, "no probability"),
        ({"seed": -1}, "negative"),
    ],
)
def test_settings_that_do_not_fit(arguments: dict[str, object], message: str) -> None:
    settings = {"sources": [Numbered("a", 5), Numbered("b", 5)], "weights": [1, 1], "batch_size": 4, "seed": 0}
    with pytest.raises(UsageError, match=message):
        MixedBatches(**(settings | arguments))


def test_an_empty_source_is_named() -> None:
    with pytest.raises(InputError, match="b holds no samples"):
        MixedBatches([Numbered("a", 5), Numbered("b", 0)], [1, 1], 4, seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_the_same_batches_and_count_the_same(workers: int) -> None:
    def made() -> MixedBatches:
        return MixedBatches([Numbered("a", 40, damaged=frozenset({7})), Numbered("b", 9)], [3, 1], 4, seed=4)

    alone, shared = made(), made()
    ks = range(3, 43, 2)
    read = read_by_workers(shared, ks, workers)
    assert all(same(batch, alone.batch(k)) for k, batch in zip(ks, read, strict=True))
    assert shared.skipped == alone.skipped > 0
    assert shared.drawn == alone.drawn


def test_workers_of_an_endless_run_can_be_left() -> None:
    read = read_by_workers(MixedBatches([Numbered("a", 40)], [1], 4, seed=4), itertools.count(), 1)
    assert len(next(read).names) == 4
    read.close()


def test_an_error_in_a_worker_is_the_same_line() -> None:
    batches = MixedBatches([Numbered("a", 5, damaged=frozenset(range(5)))], [1], 2, seed=0)
    with pytest.raises(InputError, match=r"^a: 20 samples in a row cannot be read; the first: [^\n]*$"):
        next(read_by_workers(batches, itertools.count(), 1))


def test_batches_travel_to_workers_that_start_afresh() -> None:
    batches = pickle.loads(pickle.dumps(MixedBatches([Numbered("a", 40)], [1], 4, seed=4)))  # as spawned ones get it
    assert same(batches.batch(3), MixedBatches([Numbered("a", 40)], [1], 4, seed=4).batch(3))
