"""The joint alignment of clips: known depth comes back from cues, poses or flow; what is not determined is said so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from marigold3d.align.alignment import Alignment, solve_clip
from marigold3d.align.domains import from_domain, to_domain
from marigold3d.align.flow import Flow
from marigold3d.align.joint import CueRows, JointSettings, Stretch
from marigold3d.align.solve import Solution, solve_stretch, start_values
from marigold3d.errors import GeometryError, InputError, UsageError
from marigold3d.progress import run
from marigold3d.types import Domain, RelativeDepth, SparseCues
from tests.joint_clips import DOMAINS, NoisyClip, noisy_clip
from tests.test_joint import same_pixels, stretch_of

SIZE = (120, 90)
SMALL = JointSettings(samples=60)
domains = pytest.mark.parametrize("domain", DOMAINS)
_made: dict[tuple[object, ...], NoisyClip] = {}


def clip_of(count: int, domain: Domain, **options: object) -> NoisyClip:
    """Rendered once."""
    key = (count, domain, *sorted(options.items()))
    if key not in _made:
        _made[key] = noisy_clip(count, domain, size=SIZE, **options)  # type: ignore[arg-type]
    return _made[key]


def solved(clip: NoisyClip, cues: dict[int, SparseCues] | None = None, **options: object) -> Alignment:
    """By poses."""
    options = {"settings": SMALL, **options}
    return solve_clip(clip.relative, cues, camera=clip.camera, T_world_camera=clip.T_world_camera, **options)  # type: ignore[arg-type]


def depths(clip: NoisyClip, alignment: Alignment) -> np.ndarray:
    """(T, H, W), NaN where there is none."""
    maps = [alignment.apply(i, r) for i, r in enumerate(clip.relative)]
    return np.stack([np.where(m.valid, m.depth, np.nan) for m in maps])


def abs_rel(z: np.ndarray, truth: np.ndarray) -> float:
    assert np.isfinite(z).mean() > 0.95
    return float(np.nanmean(np.abs(z / truth - 1)))


def frame_scales(z: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(T,) log of how many times too far each frame lies."""
    return np.asarray(np.nanmedian(np.log(z / truth), axis=(1, 2)))


def regional_flicker(z: np.ndarray) -> float:
    """Mean over consecutive maps (T, H, W) of a camera that stood still: RMS over a 4 x 3 grid of median log ratios."""
    steps = np.diff(np.log(z), axis=0)
    regions = [c for rows in np.array_split(steps, 3, axis=1) for c in np.array_split(rows, 4, axis=2)]
    return float(np.sqrt(np.mean(np.square([np.nanmedian(r, axis=(1, 2)) for r in regions]), axis=0)).mean())


def after_one_affine_map(z: np.ndarray, truth: np.ndarray, domain: Domain) -> np.ndarray:
    """The clip after the one map y -> a y + b that brings it nearest to truth: what nothing in it can tell."""
    y, target = (to_domain(depth.ravel(), domain) for depth in (z, truth))
    good, w = np.isfinite(y), np.ones(y.size)
    for _ in range(10):
        a, b = np.polyfit(y[good], target[good], 1, w=np.sqrt(w[good]))
        r = np.abs(a * y + b - target)
        w = 1 / np.maximum(r / (1.4826 * np.nanmedian(r)), 1.345)
    assert a > 0
    mapped = from_domain(a * to_domain(z, domain) + b, domain)
    return np.where(mapped > 0, mapped, np.nan)


# -- cues -------------------------------------------------------------------------------------------------------------


@domains
@pytest.mark.parametrize(("static", "outliers"), [(True, 0.3), (False, 0.0), (False, 0.3)])
def test_cues_in_every_frame_give_its_depth(domain: Domain, static: bool, outliers: float) -> None:
    clip = clip_of(30, domain, static=static)
    alignment = solved(clip, clip.cues(outliers=outliers))
    z = depths(clip, alignment)
    assert abs_rel(z, clip.truth) < 0.026  # white noise of 2 % alone makes 0.016
    assert np.median(np.abs(frame_scales(z, clip.truth))) < 0.005
    assert np.abs(frame_scales(z, clip.truth)).max() < 0.02
    assert alignment.verdicts == {"scale and shift": 30}
    assert alignment.cues.tolist() == [100] * 30
    assert np.mean(alignment.rejected) == pytest.approx(100 * outliers, abs=3)
    assert alignment.scaled_by_cues


@domains
@pytest.mark.parametrize("static", [True, False])
def test_cues_in_one_frame_give_the_depth_of_all(domain: Domain, static: bool) -> None:
    clip = clip_of(60, domain, static=static)
    alignment = solved(clip, clip.cues([30], outliers=0.3))
    z = depths(clip, alignment)
    assert abs_rel(z, clip.truth) < 0.027
    assert np.median(np.abs(frame_scales(z, clip.truth))) < 0.01
    assert np.nanmean(alignment.flicker.before) > 10 * np.nanmean(alignment.flicker.after)
    assert alignment.verdicts == {"scale and shift": 60}
    assert [f.fit.verdict == "aligned to other frames" for f in alignment.frames if f].count(True) == 59
    # Scale and shift themselves are known less well than depth: the field, which is smooth too, makes up for them.
    scale, shift = (np.array([getattr(f.fit, k) for f in alignment.frames if f]) for k in ("scale", "shift"))
    range_of_y = np.array([np.ptp(s * r.values) for s, r in zip(clip.scale, clip.relative, strict=True)])
    assert np.median(np.abs(scale / clip.scale - 1)) < 0.08
    assert np.median(np.abs(shift - clip.shift) / range_of_y) < 0.08


@domains
def test_scale_and_shift_are_exact_where_the_network_is(domain: Domain) -> None:
    """White noise only: nothing for the field to make up for."""
    clip = clip_of(30, domain, distortion=0.0)
    alignment = solved(clip, clip.cues([15]))
    scale, shift = (np.array([getattr(f.fit, k) for f in alignment.frames if f]) for k in ("scale", "shift"))
    range_of_y = np.array([np.ptp(s * r.values) for s, r in zip(clip.scale, clip.relative, strict=True)])
    assert np.median(np.abs(scale / clip.scale - 1)) < 0.05
    assert np.median(np.abs(shift - clip.shift) / range_of_y) < 0.05
    assert abs_rel(depths(clip, alignment), clip.truth) < 0.022


@domains
def test_a_single_cue_sets_the_scale(domain: Domain) -> None:
    clip = clip_of(12, domain)
    exact = replace(clip.cues([6], count=1)[6], sigma=None)
    alignment = solved(clip, {6: exact})
    assert alignment.scaled_by_cues
    (column, row), z = exact.uv[0].astype(int), alignment.apply(6, clip.relative[6])
    assert z.depth[row, column] == pytest.approx(exact.depth[0], rel=0.08)


# -- consistency without cues -----------------------------------------------------------------------------------------


@domains
def test_a_camera_that_stood_still_is_consistent_without_cues(domain: Domain) -> None:
    """Contrast is not determined then (in depth and disparity far : near = 8 is assumed, which magnifies every error).

    After the clip's one free affine map, depth is as good as with cues, and hardly flickers.
    """
    clip = clip_of(30, domain, static=True)
    alignment = solved(clip)
    z = after_one_affine_map(depths(clip, alignment), clip.truth, domain)
    assert abs_rel(z, clip.truth) < 0.03
    assert np.abs(frame_scales(z, clip.truth)).max() < 0.01
    raw = np.stack([r.values for r in clip.relative])
    alone = [after_one_affine_map(from_domain(y[None], domain), clip.truth[:1], domain) for y in raw + 0.0]
    assert regional_flicker(z) < {"depth": 0.014, "disparity": 0.024, "log_depth": 0.009}[domain]
    assert regional_flicker(np.concatenate(alone)) > 0.02, (
        "each frame by its own best map: the bent network still shows"
    )
    assert not alignment.scaled_by_cues
    if domain == "log_depth":
        assert np.nanmean(alignment.flicker.before) > 10 * np.nanmean(alignment.flicker.after)


@domains
@pytest.mark.parametrize("seed", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_parallax_alone_gives_the_scale_of_the_poses(domain: Domain, seed: int) -> None:
    clip = clip_of(40, domain, seed=seed)
    z = depths(clip, solved(clip))
    scales = frame_scales(z, clip.truth)
    assert abs(np.median(scales)) < 0.12
    assert scales.std() < 0.01  # the frames agree with each other far better than with the poses' unit
    assert abs_rel(z * np.exp(-np.median(scales)), clip.truth) < 0.05


def test_flow_ties_frames_as_poses_do() -> None:
    clip = clip_of(20, "log_depth", static=True)
    flow = Flow(np.zeros((9, 12, 2), np.float32), np.ones((9, 12), bool))
    cues = clip.cues([3])
    by_flow = solve_clip(clip.relative, cues, flow=lambda i, j: flow, settings=SMALL)
    np.testing.assert_allclose(depths(clip, by_flow), depths(clip, solved(clip, cues)), rtol=5e-3)


def test_a_moving_object_leaves_the_rest_right() -> None:
    """A quarter of the picture comes nearer and goes again, before a camera that stands still."""
    count, (width, height) = 40, SIZE
    still = noisy_clip(count, "depth", static=True, size=SIZE)
    box = np.zeros((height, width), bool)
    box[height // 3 : -5, width // 4 : 3 * width // 4 - 5] = True
    assert 0.2 < box.mean() < 0.3
    distance = 1.4 + 0.5 * np.sin(np.arange(count) / 6)
    truth = np.where(box, distance[:, None, None], still.truth)
    relative = [
        RelativeDepth(((y - t) / s).astype(np.float32), "depth")
        for y, s, t in zip(truth * (_believed(still) / still.truth), still.scale, still.shift, strict=True)
    ]
    clip = replace(still, truth=truth, relative=relative)
    alignment = solved(clip, clip.cues([20]))
    static_part = np.where(box, np.nan, depths(clip, alignment))
    ratio = np.log(static_part / truth)
    assert np.nanmean(np.abs(np.expm1(ratio))) < 0.036
    assert np.abs(np.nanmedian(ratio, axis=(1, 2))).max() < 0.02


def _believed(clip: NoisyClip) -> np.ndarray:
    """Depth in scene units as the network sees it, its own affine map undone."""
    values = np.stack([r.values for r in clip.relative])
    return np.asarray(clip.scale[:, None, None] * values + clip.shift[:, None, None])


def test_a_camera_without_parallax_leaves_the_scale_as_assumed() -> None:
    """A scene of a moving clip in which the camera stands still: no scale, but none that is absurd either."""
    clip = clip_of(20, "depth", static=True)
    moving = clip.T_world_camera.copy()
    moving[:10, 0, 3] += np.linspace(0, 1, 10)
    alignment = solved(replace(clip, T_world_camera=moving), cuts=[10])
    z = np.stack([alignment.apply(i, clip.relative[i]).depth for i in range(10, 20)])
    assert np.median(z) == pytest.approx(1.0, rel=0.2)


# -- scenes and gaps --------------------------------------------------------------------------------------------------


def test_scenes_are_solved_apart() -> None:
    """The second scene has no cues, and other depth; the first is what it is without it."""
    clip = clip_of(30, "depth")
    near = [RelativeDepth(np.exp(r.values), r.domain) for r in clip.relative[20:]]
    both = replace(clip, relative=clip.relative[:20] + near)
    cues = clip.cues([5])
    whole = solved(both, cues, cuts=[20])
    assert whole.segment.tolist() == [0] * 20 + [1] * 10
    assert not whole.scaled_by_cues
    first = solve_clip(
        clip.relative[:20], cues, camera=clip.camera, T_world_camera=clip.T_world_camera[:20], settings=SMALL
    )
    alone = np.stack([first.apply(i, clip.relative[i]).depth for i in range(20)])
    np.testing.assert_allclose(depths(both, whole)[:20], alone, rtol=0.02)
    assert np.isnan(whole.flicker.after[19]), "a cut is no flicker"
    assert np.isfinite(np.delete(whole.flicker.after, 19)).all()


def test_a_cut_at_the_start_or_named_twice_changes_nothing() -> None:
    clip = clip_of(12, "depth")
    cues = clip.cues([2, 8])
    alignment = solved(clip, cues, cuts=[0, 6, 6])
    assert alignment.segment.tolist() == [0] * 6 + [1] * 6
    assert alignment.scaled_by_cues
    assert abs_rel(depths(clip, alignment), clip.truth) < 0.04


@domains
def test_frames_without_depth_are_not_aligned_and_harm_nobody(domain: Domain) -> None:
    clip = clip_of(30, domain)
    empty = RelativeDepth(np.full_like(clip.relative[0].values, np.nan), domain)
    relative = [empty if i in (0, 7, 8) else r for i, r in enumerate(clip.relative)]
    cues = clip.cues([7, 15])
    alignment = solved(replace(clip, relative=relative), cues)
    assert [i for i, f in enumerate(alignment.frames) if f is None] == [0, 7, 8]
    assert alignment.verdicts == {"scale and shift": 27, "not aligned": 3}
    assert not alignment.apply(7, empty).valid.any()
    others = [i for i in range(30) if i not in (0, 7, 8)]
    z = np.stack([alignment.apply(i, relative[i]).depth for i in others])
    assert abs_rel(z, clip.truth[others]) < 0.03


def test_patches_without_depth_stay_without() -> None:
    clip = clip_of(12, "disparity")
    relative = []
    for r in clip.relative:
        values = r.values.copy()
        values[:20, :30] = np.nan
        relative.append(RelativeDepth(values, "disparity"))
    alignment = solved(replace(clip, relative=relative), clip.cues())
    for i, r in enumerate(relative):
        z = alignment.apply(i, r)
        assert not z.valid[:20, :30].any()
        assert abs_rel(np.where(z.valid, z.depth, np.nan)[20:], clip.truth[i, 20:]) < 0.04


def test_a_frame_tied_to_nothing_is_not_aligned() -> None:
    clip = clip_of(12, "depth", static=True)
    flow = Flow(np.zeros((9, 12, 2), np.float32), np.ones((9, 12), bool))

    def but_for_one(i: int, j: int) -> Flow | None:
        return None if 4 in (i, j) else flow

    alignment = solve_clip(clip.relative, clip.cues([2]), flow=but_for_one, settings=SMALL)
    assert [i for i, f in enumerate(alignment.frames) if f is None] == [4]
    with_cues = solve_clip(clip.relative, clip.cues([2, 4]), flow=but_for_one, settings=SMALL)
    assert with_cues.frames[4] is not None
    assert abs_rel(with_cues.apply(4, clip.relative[4]).depth, clip.truth[4]) < 0.04


@pytest.mark.parametrize("count", [1, 2])
@domains
def test_one_and_two_frames(domain: Domain, count: int) -> None:
    clip = clip_of(12, domain)
    few = replace(
        clip, truth=clip.truth[:count], relative=clip.relative[:count], T_world_camera=clip.T_world_camera[:count]
    )
    alignment = solved(few, {0: clip.cues([0])[0]})
    assert len(alignment) == count
    assert alignment.flicker.after.shape == (count - 1,)
    assert abs_rel(depths(few, alignment), few.truth) < 0.045
    assert len(solved(few)) == count  # without cues


# -- windows ----------------------------------------------------------------------------------------------------------


def windowed(clip: NoisyClip, cued: list[int], window_blocks: int) -> tuple[Stretch, Solution]:
    settings = JointSettings(samples=40, field_columns=4, dilations=(1, 5))
    stretch = stretch_of(clip, same_pixels, settings)
    sampled = np.stack([stretch.grid.samples(r) for r in clip.relative])
    slope, low = np.polyfit(sampled[0][::9], stretch.values[0][::9], 1)  # the clip's one map: v' = slope v + low
    rows, known = {}, {}
    for i, cue in clip.cues(cued).items():
        column, row = cue.uv.astype(int).T
        v = (slope * clip.relative[i].values[row, column] + low).astype(np.float32)
        sigma = (cue.sigma / cue.depth).astype(np.float32)  # type: ignore[operator]
        rows[i] = CueRows(v, np.log(cue.depth).astype(np.float32), sigma, cue.uv.astype(np.float32), 1.0)
        known[i] = float(np.log(clip.scale[i] / slope)), float(clip.shift[i] - clip.scale[i] * low / slope)
    stretch = replace(stretch, cues=rows)
    start, _ = start_values(stretch, known)
    sure = np.zeros((len(stretch), 2), bool)
    sure[list(known)] = True
    return stretch, run(solve_stretch(stretch, start, sure, window_blocks))


@pytest.mark.parametrize("cued", [[2], [57], []], ids=["in the first", "in the last", "nowhere"])
@pytest.mark.parametrize("domain", ["depth", "log_depth"])
def test_windows_give_what_one_solve_of_the_whole_clip_gives(domain: Domain, cued: list[int]) -> None:
    clip = clip_of(60, domain, static=True)
    (stretch, whole), (_, parts) = (windowed(clip, cued, blocks) for blocks in (64, 4))
    one, other = (np.stack([stretch.surface(i, t).log_z for i, t in enumerate(s.theta)]) for s in (whole, parts))
    apart = np.nanmedian(other - one, axis=1)
    assert np.abs(apart - np.median(apart)).max() < 0.02
    if cued:
        assert np.abs(apart).max() < 0.02
    # No seam: the windows begin at frames 10, 20, 30 ..., where depth jumps no more than elsewhere.
    jumps = np.nanmedian(np.abs(np.diff(np.nan_to_num(other), axis=0)), axis=1)
    seams = np.zeros(len(jumps), bool)
    seams[9::10] = True
    assert jumps[seams].mean() < 1.25 * jumps[~seams].mean()


# -- invariances ------------------------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_output() -> None:
    clip = clip_of(12, "depth")
    one, other = (depths(clip, solved(clip, clip.cues([4]))) for _ in range(2))
    np.testing.assert_array_equal(one, other)


@domains
def test_the_order_of_time_does_not_matter(domain: Domain) -> None:
    clip = clip_of(30, domain)
    cues = clip.cues([4, 20])
    backwards = replace(
        clip, truth=clip.truth[::-1], relative=clip.relative[::-1], T_world_camera=clip.T_world_camera[::-1]
    )
    one = depths(clip, solved(clip, cues))
    other = depths(backwards, solved(backwards, {29 - i: c for i, c in cues.items()}))[::-1]
    # A link moves the earlier frame's samples into the later one, so other samples meet.
    assert np.nanmedian(np.abs(other / one - 1)) < 0.01
    assert np.abs(frame_scales(other, one)).max() < 0.012


@domains
@pytest.mark.parametrize("factor", [1e-2, 100.0])
def test_units_do_not_matter(domain: Domain, factor: float) -> None:
    clip = clip_of(20, domain)
    cues = clip.cues([4, 12])
    poses = clip.T_world_camera.copy()
    poses[:, :3, 3] *= factor
    larger = {
        i: replace(c, depth=factor * c.depth, sigma=None if c.sigma is None else factor * c.sigma)
        for i, c in cues.items()
    }
    one = depths(clip, solved(clip, cues))
    other = depths(clip, solved(replace(clip, T_world_camera=poses), larger))
    np.testing.assert_allclose(other / factor, one, rtol=5e-3)


# -- what the covariances say -----------------------------------------------------------------------------------------


@pytest.mark.slow
@domains
@pytest.mark.parametrize("distortion", [0.0, 0.015])
def test_intervals_of_the_scale_hold_the_truth(domain: Domain, distortion: float) -> None:
    """In 85 to 100 % of frames: a network's smooth errors are its own, so no factor fits them all."""
    hits = []
    for seed in range(5):
        clip = noisy_clip(20, domain, size=SIZE, seed=seed, distortion=distortion)
        alignment = solved(clip, clip.cues(range(0, 20, 5), seed=seed + 50))
        for f, scale in zip(alignment.frames, clip.scale, strict=True):
            assert f is not None
            hits.append(abs(f.fit.scale - scale) < 1.96 * np.sqrt(f.fit.covariance[0, 0]))
    assert np.mean(hits) > 0.85


# -- refused ----------------------------------------------------------------------------------------------------------


def test_arguments_at_odds_are_refused() -> None:
    clip = clip_of(12, "depth")
    with pytest.raises(UsageError, match="go together"):
        solve_clip(clip.relative, clip.cues([0]), camera=clip.camera)
    with pytest.raises(UsageError, match="go together"):
        solve_clip(clip.relative, clip.cues([0]), T_world_camera=clip.T_world_camera)
    with pytest.raises(UsageError, match="12 depth maps but 11 camera poses"):
        solve_clip(clip.relative, camera=clip.camera, T_world_camera=clip.T_world_camera[1:])
    other = RelativeDepth(clip.relative[0].values, "disparity")
    with pytest.raises(UsageError, match="depth map 1 differs"):
        solve_clip([clip.relative[0], other], clip.cues([0]))
    smaller = RelativeDepth(clip.relative[0].values[1:], "depth")
    with pytest.raises(UsageError, match="depth map 1 differs"):
        solve_clip([clip.relative[0], smaller], clip.cues([0]))


def test_nothing_to_go_by_is_said_so() -> None:
    clip = clip_of(12, "depth")
    with pytest.raises(GeometryError, match="nothing to align by"):
        solve_clip(clip.relative)
    with pytest.raises(GeometryError, match="nothing to align by"):
        solve_clip(clip.relative, {0: SparseCues.empty()})
    with pytest.raises(GeometryError, match="no depth maps"):
        solve_clip([])
    empty = RelativeDepth(np.full((90, 120), np.nan, np.float32), "depth")
    with pytest.raises(GeometryError, match="no frame has any depth"):
        solve_clip([empty, empty], camera=clip.camera, T_world_camera=clip.T_world_camera[:2])


@pytest.mark.parametrize("depth", [-1.0, 0.0, np.nan])
def test_cues_that_are_no_depth_are_refused(depth: float) -> None:
    with pytest.raises(InputError, match=r"positive|finite"):
        SparseCues(np.array([[3.0, 4.0]]), np.array([depth]))


def test_cues_alone_align_their_own_frames() -> None:
    """Neither poses nor flow: frames without cues have nothing."""
    clip = clip_of(12, "depth")
    alignment = solve_clip(clip.relative, clip.cues(range(6)), settings=SMALL)
    assert [f is not None for f in alignment.frames] == [True] * 6 + [False] * 6
    z = np.stack([alignment.apply(i, clip.relative[i]).depth for i in range(6)])
    assert abs_rel(z, clip.truth[:6]) < 0.035


def test_the_report_has_a_row_a_frame() -> None:
    clip = clip_of(12, "depth")
    report = solved(clip, clip.cues([4]), cuts=[10]).as_dict()
    assert {len(column) for column in report["frames"].values()} == {12}  # type: ignore[attr-defined]
    assert report["frames"]["cues"][4] == 100  # type: ignore[index]
    assert set(report["flicker"]) == {"before", "after", "series_before", "series_after"}  # type: ignore[call-overload]
