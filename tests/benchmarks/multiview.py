"""Depth from several views: beside a peer, cost, errors and sigma, worse priors, finished runs: Markdown tables.

    python tests/benchmarks/multiview.py --runs runs --only peer priors clips        of recordings
    python tests/benchmarks/multiview.py --only cost                                 without recordings

Runs of the recordings are read from --runs, or made there by `marigold3d video`. A keyframe's prior is its aligned
depth; "sweep" is the depth from other views alone, where it trusts that; "agreed", where another keyframe's sweep
agrees; "merged" is what all make together.

peer    PatchMatch stereo of PyPI's pyarchinit-photogrammetry-core (GPL; not needed otherwise), the same poses and views
cost    seconds a keyframe and peak memory, over frames, size and neighbours; of a rendered room
truth   rendered clips: errors, and whether sigma knows them
priors  the prior made worse on purpose
clips   finished runs: their own prior, sweep and merged depth

AbsRel, median, δ1: of |z - truth| / truth, means over the frames with truth of each frame's own, over pixels of 0.3 to
6 m that have both; δ1: share within a factor of 1.25. coverage: share of the measured pixels that have a depth. Every
row has one scale a clip, fitted to the truth. Seconds are by the clock, with all cores: compare them on an idle machine
only. Those of CPU are the sum over cores.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # a script sees its own folder only

from marigold3d.multiview import refine  # noqa: E402
from marigold3d.multiview.refine import sweep_size  # noqa: E402
from marigold3d.multiview.sizes import shrunk  # noqa: E402
from marigold3d.multiview.sweep import LEVELS  # noqa: E402
from marigold3d.rigid import inverse  # noqa: E402
from marigold3d.types import DepthMap  # noqa: E402
from tests.benchmarks._multiview_cases import (  # noqa: E402
    FIGURES,
    RECORDINGS,
    Case,
    Errors,
    Maps,
    Refined,
    Stored,
    case_of_run,
    disturbed,
    figures,
    livingroom,
    matched_with,
    refined,
    rendered_room,
    run_of,
    sparsification,
    sparsification_error,
    truth_of,
)

SIDE = 320  # px, longest, at which views are matched
SHARES = (0.25, 0.5, 0.75, 0.9, 1.0)  # of the pixels, the surest
DISTURBANCES = {
    "as aligned": None,
    "smooth ±30 %": ("smooth", 0.3),
    "blocks ±30 %": ("blocks", 0.3),
    "constant": ("constant", 0),
}
PEER = "pyarchinit-photogrammetry-core"
PEER_SETTINGS: dict[str, dict[str, Any]] = {
    "its defaults": {},
    "two thirds of the cost allowed": {"max_cost": 0.4},
    "one view is enough": {"min_views": 1},
}


# -- tables -----------------------------------------------------------------------------------------------------------


def table(title: str, header: Iterable[str], rows: Iterable[list[str]]) -> None:
    """Rows are printed as they come: a slow benchmark shows how far it is."""
    columns = list(header)
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def title(case: Case) -> str:
    return f"{case.name}: {len(case)} keyframes, {len(case.truth_m)} of them with truth"


# -- peer -------------------------------------------------------------------------------------------------------------


def peer_depth(
    case: Case, row: int, views: list[int], patchmatch: Callable[..., Any], settings: dict[str, Any]
) -> DepthMap:
    """The peer's depth of a keyframe, at the sweep's size. It knows no distortion: it is given straightened images."""
    width, height = sweep_size(case.camera, SIDE)
    camera = case.camera.scaled_to(width, height)
    K = camera.K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]  # pixel centres at whole numbers
    numbers = tuple(float(x) for x in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    lens = np.array(camera.distortion or (0,) * 4)

    def straightened(i: int) -> np.ndarray:
        gray = shrunk(case.rgb[i], width, height) @ np.array([0.299, 0.587, 0.114]) / 255
        return cv2.undistort(gray.astype(np.float32), K, lens)

    sources = []
    for j in views:
        T = inverse(case.T_world_camera[j]) @ case.T_world_camera[row]
        sources.append((straightened(j), numbers, T[:3, :3].copy(), T[:3, 3].copy()))
    near, far = case.ranges[row]
    depth = np.asarray(patchmatch(straightened(row), numbers, sources, (float(near), float(far)), **settings)[0])
    back = cv2.undistortPoints(np.indices((height, width))[::-1].reshape(2, -1).T.astype(np.float32), K, lens, P=K)
    u, v = np.round(back.reshape(height, width, 2)).astype(int).transpose(2, 0, 1)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    z = np.where(inside, depth[v.clip(0, height - 1), u.clip(0, width - 1)], 0).astype(np.float32)
    return DepthMap(z, z > 0)


def peer_rows(case: Case, count: int) -> Iterator[list[str]]:
    cpu_began = time.process_time()
    ours = refined(case, count, SIDE)
    cpu = (time.process_time() - cpu_began) / len(case)
    seconds = {"sweep": [f"{ours.sweep_seconds:.2f}", "–"], "merged": [f"{ours.seconds:.2f}", f"{cpu:.2f}"]}
    for name, maps in ways_of(case, ours).items():
        yield [name, *figures(maps, case.truth_m).cells(), *seconds.get(name, ["–", "–"])]
    if find_spec("ppg_core") is None:
        return
    import ppg_core  # the module of PEER

    views = matched_with(case, count)
    for name, settings in PEER_SETTINGS.items():
        began, cpu_began = time.perf_counter(), time.process_time()
        found = {i: peer_depth(case, i, views[i], ppg_core.patchmatch_depth, settings) for i in case.scored}
        spent = time.perf_counter() - began, time.process_time() - cpu_began
        yield [f"peer, {name}", *figures(found, case.truth_m).cells(), *(f"{s / len(found):.2f}" for s in spent)]


def peer(data: Path, runs: Path, most: int | None) -> None:
    if find_spec("ppg_core") is None:
        print(f"\nThe peer is left out: it needs `pip install {PEER}` (GPL, used by this benchmark only)")
    for name in available(("kitchen",), data):
        case = case_of_run(name, run_of(name, data, runs), data, most)
        for count in (4, 8):
            table(
                f"{title(case)}; {count} views",
                ["depth", *FIGURES, "seconds a frame", "of CPU"],
                peer_rows(case, count),
            )


# -- cost -------------------------------------------------------------------------------------------------------------

COSTS = {  # keyframes, width, height, neighbours, longest side of the sweep; how many times the hypotheses
    "keyframes": [(n, 320, 240, 6, 320) for n in (10, 20, 40)],
    "size": [(12, 160, 120, 6, 160), (12, 320, 240, 6, 320), (12, 640, 480, 6, 320), (12, 640, 480, 6, 640)],
    "neighbours": [(12, 320, 240, n, 320) for n in (2, 4, 6, 8)],
    "planes and other hypotheses": [(12, 320, 240, 6, 320, n) for n in (1, 2, 4)],
}


def cost_of(frames: int, width: int, height: int, neighbours: int, side: int, times: int = 1) -> None:
    """Prints seconds a keyframe of sweep, merge and CPU, the memory in MB beyond the clip's own and in all, AbsRel."""
    case = rendered_room(frames, width, height)
    levels = tuple(replace(level, step=level.step / times) for level in LEVELS)
    refine.sweep = partial(refine.sweep, levels=levels)
    before, cpu_began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = refined(case, neighbours, side)
    cpu = (time.process_time() - cpu_began) / frames
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = figures(found.merged, case.truth_m).abs_rel
    print(found.sweep_seconds, found.merge_seconds, cpu, (after - before) / 1024, after / 1024, error)


def cost_rows(settings: list[tuple[int, ...]]) -> Iterator[list[str]]:
    for setting in settings:
        frames, width, height, neighbours, side, times = (*setting, 1)[:6]
        command = [sys.executable, __file__, "--cost-of", *map(str, setting)]  # memory peaks once a process
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        sweep, merge, cpu, more, peak, error = map(float, out[-6:])
        cells = [f"{frames}", f"{width}×{height}", f"{side}", f"{neighbours}", f"{times}"]
        yield [*cells, f"{sweep:.2f}", f"{merge:.2f}", f"{cpu:.2f}", f"{more:.0f}", f"{peak:.0f}", f"{error:.4f}"]


def cost(data: Path, runs: Path, most: int | None) -> None:
    header = [
        "keyframes",
        "depth maps",
        "sweep, px",
        "neighbours",
        "times the hypotheses",
        "sweep, s a keyframe",
        "merge",
        "of CPU",
    ]
    for what, settings in COSTS.items():
        table(f"cost over {what}", [*header, "memory added, MB", "peak, MB", "AbsRel"], cost_rows(settings))


# -- truth ------------------------------------------------------------------------------------------------------------


def truth(data: Path, runs: Path, most: int | None) -> None:
    cases: list[Callable[[], Case]] = [
        lambda: case_of_run("examples", run_of("examples", data, runs), data, most),
        lambda: livingroom(data, most),
    ]
    if not (data / "redwood_livingroom1").is_dir():
        print("\nredwood_livingroom1: no such recording; pass --data or set MARIGOLD3D_DATA")
        cases.pop()
    for make in cases:
        case = make()
        found = refined(case, max_side=SIDE)
        ways = ways_of(case, found)
        table(title(case), ["depth", *FIGURES], ([n, *figures(m, case.truth_m).cells()] for n, m in ways.items()))
        sigma_tables(case, ways)


def ways_of(case: Case, found: Refined) -> dict[str, Maps]:
    prior = dict(enumerate(case.prior))
    return {"prior": prior, "sweep": found.swept, "agreed": found.agreed, "merged": found.merged}


def sigma_tables(case: Case, ways: dict[str, Maps]) -> None:
    """Whether the pixels that sigma calls sure are the good ones, and whether errors are as large as it says."""
    errors = {name: Errors.of(maps, case.truth_m) for name, maps in ways.items()}
    header = ["depth", "order", *(f"surest {share:.0%}" for share in SHARES), "area", "of chance's"]

    def rows() -> Iterator[list[str]]:
        for name, e in errors.items():
            for order, by in (("sigma", e.share), ("ideal", e.error)):
                curve = [f"{x:.4f}" for x in sparsification(e.error, by, np.array(SHARES))]
                area, relative = sparsification_error(e.error, by)
                yield [name, order, *curve, f"{area:.4f}", f"{relative:.2f}"]

    table(f"{case.name}: AbsRel of the surest pixels, and area between that curve and the ideal one", header, rows())
    within = ([n, f"{e.within(1):.1%}", f"{e.within(2):.1%}", f"{np.median(e.share):.4f}"] for n, e in errors.items())
    table(f"{case.name}: errors within sigma", ["depth", "one (68 %)", "two (95 %)", "median sigma"], within)


# -- priors -----------------------------------------------------------------------------------------------------------


def priors(data: Path, runs: Path, most: int | None) -> None:
    for name in available(("kitchen", "examples"), data):
        case = case_of_run(name, run_of(name, data, runs), data, most)
        header = ["prior", "AbsRel prior", "sweep", "merged", "δ1 prior", "sweep", "merged", "coverage sweep"]
        table(title(case), header, map(partial(prior_row, case), DISTURBANCES))


def prior_row(case: Case, name: str) -> list[str]:
    how = DISTURBANCES[name]
    if how is not None:
        case = case.with_prior([disturbed(p, *how, seed) for seed, p in enumerate(case.prior)])
    found = refined(case, max_side=SIDE)
    scores = [figures(m, case.truth_m) for m in (dict(enumerate(case.prior)), found.swept, found.merged)]
    cells = [f"{s.abs_rel:.4f}" for s in scores] + [f"{s.delta1:.3f}" for s in scores]
    return [name, *cells, f"{scores[1].coverage:.3f}"]


# -- clips ------------------------------------------------------------------------------------------------------------

STORED = {"prior": "aligned", "sweep": "swept", "agreed": "sure", "merged": "refined"}


def clips(data: Path, runs: Path, most: int | None) -> None:
    for name in available(tuple(RECORDINGS), data):
        run, seen = run_of(name, data, runs), truth_of(name, data).depth_m
        cameras = run.load_arrays("cameras")
        keyframes = cameras["keyframes"][:most].tolist()
        posed = np.flatnonzero(cameras["posed"][: max(keyframes) + 1]).tolist()
        header = ["frames with truth", "depth", *FIGURES]
        between = [way for way in STORED if way not in ("sweep", "agreed")]  # other frames than keyframes are not swept
        rows = (
            [f"{which} ({len(some)})", way, *figures(Stored(run, STORED[way]), some).cells()]
            for which, positions, ways in (("keyframes", keyframes, STORED), ("all frames", posed, between))
            for some in [{p: seen[p] for p in positions if p in seen}]
            for way in ways
        )
        table(f"{name}: a finished run", header, rows)


def available(names: Iterable[str], data: Path) -> list[str]:
    """Those of the clips that are there."""
    found = [n for n in names if n == "examples" or (data / n).is_dir()]
    for name in set(names) - set(found):
        print(f"\n{name}: no such recording; pass --data or set MARIGOLD3D_DATA")
    return found


PARTS = {"peer": peer, "cost": cost, "truth": truth, "priors": priors, "clips": clips}


def main() -> None:
    default = os.environ.get("MARIGOLD3D_DATA") or ROOT.parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the recordings")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="keep the runs here, and use those that are here")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--most", type=int, metavar="N", help="the first N keyframes of each clip only: quick")
    parser.add_argument("--cost-of", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cost_of:
        cost_of(*args.cost_of)
        return
    with tempfile.TemporaryDirectory(prefix="marigold3d-") as scratch:
        for name in args.only:
            PARTS[name](args.data.resolve(), (args.runs or Path(scratch)).absolute(), args.most)


if __name__ == "__main__":
    main()
