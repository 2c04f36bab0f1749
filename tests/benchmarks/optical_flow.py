"""Optical flow of thumbnails beside its peers, scored where depth and poses say where each pixel went: Markdown tables.

    OMP_NUM_THREADS=1 python tests/benchmarks/optical_flow.py [--data FOLDER] [--sides 160 256] [--pairs 8] [--only dis]

The peers skimage need scikit-image, which marigold3d does not: without it they are left out. `marigold3d pair` sees the
two frames alone, `marigold3d clip` is ClipFlow, which has the frames between them too.

error: end-point error over pixels that both frames see, in pixels at a width of 640, median / 90 % quantile; and the
same of those that pass the check, forward and backward. kept: share of the seen pixels that pass. hidden kept: share
that passes of those that the other frame does not see; low is good. ms: both directions and check, mean over pairs.
Poses of recordings are not exact: errors of kitchen and hololens never reach zero.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # a script sees its own folder only, the scoring stands one above

from marigold3d.camera import pixel_grid, project, unproject  # noqa: E402
from marigold3d.flow import ClipFlow, agreement, dense_flow, thumbnails  # noqa: E402
from marigold3d.rigid import inverse, transform  # noqa: E402
from marigold3d.types import Intrinsics, Trajectory  # noqa: E402
from marigold3d.video import open_video  # noqa: E402
from tests import synthetic  # noqa: E402
from tests.scoring import Truth  # noqa: E402

DILATIONS = (1, 10, 25)
VISIBLE, HIDDEN = 0.05, 0.10  # log-depth steps: the same surface, or behind another one
WIDTH = 640  # errors are stated at this width
WALK = 60  # frames
Method = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(gray, gray), both (h, w) uint8 -> (h, w, 2) steps in pixels: column, row."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Frames i and j: exact steps (h, w, 2) in pixels where `visible`; hidden: certainly not seen in j."""

    i: int
    j: int
    steps: np.ndarray
    visible: np.ndarray
    hidden: np.ndarray


def exact_pair(truth: Truth, i: int, j: int, size: tuple[int, int]) -> Pair:
    """At `size` (width, height), from depth maps of any resolution."""
    camera, poses = truth.camera.scaled_to(*size), truth.path.T_world_camera
    uv = pixel_grid(*size)
    z = nearest(truth.depth_m[i], uv, camera)
    moved = transform(inverse(poses[j]) @ poses[i], unproject(uv, np.maximum(z, 1e-3).astype(float), camera))
    to = project(moved, camera)
    inside = np.isfinite(to).all(-1) & (to >= 0).all(-1) & (to < size).all(-1)
    there = nearest(truth.depth_m[j], np.where(inside[..., None], to, 0), camera)
    known, both = z > 0, (z > 0) & inside & (there > 0)
    gap = np.log(np.maximum(moved[..., 2], 1e-6) / np.maximum(there, 1e-6))
    return Pair(i, j, to - uv, both & (np.abs(gap) < VISIBLE), known & (~inside | (both & (gap > HIDDEN))))


def nearest(depth: np.ndarray, uv: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """Depth at pixels (..., 2) of the smaller camera."""
    column, row = np.moveaxis((uv * np.divide(depth.shape[::-1], (camera.width, camera.height))).astype(np.intp), -1, 0)
    return depth[row, column]


def spread_pairs(truth: Truth, dilation: int, count: int) -> list[tuple[int, int]]:
    """Of measured frames `dilation` apart, or as little more as the measured ones allow."""
    measured = sorted(truth.depth_m)
    gap = min(j - i for i in measured for j in measured if j - i >= dilation)
    pairs = [(i, i + gap) for i in measured if i + gap in truth.depth_m]
    return [pairs[k] for k in np.unique(np.linspace(0, len(pairs) - 1, count).round().astype(int))]


# -- clips with truth: (truth, thumbnails of a given size) ------------------------------------------------------------

Clip = tuple[Truth, Callable[[int], np.ndarray]]


def walk() -> Clip:
    path, camera = synthetic.walk(WALK), synthetic.camera(320, 240)
    frames = synthetic.Clip(camera, path).frames

    def small(side: int) -> np.ndarray:
        size = side, side * 3 // 4
        return np.stack(
            [np.asarray(Image.fromarray(rgb).convert("L").resize(size, Image.Resampling.BOX)) for rgb, _ in frames]
        )

    depth = {i: z for i, (_, z) in enumerate(frames)}
    return Truth(camera, Trajectory(np.arange(WALK) / synthetic.FPS, path), depth, exact=True), small


def recorded(clip: Path, truth: Truth) -> Clip:
    return truth, lambda side: thumbnails(open_video(clip), side)


def clips(data: Path) -> dict[str, Callable[[], Clip]]:
    example = ROOT / "examples"
    found = {"walk": walk, "examples": lambda: recorded(example / "clip.mp4", Truth.rendered(example / "clip_truth"))}
    for name, fps in (("kitchen", 30.0), ("hololens", 10.0)):
        if (data / name).is_dir():
            found[name] = partial(
                lambda folder, fps: recorded(folder / "clip.mp4", Truth.recording(folder, fps)), data / name, fps
            )
    return found


# -- methods ----------------------------------------------------------------------------------------------------------


def skimage_flow(name: str, **settings: object) -> Method:
    from skimage import registration

    def flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        steps = getattr(registration, name)(a.astype(np.float32) / 255, b.astype(np.float32) / 255, **settings)
        return np.ascontiguousarray(np.moveaxis(steps, 0, -1)[..., ::-1])

    return flow


def plain_dis(preset: int) -> Method:
    cv2.setNumThreads(1)
    dis = cv2.DISOpticalFlow_create(preset)
    dis.setFinestScale(0)
    return lambda a, b: dis.calc(a, b, None)


def methods() -> dict[str, Method]:
    found: dict[str, Method] = {"nothing moves": lambda a, b: np.zeros((*a.shape, 2), np.float32)}
    if find_spec("skimage"):
        found["skimage ilk"] = skimage_flow("optical_flow_ilk", radius=5)
        found["skimage tvl1"] = skimage_flow("optical_flow_tvl1")
    found["dis fast"] = plain_dis(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    found["dis medium"] = plain_dis(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    found["marigold3d pair"] = dense_flow
    return found


# -- scores -----------------------------------------------------------------------------------------------------------

Found = tuple[np.ndarray, np.ndarray]
"""(steps (h, w, 2) in pixels, valid (h, w))."""


def of_pair(method: Method, grays: np.ndarray, i: int, j: int) -> Found:
    there, back = method(grays[i], grays[j]), method(grays[j], grays[i])
    return there, agreement(there, back)


def of_clip(flow: ClipFlow, size: tuple[int, int], i: int, j: int) -> Found:
    found = flow(i, j)
    if found is None:
        return np.full((*size[::-1], 2), np.inf, np.float32), np.zeros(size[::-1], bool)
    return found.displacement * np.float32(size), found.valid


def score(find: Callable[[int, int], Found], pairs: list[Pair]) -> str:
    rows, seconds = [], []
    for pair in pairs:
        start = time.perf_counter()
        steps, valid = find(pair.i, pair.j)
        seconds.append(time.perf_counter() - start)
        error = np.linalg.norm(steps - pair.steps, axis=-1) * WIDTH / valid.shape[1]
        seen, passed = pair.visible, pair.visible & valid
        rows.append((error[seen], error[passed], valid[seen], valid[pair.hidden]))
    error, kept_error, kept, hidden = (np.concatenate(column) for column in zip(*rows, strict=True))
    numbers = [quantiles(error), quantiles(kept_error), f"{kept.mean():.3f}", f"{hidden.mean():.3f}"]
    return " | ".join([*numbers, f"{1000 * np.mean(seconds):.0f}"])


def quantiles(error: np.ndarray) -> str:
    return " / ".join(f"{np.quantile(error, q, method='lower'):.2f}" for q in (0.5, 0.9)) if len(error) else "-"


def rows_of(clip: Clip, dilation: int, side: int, count: int, only: list[str]) -> Iterator[str]:
    truth, small = clip
    grays = small(side)
    size = grays.shape[2], grays.shape[1]
    pairs = [exact_pair(truth, i, j, size) for i, j in spread_pairs(truth, dilation, count)]
    finders = {name: partial(of_pair, method, grays) for name, method in methods().items()}
    finders["marigold3d clip"] = partial(of_clip, ClipFlow(grays, most_approach=np.inf), size)
    for name, find in finders.items():
        if not only or any(part in name for part in only):
            yield f"| {pairs[0].j - pairs[0].i} | {side} | {name} | {score(find, pairs)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("MARIGOLD3D_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(data))
    parser.add_argument("--sides", type=int, nargs="+", default=[160], help="longest sides of the thumbnails, px")
    parser.add_argument("--pairs", type=int, default=8, help="of frames, for each row")
    parser.add_argument("--clips", nargs="+", default=[])
    parser.add_argument("--only", nargs="+", default=[], help="parts of method names")
    asked = parser.parse_args()
    for name, read in clips(asked.data).items():
        if asked.clips and name not in asked.clips:
            continue
        clip = read()
        print(f"\n### {name}\n\n| frames apart | px | method | error, px | after check | kept | hidden kept | ms |")
        print("|---|---|---|---|---|---|---|---|")
        for dilation in DILATIONS:
            for side in asked.sides:
                for row in rows_of(clip, dilation, side, asked.pairs, asked.only):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
