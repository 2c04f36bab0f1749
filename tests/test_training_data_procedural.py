"""Procedural scenes as an endless source: determined by seed and index, of any size, mix and device."""

import numpy as np
import pytest
import torch

from marigold3d.errors import UsageError
from training import pool
from training.data import open_sources
from training.data.mixing import MixedBatches
from training.data.procedural import Procedural, is_indoor
from training.data.samples import ENDLESS, Sample

pytestmark = pytest.mark.usefixtures("one_thread")


def same(a: Sample, b: Sample) -> bool:
    return a.name == b.name and all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("rgb", "depth_m", "valid"))


def test_a_sample_follows_from_seed_and_index_alone() -> None:
    source = Procedural(24, 32, seed=5)
    forwards = [source[i] for i in range(4)]
    other = Procedural(24, 32, seed=5)
    assert all(same(other[i], forwards[i]) for i in (3, 1, 2, 0))
    assert not torch.equal(Procedural(24, 32, seed=6)[0].rgb, forwards[0].rgb)
    assert len({sample.rgb.numpy().tobytes() for sample in forwards}) == 4


def test_samples_have_their_shapes_types_and_range() -> None:
    (source,) = open_sources([{"kind": "procedural", "height": 24, "width": 40, "seed": 1, "weight": 1.0}])
    for i in range(6):
        sample = source[i]
        assert sample.rgb.shape == (3, 24, 40)
        assert sample.rgb.dtype == torch.uint8
        assert sample.depth_m.dtype == torch.float32
        assert sample.valid.dtype == torch.bool
        known = sample.depth_m[sample.valid]
        assert (known >= pool.NEAR_M).all()
        assert (known < pool.FAR_M).all()
        assert (sample.depth_m[~sample.valid] == 0).all()
        assert sample.rgb.float().std() > 1


def test_it_has_no_end() -> None:
    source = Procedural(8, 8)
    assert len(source) == ENDLESS
    assert source[ENDLESS - 1].rgb.shape == (3, 8, 8)
    for index in (-1, ENDLESS):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize(
    ("domains", "count", "expected"),
    [({"indoor": 1.0}, 20, 1.0), ({"outdoor": 2.0}, 20, 0.0), ({"indoor": 3, "outdoor": 1}, 80, 0.75)],
)
def test_the_mix_of_domains_can_be_chosen(domains: dict[str, float], count: int, expected: float) -> None:
    source = Procedural(8, 8, domains=domains)
    indoor = [is_indoor(source.shot(np.random.default_rng(i))) for i in range(count)]
    assert np.mean(indoor) == pytest.approx(expected, abs=0.15 if 0 < expected < 1 else 0.0)  # 3 sigma


def test_depth_is_not_rounded() -> None:
    """A pool on disk keeps half floats, a fifth of a per cent apart; here, single ones."""
    depth_m = Procedural(24, 32)[0].depth_m
    assert len(depth_m[depth_m > 0].unique()) > len(depth_m[depth_m > 0].log().half().unique())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 0}, "0x8 is no size"),
        ({"seed": -1}, "seed=-1"),
        ({"device": "tpu"}, "tpu"),
        ({"domains": {"indoors": 1}}, "no domain 'indoors': use indoor and outdoor"),
        ({"domains": {"indoor": 0}}, "are no shares"),
        ({"domains": {"indoor": -1, "outdoor": 2}}, "are no shares"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Procedural(**({"height": 8, "width": 8} | settings))


def test_batches_of_it_can_be_had_from_anywhere() -> None:
    batches = MixedBatches([Procedural(12, 16, seed=3)], [1], 2, seed=0)
    late = batches.batch(10**6)
    assert late.names == ("procedural/3/2000000", "procedural/3/2000001")
    assert torch.equal(late.rgb, MixedBatches([Procedural(12, 16, seed=3)], [1], 2, seed=0).batch(10**6).rgb)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_renders_the_same_scene_and_keeps_it() -> None:
    ours, theirs = Procedural(96, 128, seed=2)[0], Procedural(96, 128, seed=2, device="cuda")[0]
    assert theirs.rgb.device.type == theirs.depth_m.device.type == theirs.valid.device.type == "cuda"
    close = (theirs.depth_m.cpu() - ours.depth_m).abs() < 1e-3 * ours.depth_m + 1e-6
    assert close.float().mean() > 0.995
    assert (theirs.rgb.cpu().int() - ours.rgb.int()).abs().float().mean() < 1.0
