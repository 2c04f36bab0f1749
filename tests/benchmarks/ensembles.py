"""Merging ensembles beside diffusers: time, cost, and how well the uncertainty ranks errors, as Markdown tables.

    OMP_NUM_THREADS=1 python tests/benchmarks/ensembles.py [--members 3 5 10 20] [--size 768x576] [--peer-up-to 20]

Both merge the same maps in the same run: the same scene under unknown scales and shifts, with noise. ms: CPU time of
the whole merge with its uncertainty, the best of three (of one for diffusers). diffusers evaluates its cost once a
parameter and step, so that N = 20 takes it minutes: --peer-up-to leaves it out beyond a size.

Costs are the published sum of pairwise RMS differences over all pixels, by the same code for both. It grows with a
common scale of all maps, which has to be fixed first: "at equal spread", the maps have a mean standard deviation of 1
(and shifts at their best); "at equal range", the merged map spans 0..1, which is how both end, and which hangs on its
two most extreme pixels.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # a script sees its own folder only, the cases stand one above

from marigold3d.depth.ensemble import Mode, align_ensemble, merge_ensemble  # noqa: E402
from marigold3d.depth.reduction import Reduction, reduce_ensemble  # noqa: E402
from tests import ensemble_cases as cases  # noqa: E402


def timed(repeats: int, run: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What `run(*arguments)` returns, and its CPU time in ms, the best of `repeats`."""
    best_s = np.inf
    for _ in range(repeats):
        begin = time.process_time()
        result = run(*arguments)
        best_s = min(best_s, time.process_time() - begin)
    return result, best_s * 1e3


def row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def header(*names: str) -> None:
    print()
    row(*names)
    row(*("---" for _ in names))


def merging(members: list[int], size: tuple[int, int], peer_up_to: int) -> None:
    names = ("mode", "N", "marigold3d, ms", "diffusers, ms", "times faster")
    header(*names, "cost at equal spread", "of diffusers", "cost at equal range", "of diffusers")
    for mode in get_args(Mode)[:2]:
        for n in members:
            maps = normalised(cases.corrupted(np.random.default_rng(n), n, 0.03, size, mode), mode)
            _, ours_ms = timed(3, merge_ensemble, maps, "median", mode)
            ours = costs(maps, align_ensemble(maps, mode), mode)
            if n > peer_up_to:
                row(mode, n, f"{ours_ms:.0f}", "", "", ours[0], "", ours[1], "")
                continue
            (_, _, *fit), theirs_ms = timed(1, cases.diffusers_merge, maps, mode)
            theirs = costs(maps, fit, mode)
            times = f"{ours_ms:.0f}", f"{theirs_ms:.0f}", f"{theirs_ms / ours_ms:.0f}"
            row(mode, n, *times, ours[0], theirs[0], ours[1], theirs[1])


def costs(maps: np.ndarray, fit: Sequence[np.ndarray], mode: Mode) -> tuple[str, str]:
    """At equal spread and at equal range of the merged map."""
    return f"{cases.spread_cost(maps, fit[0], mode):.5f}", f"{cases.full_cost(maps, fit[0], fit[1], mode):.5f}"


def normalised(maps: np.ndarray, mode: Mode) -> np.ndarray:
    """Each map in 0..1, as decoded predictions are."""
    low = maps.min((1, 2), keepdims=True) if mode == "affine" else 0.0
    return ((maps - low) / (maps.max((1, 2), keepdims=True) - low)).astype(np.float32)


def reducing(members: list[int], size: tuple[int, int]) -> None:
    header("N", "median and MAD, ms", "numpy.median twice, ms", "torch.median twice, ms", "mean and deviation, ms")
    for n in members:
        maps = np.random.default_rng(n).random((n, *size), dtype=np.float32)
        times = (
            timed(3, reduce_ensemble, maps)[1],
            timed(1, lambda x: np.median(np.abs(x - np.median(x, axis=0)), axis=0), maps)[1],
            timed(1, lambda x: (x - x.median(0).values).abs().median(0), torch.from_numpy(maps))[1],
            timed(3, reduce_ensemble, maps, "mean")[1],
        )
        row(n, *(f"{ms:.0f}" for ms in times))


def ranking(members: list[int]) -> None:
    header("N", "reduction", "AUSE", "at random", "share")
    for n in members:
        for reduction in get_args(Reduction):
            maps, scene = cases.uneven_ensemble(np.random.default_rng(n), n, (192, 256))
            merged, uncertainty = merge_ensemble(maps, reduction)
            fitted = np.polyval(np.polyfit(merged.ravel(), scene.ravel(), 1), merged)
            ause, random = cases.sparsification_errors(fitted - scene, uncertainty)
            row(n, reduction, f"{ause:.3f}", f"{random:.3f}", f"{ause / random:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[3, 5, 10, 20])
    parser.add_argument("--size", default="768x576", help="WIDTHxHEIGHT of the maps")
    parser.add_argument("--peer-up-to", type=int, default=20, help="largest N for diffusers")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    torch.set_num_threads(1)
    reducing(options.members, (height, width))
    ranking(options.members)
    merging(options.members, (height, width), options.peer_up_to)


if __name__ == "__main__":
    main()
