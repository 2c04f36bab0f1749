"""Video mode: warm starts that can be resumed, ensembles on keyframes, and the sigma between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from marigold3d.depth import frames_to_read, stream
from marigold3d.depth.marigold import MarigoldEstimator
from marigold3d.depth.sampling import WARMTH
from marigold3d.depth.video_mode import SigmaLaw, segment_length
from marigold3d.errors import UsageError
from marigold3d.types import RelativeDepth

Frames = NDArray[np.uint8]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clip() -> Frames:
    """(40, 16, 24, 3) of noise: no frame looks like another."""
    return np.random.default_rng(3).integers(0, 256, (40, 16, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def estimator_of(make_marigold: Callable[..., Path]) -> Callable[..., MarigoldEstimator]:
    """`estimator_of(warm_start=..., sigma_every=..., ensemble=...)`, at the frames' own size, networks loaded once."""
    loaded = MarigoldEstimator(make_marigold(), device="cpu", dtype="float32", processing_resolution=0)

    def of(**settings: Any) -> MarigoldEstimator:
        fresh = object.__new__(MarigoldEstimator)
        vars(fresh).update(vars(loaded) | settings)
        return fresh

    return of


def depths(estimator: MarigoldEstimator, clip: Frames, positions: list[int]) -> dict[int, RelativeDepth]:
    frames = ((p, clip[p]) for p in positions)
    return {frame.position: frame.depth for frame in stream(estimator, frames)}


def test_a_warm_start_is_nine_tenths_noise_and_one_tenth_the_depth_before(
    estimator_of: Callable[..., MarigoldEstimator], clip: Frames
) -> None:
    """Step by step with diffusers' scheduler: latent = 0.9 noise + 0.1 the frame before's."""
    estimator = estimator_of(warm_start=True)
    assert WARMTH == 0.1
    noise = torch.randn((1, 4, 2, 3), generator=torch.Generator().manual_seed(estimator.seed))
    latent, expected = None, []
    with torch.no_grad():
        for rgb in clip[:3]:
            image_latent, _ = estimator.image_latent(rgb[None])
            x = noise if latent is None else 0.9 * noise + 0.1 * latent
            (t,) = estimator.timesteps()
            v = estimator.predict_noise(image_latent, x, t)
            latent = estimator.model.scheduler.step(v, t, x).prev_sample
            expected.append(estimator.decode(latent)[0, 0].numpy())
    found = depths(estimator, clip, [0, 1, 2])
    np.testing.assert_allclose([found[p].values for p in range(3)], expected, atol=1e-5)
    cold = depths(estimator_of(), clip, [0, 1, 2])
    np.testing.assert_array_equal(cold[0].values, found[0].values)
    assert np.abs(cold[2].values - found[2].values).max() > 1e-3


def test_a_resumed_warm_run_gives_identical_bytes(estimator_of: Callable[..., MarigoldEstimator], clip: Frames) -> None:
    estimator = estimator_of(warm_start=True)
    positions = [*range(20), *range(23, 40)]  # a gap, and position 32, where a chain ends
    whole = depths(estimator, clip, positions)
    done = {*range(10), *range(23, 35)}
    read = frames_to_read(estimator, positions, done)
    assert read == [*range(20), *range(32, 40)]
    for position, depth in depths(estimator, clip, read).items():
        assert depth.values.tobytes() == whole[position].values.tobytes()
    # Behind a gap and at a new segment, a frame is as if it were the first.
    cold = depths(estimator_of(), clip, [23, 32])
    for position in (23, 32):
        np.testing.assert_array_equal(cold[position].values, whole[position].values)


def test_keyframes_alone_get_ensembles(
    estimator_of: Callable[..., MarigoldEstimator], clip: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator = estimator_of(ensemble=4, sigma_every=3)
    asked: list[int] = []
    run = estimator.predict

    def predict(rgb: Frames, members: Sequence[int], before: torch.Tensor | None = None) -> Any:
        asked.extend(members)
        return run(rgb, members, before)

    monkeypatch.setattr(estimator, "predict", predict)
    found = depths(estimator, clip, [0, 1, 2, 3, 4, 7, 8])
    assert asked == [4, 1, 1, 4, 1, 4, 1]  # 7 comes behind a gap
    single = depths(estimator_of(), clip, [0, 1, 2, 3, 4, 7, 8])
    for position, depth in found.items():
        np.testing.assert_allclose(depth.values, single[position].values, atol=1e-6)
        assert depth.uncertainty is not None
        assert depth.uncertainty.mean() > 1e-3


def test_sigma_of_a_keyframe_is_in_the_units_of_its_depth(
    estimator_of: Callable[..., MarigoldEstimator], clip: Frames
) -> None:
    """The ensemble's own map is stretched to 0..1; on a keyframe, depth and sigma shrink by the same factor."""
    merged = estimator_of(ensemble=4).estimate(clip[:1])[0]
    key = depths(estimator_of(ensemble=4, sigma_every=2), clip, [0])[0]
    assert merged.uncertainty is not None
    assert key.uncertainty is not None
    slope = np.polyfit(merged.values.ravel(), key.values.ravel(), 1)[0]
    np.testing.assert_allclose(key.uncertainty, slope * merged.uncertainty, rtol=1e-3, atol=1e-6)


def test_video_mode_with_all_at_once_resumes_too(estimator_of: Callable[..., MarigoldEstimator], clip: Frames) -> None:
    estimator = estimator_of(warm_start=True, ensemble=3, sigma_every=5)
    assert estimator.segment == 35
    whole = depths(estimator, clip, list(range(8)))
    again = depths(estimator, clip, frames_to_read(estimator, list(range(8)), {0, 1, 2, 6}))
    for position, depth in again.items():
        assert depth.values.tobytes() == whole[position].values.tobytes()
        assert depth.uncertainty is not None
        assert depth.uncertainty.tobytes() == whole[position].uncertainty.tobytes()  # type: ignore[union-attr]


def test_segments_are_whole_numbers_of_keyframe_intervals() -> None:
    assert segment_length(False, 1) == 1
    assert segment_length(False, 7) == 7
    assert segment_length(True, 1) == 32
    for every in range(1, 50):
        assert segment_length(True, every) % every == 0
        assert segment_length(True, every) >= 32


def test_the_law_of_sigma_is_recovered(rng: np.random.Generator) -> None:
    depth = rng.random((30, 40)).astype(np.float32)
    steepness = np.hypot(*np.gradient(depth))
    law = SigmaLaw.fitted(depth, (0.02 + 0.3 * steepness).astype(np.float32))
    np.testing.assert_allclose((law.level, law.slope), (0.02, 0.3), rtol=1e-4)
    falling = SigmaLaw.fitted(depth, (1 - 0.3 * steepness).astype(np.float32))
    assert falling.slope == 0
    through_zero = SigmaLaw.fitted(depth, np.maximum(steepness - 0.2, 0).astype(np.float32))
    assert through_zero.level == 0
    assert through_zero.slope > 0
    flat = SigmaLaw.fitted(np.zeros((4, 5), np.float32), np.full((4, 5), 0.1, np.float32))
    np.testing.assert_allclose(flat(depth), 0.1, rtol=1e-6)


def test_settings_that_contradict_the_checkpoint(make_marigold: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="--warm-start"):
        MarigoldEstimator(make_marigold(), noise="zeros", warm_start=True, device="cpu")
    with pytest.raises(UsageError, match="--sigma-every"):
        MarigoldEstimator(make_marigold(), sigma_every=0, device="cpu")
    assert MarigoldEstimator(make_marigold(), sigma_every=5, device="cpu").segment == 1, "without an ensemble, no sigma"
