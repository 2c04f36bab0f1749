"""Known lengths: what they make of the scale, and distances measured in a finished scene."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from marigold3d.camera import normalised, project
from marigold3d.config import AlignConfig, PoseConfig, RunConfig
from marigold3d.cues import ClipFrames, Measurement, distance, parse_measure, scale_from_measures
from marigold3d.errors import GeometryError, UsageError
from marigold3d.rigid import inverse, transform
from marigold3d.stages import check_known
from marigold3d.types import DepthMap, Intrinsics
from tests import synthetic
from tests.data_paths import data_path

CAMERA = synthetic.camera(192, 144)
POSES = synthetic.walk(4, length=0.5)
CLIP = ClipFrames(np.array([0, 4, 8, 12]), np.arange(4) * 0.4, (384, 288), CAMERA)
# Pairs of points on the far wall of the room (z = 3.2), as the room has them.
WALL = [
    ((-0.9, -0.7, 3.2), (0.8, -0.6, 3.2)),
    ((-0.8, -0.8, 3.2), (-0.7, 0.5, 3.2)),
    ((-0.9, 0.2, 3.2), (0.6, -0.8, 3.2)),
]


def depth_of(position: int, factor: float = 1.0, share: float | None = 0.01) -> DepthMap:
    z = synthetic.depth_of(CAMERA, POSES[position])
    depth = DepthMap(z, np.ones(z.shape, bool), None if share is None else np.float32(share) * z)
    return depth.scaled(factor)


def measures(metres: float = 1.0) -> list[Measurement]:
    """The pairs on the wall, each in a frame of its own, where one unit of the room is `metres`."""
    out = []
    for i, pair in enumerate(WALL):
        points = np.array(pair)
        uv = project(transform(inverse(POSES[i]), points), CAMERA) * 2
        length = float(np.linalg.norm(points[1] - points[0])) * metres
        out.append(Measurement(int(CLIP.indices[i]), tuple(uv[0]), tuple(uv[1]), length))
    return out


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_the_scale_is_recovered_whatever_the_scenes_unit(unit: float, metres: float) -> None:
    found = scale_from_measures(measures(metres), lambda p: depth_of(p, unit), CLIP)
    assert found.factor == pytest.approx(metres / unit, rel=0.005)
    assert found.n == 3
    assert not found.rejected
    assert found.sigma < 0.3 * found.factor
    for length in found.lengths:
        assert length.after == pytest.approx(length.measurement.length_m, rel=0.01)
        assert length.before * found.factor == pytest.approx(length.after)


def across_frames(metres: float = 1.0) -> list[Measurement]:
    """The same pairs, each with its ends in two frames."""
    out = []
    for i, pair in enumerate(WALL):
        uv = [
            project(transform(inverse(POSES[p]), np.array(end)), CAMERA) * 2
            for p, end in zip((i, 3 - i), pair, strict=True)
        ]
        length = float(np.linalg.norm(np.subtract(*pair))) * metres
        frames = int(CLIP.indices[i]), int(CLIP.indices[3 - i])
        out.append(Measurement(frames[0], tuple(uv[0]), tuple(uv[1]), length, frame_b=frames[1]))
    return out


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_lengths_between_two_frames_give_the_same_scale(unit: float, metres: float) -> None:
    T = POSES.copy()
    T[:, :3, 3] *= unit
    found = scale_from_measures(across_frames(metres), lambda p: depth_of(p, unit), CLIP, T)
    assert found.factor == pytest.approx(metres / unit, rel=0.005)
    assert found.n == 3
    one_frame = scale_from_measures(measures(metres), lambda p: depth_of(p, unit), CLIP, T)
    assert found.sigma == pytest.approx(one_frame.sigma, rel=0.3)


def test_poses_do_not_matter_to_a_length_in_one_frame() -> None:
    with_poses = scale_from_measures(measures(), depth_of, CLIP, POSES)
    without = scale_from_measures(measures(), depth_of, CLIP)
    assert (with_poses.factor, with_poses.sigma) == pytest.approx((without.factor, without.sigma), rel=1e-9)


def test_a_length_between_two_frames_needs_poses() -> None:
    with pytest.raises(UsageError, match="two frames, which --no-poses leaves apart"):
        scale_from_measures([*measures(), across_frames()[0]], depth_of, CLIP)


def test_a_length_between_two_frames_without_poses_is_refused_before_the_work() -> None:
    two, one = AlignConfig(measures=("1,2@0,3,4@9=1",)), AlignConfig(measures=("1,2,3,4,9=1",))
    with pytest.raises(UsageError, match="two frames"):
        check_known(RunConfig(align=two, poses=PoseConfig("none")))
    check_known(RunConfig(align=two))
    check_known(RunConfig(align=one, poses=PoseConfig("none")))


def test_sigma_of_a_length_between_two_frames_is_what_noise_makes_of_it(rng: np.random.Generator) -> None:
    """Depth off by its sigma in either frame, and pixels by half a one."""
    measure, lengths = across_frames()[0], []
    exact = scale_from_measures([measure], lambda p: depth_of(p, share=0.03), CLIP, POSES).lengths[0]
    for _ in range(400):
        off = dict(zip((0, 3), 1 + 0.03 * rng.normal(size=2), strict=True))
        a, b = (tuple(np.add(uv, rng.normal(size=2))) for uv in (measure.uv_a, measure.uv_b))  # 0.5 px of the maps
        noisy = Measurement(measure.frame, a, b, measure.length_m, frame_b=measure.frame_b)
        found = scale_from_measures([noisy], lambda p, off=off: depth_of(p, off[p]), CLIP, POSES)
        lengths.append(found.lengths[0].before)
    assert np.mean(lengths) == pytest.approx(exact.before, rel=0.02)
    assert exact.sigma == pytest.approx(np.std(lengths), rel=0.2)


def test_one_length_gives_it_exactly() -> None:
    measure = measures(2.5)[0]
    found = scale_from_measures([measure], depth_of, CLIP)
    assert found.lengths[0].after == pytest.approx(measure.length_m)
    assert found.factor == pytest.approx(2.5, rel=0.005)


def test_one_wrong_length_among_three_is_named() -> None:
    good = measures(2.0)
    wrong = Measurement(good[1].frame, good[1].uv_a, good[1].uv_b, good[1].length_m * 3)
    found = scale_from_measures([good[0], wrong, good[2]], depth_of, CLIP)
    assert [r.measurement for r in found.rejected] == [wrong]
    assert found.rejected[0].after == pytest.approx(wrong.length_m / 3, rel=0.01)
    assert found.factor == pytest.approx(2.0, rel=0.005)


def test_a_surer_length_weighs_more() -> None:
    a, b, _ = measures(1.0)
    sure = Measurement(a.frame, a.uv_a, a.uv_b, a.length_m, 0.001)
    vague = Measurement(b.frame, b.uv_a, b.uv_b, b.length_m * 1.2, 0.5)
    assert scale_from_measures([sure, vague], depth_of, CLIP).factor == pytest.approx(1.0, abs=0.02)


def test_sigma_of_a_distance_is_what_noise_makes_of_it(rng: np.random.Generator) -> None:
    """Noise of a whole window at either end, as a depth map's errors are, moves the distance as stated."""
    exact = depth_of(0, share=0.03)
    a, b = np.array([60.5, 40.5]), np.array([130.5, 100.5])
    length, sigma = distance(exact, CAMERA, a, b)
    lengths = []
    for _ in range(400):
        z = exact.depth.copy()
        z[:, :96] *= np.float32(1 + 0.03 * rng.normal())
        z[:, 96:] *= np.float32(1 + 0.03 * rng.normal())
        lengths.append(distance(DepthMap(z, exact.valid, exact.sigma), CAMERA, a, b)[0])
    assert np.mean(lengths) == pytest.approx(length, rel=0.02)
    assert sigma == pytest.approx(np.std(lengths), rel=0.2)


def test_a_distance_by_hand() -> None:
    """Three metres across at three metres' depth, through 90 degrees of view."""
    camera = Intrinsics.from_fov(90, 100, 100)
    flat = DepthMap(np.full((100, 100), 3, np.float32), np.ones((100, 100), bool))
    length, sigma = distance(flat, camera, np.array([25.0, 50]), np.array([75.0, 50]))
    assert length == pytest.approx(3.0)
    assert sigma == pytest.approx(np.sqrt(2 * (0.5 * 0.06) ** 2 + 2 * (0.5 * 3 / 50) ** 2))
    assert distance(flat, camera, np.array([5.0, 5]), np.array([5.0, 5]))[0] == 0


def test_lens_distortion_counts() -> None:
    bent = Intrinsics(80, 80, 50, 50, 100, 100, (0.2, 0.0, 0.0, 0.0))
    flat = DepthMap(np.full((100, 100), 2, np.float32), np.ones((100, 100), bool))
    uv = np.array([[10.0, 50], [90, 50]])
    assert distance(flat, bent, *uv)[0] == pytest.approx(2 * np.ptp(normalised(uv, bent)[:, 0]))


def test_holes_are_filled_from_around_and_wide_ones_named() -> None:
    depth = depth_of(0)
    (first, *_) = measures()
    column, row = np.floor(np.array(first.uv_a) / 2).astype(int)
    for half, ok in ((0, True), (1, True), (3, False)):
        valid = depth.valid.copy()
        valid[row - half : row + half + 1, column - half : column + half + 1] = False
        holed = DepthMap(depth.depth, valid, depth.sigma)
        if ok:
            assert scale_from_measures([first], lambda _, d=holed: d, CLIP).factor == pytest.approx(1.0, rel=0.02)
            continue
        with pytest.raises(GeometryError, match=rf"no valid depth at its end .* in frame {first.frame}: mark a point"):
            scale_from_measures([first], lambda _, d=holed: d, CLIP)
        with pytest.raises(GeometryError, match="choose a point beside it"):
            distance(holed, CAMERA, np.array(first.uv_a) / 2, np.array(first.uv_b) / 2)


@pytest.mark.parametrize(
    ("text", "length", "sigma"),
    [
        ("10,20,30,40,4=2.03", 2.03, None),
        (" 10, 20,30,40, 4 = 2.03m", 2.03, None),
        ("10,20,30,40,4=2.03+-0.01", 2.03, 0.01),
    ],
)
def test_measurements_are_parsed(text: str, length: float, sigma: float | None) -> None:
    assert parse_measure(text, CLIP) == Measurement(4, (10, 20), (30, 40), length, sigma)
    assert parse_measure(str(parse_measure(text))).uv_b == (30, 40)


def test_measurements_between_frames_are_parsed() -> None:
    found = parse_measure("10,20@4, 30.5,40 @ 8=2.03+-0.01", CLIP)
    assert found == Measurement(4, (10, 20), (30.5, 40), 2.03, 0.01, 8)
    assert found.ends == ((4, (10, 20)), (8, (30.5, 40)))
    assert str(found) == "10,20@4,30.5,40@8=2.03+-0.01"
    assert parse_measure("10,20@4,30,40@4=2", CLIP) == parse_measure("10,20,30,40,4=2", CLIP)
    parse_measure("10,20@4,10,20@8=2", CLIP)  # the same pixel of two frames is no mistake


PIXELS = st.floats(0, 1e5)


@given(PIXELS, PIXELS, PIXELS, PIXELS, st.integers(0, 10**6), st.integers(0, 10**6) | st.none(), st.data())
def test_a_measurement_reads_back_what_it_writes(
    x1: float, y1: float, x2: float, y2: float, frame: int, frame_b: int | None, data: st.DataObject
) -> None:
    length, sigma = data.draw(st.floats(1e-6, 1e6)), data.draw(st.floats(1e-9, 1e3) | st.none())
    measure = Measurement(frame, (x1, y1), (x2, y2), length, sigma, frame_b)
    assume((x1, y1) != (x2, y2))
    assert parse_measure(str(measure)) == measure


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "410,220"),
        ("10,20,30,40=2", "410,220"),
        ("10,20,30,40,4", "410,220"),
        ("10,20,30,40,4=", "410,220"),
        ("10,20,30,40,4=two", "410,220"),
        ("10,20,30,40,4.5=2", "410,220"),
        ("10,20,nan,40,4=2", "410,220"),
        ("10,20,30,40,inf=2", "410,220"),
        ("10,20,30,40,4=2+-0.1+-0.1", "410,220"),
        ("10,20,30,40,4=0", "must be positive"),
        ("10,20,30,40,4=-1", "must be positive"),
        ("10,20,30,40,4=1+-0", "must be positive"),
        ("10,20,10,20,4=1", "same pixel"),
        ("10,20,400,40,4=1", "outside the 384x288 frames"),
        ("10,-1,30,40,4=1", "outside"),
        ("10,20,30,40,5=1", "frame 5 is not in use .* nearest one is 4"),
        ("10,20@4,30,40=1", "x1,y1@frame1"),
        ("10,20@4,30,40@8", "x1,y1@frame1"),
        ("10,20@4,30,40@8,1=1", "x1,y1@frame1"),
        ("10,20@4.5,30,40@8=1", "x1,y1@frame1"),
        ("10,20@4,30,40@nan=1", "x1,y1@frame1"),
        ("10,20@4,10,20@4=1", "same pixel"),
        ("10,20@4,30,400@8=1", r"\(30, 400\) is outside"),
        ("10,20@4,30,40@9=1", "frame 9 is not in use .* nearest one is 8"),
    ],
)
def test_nonsense_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_measure(text, CLIP)


def test_no_measurement_at_all() -> None:
    with pytest.raises(UsageError, match="no length is given"):
        scale_from_measures([], depth_of, CLIP)


@pytest.mark.data
def test_a_real_length_seen_in_two_frames() -> None:
    """One wall of a real kitchen, its ends carried from one frame to another by the poses: the same length in both."""
    from PIL import Image

    folder = data_path("kitchen")
    camera = Intrinsics(525, 525, 320, 240, 640, 480)
    T = np.load(folder / "poses_c2w.npy")
    maps = {}
    for i in (0, 20):
        z = (np.asarray(Image.open(folder / f"depth/{i:06d}.png")) / 1000).astype(np.float32)
        maps[i] = DepthMap(z, z > 0)
    rng = np.random.default_rng(1)
    z = maps[0].depth
    lengths = []
    for _ in range(300):
        uv = rng.uniform((20, 20), (620, 460), (2, 2))
        at = np.floor(uv).astype(int)
        ends = z[at[:, 1], at[:, 0]].astype(float)
        if (ends <= 0).any():
            continue
        rays = np.concatenate([normalised(uv, camera), np.ones((2, 1))], 1)
        there = project(transform(inverse(T[20]), transform(T[0], rays * ends[:, None])), camera)
        if np.all((there > 5) & (there < (635, 475))):
            try:
                lengths.append((distance(maps[0], camera, *uv)[0], distance(maps[20], camera, *there)[0]))
            except GeometryError:
                continue
    first, second = np.array(lengths).T
    assert len(first) > 50
    assert np.median(np.abs(first / second - 1)) < 0.03
