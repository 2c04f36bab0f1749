"""Affine fits and the scale field beside least squares and two RANSACs: Markdown tables.

    python tests/benchmarks/alignment_fits.py [--data FOLDER] [--seeds 20] [--only accuracy,coverage,timing]

The peers need scikit-learn and scikit-image, which marigold3d does not: pip install scikit-learn scikit-image. A peer
that is missing is left out of the tables.

Accuracy: cues sampled from the true depth of a real frame, a share of them 1.5 to 4 times too far, carry a map to scene
units; AbsRel and delta1 over all pixels with truth, means over the seeds. All peers fit in the map's own domain.
Coverage: how often the claimed 95 % interval of the scale holds the truth, on a made-up room. Timing: a fit alone.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from marigold3d.align import align_frame, fit_affine, fit_frame
from marigold3d.align.domains import from_domain, to_domain
from marigold3d.align.samples import sample
from marigold3d.types import Domain, RelativeDepth, SparseCues

COUNTS, SHARES = (10, 100, 500), (0.0, 0.2, 0.4)
Line = tuple[float, float]
PeerFit = Callable[[np.ndarray, np.ndarray, int], Line]
Align = Callable[[RelativeDepth, SparseCues, int], np.ndarray]


# -- the peers: (x, y, seed) -> (slope, intercept) --------------------------------------------------------------------


def least_squares(x: np.ndarray, y: np.ndarray, seed: int) -> Line:
    slope, intercept = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)[0]
    return float(slope), float(intercept)


def sklearn_ransac(x: np.ndarray, y: np.ndarray, seed: int) -> Line:
    """Its defaults: least squares through pairs, threshold the MAD of y, at most 100 trials."""
    from sklearn.linear_model import RANSACRegressor

    model = RANSACRegressor(random_state=seed).fit(x[:, None], y).estimator_
    return float(model.coef_[0]), float(model.intercept_)


def skimage_ransac(x: np.ndarray, y: np.ndarray, seed: int) -> Line:
    """Its line model (orthogonal distance), at most 100 trials, threshold the MAD of y, as scikit-learn takes it."""
    from skimage.measure import LineModelND, ransac

    threshold = float(np.median(np.abs(y - np.median(y))))
    model, _ = ransac(np.stack([x, y], 1), LineModelND, min_samples=2, residual_threshold=threshold, rng=seed)
    (x0, y0), (dx, dy) = model.origin, model.direction
    return dy / dx, y0 - dy / dx * x0


def with_line(fit: PeerFit) -> Align:
    """Depth (H, W) from a peer's line; what is not positive is NaN."""

    def align(relative: RelativeDepth, cues: SparseCues, seed: int) -> np.ndarray:
        v = sample(relative.values, cues.uv).astype(float)
        slope, intercept = fit(v, to_domain(cues.depth, relative.domain), seed)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = from_domain(slope * relative.values.astype(float) + intercept, relative.domain)
        return np.where(z > 0, z, np.nan)

    return align


WAYS: dict[str, Align] = {
    "numpy lstsq": with_line(least_squares),
    "scikit-learn RANSAC": with_line(sklearn_ransac),
    "scikit-image RANSAC": with_line(skimage_ransac),
    "fit_affine, not robust": lambda r, c, _: fit_affine(r, c, robust=False).depth(r.values),
    "fit_affine, Tukey": lambda r, c, _: fit_affine(r, c).depth(r.values),
    "fit_affine, Huber": lambda r, c, _: fit_affine(r, c, loss="huber").depth(r.values),
    "align_frame (with the field)": lambda r, c, _: align_frame(r, c).depth,
}
NEEDS = {"scikit-learn RANSAC": "sklearn", "scikit-image RANSAC": "skimage"}


def ways() -> dict[str, Align]:
    missing = [name for name, module in NEEDS.items() if find_spec(module) is None]
    if missing:
        print(f"left out: {', '.join(missing)}; pip install scikit-learn scikit-image\n")
    return {name: way for name, way in WAYS.items() if name not in missing}


# -- accuracy ---------------------------------------------------------------------------------------------------------


def nyu(folder: Path, domain: Domain) -> tuple[RelativeDepth, np.ndarray]:
    """A network's metric-like prediction expressed in `domain`, and the true depth in metres."""
    prediction = np.load(folder / "fastdepth_nyu" / "pred.npy").squeeze().astype(float)
    truth = np.load(folder / "fastdepth_nyu" / "depth.npy").squeeze().astype(float)
    return RelativeDepth(to_domain(prediction, domain).astype(np.float32), domain), truth


def aloe(folder: Path) -> tuple[RelativeDepth, np.ndarray]:
    """Stereo disparity with the noise and the bend a network would add (5 % each), and 1 / disparity as the depth.

    The pair was cropped, so that is not quite the depth of the scene, but of one whose true disparity this is.
    """
    picture = np.asarray(Image.open(folder / "aloe" / "aloeGT.png"), float)
    disparity = np.where(picture > 0, picture, np.nan) / 100
    height, width = disparity.shape
    bend = np.cos(np.pi * np.arange(height)[:, None] / height) * np.cos(np.pi * np.arange(width) / width)
    noise = 0.05 * np.random.default_rng(0).normal(size=disparity.shape)
    values = 0.6 * disparity * np.exp(0.05 * bend + noise) - 0.2
    return RelativeDepth(values.astype(np.float32), "disparity"), 1 / disparity


def cues_from(truth: np.ndarray, count: int, outliers: float, seed: int) -> SparseCues:
    """`count` pixels with truth, 1 % noise, a share of them 1.5 to 4 times too far."""
    rng = np.random.default_rng(seed)
    rows, columns = np.nonzero(np.isfinite(truth))
    pick = rng.choice(len(rows), count, replace=False)
    z = truth[rows[pick], columns[pick]] * np.exp(0.01 * rng.normal(size=count))
    wrong = rng.permutation(count)[: round(outliers * count)]
    z[wrong] *= rng.uniform(1.5, 4.0, len(wrong))
    return SparseCues(np.stack([columns[pick], rows[pick]], 1) + 0.5, z)


def score(depth: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """AbsRel over the pixels with both, and delta1 over those with truth."""
    known = np.isfinite(truth)
    z, t = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan)[known], truth[known]
    with np.errstate(invalid="ignore"):
        return float(np.nanmean(np.abs(z - t) / t)), float(np.mean(np.maximum(z / t, t / z) < 1.25))


def accuracy(name: str, relative: RelativeDepth, truth: np.ndarray, seeds: int) -> None:
    print(f"### {name}: AbsRel / δ1 by cues and share of gross outliers, {seeds} seeds\n")
    columns = [(count, share) for count in COUNTS for share in SHARES]
    print("| fit | " + " | ".join(f"{n}, {share:.0%}" for n, share in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for way, align in ways().items():
        cells = []
        for count, share in columns:
            scores = [
                attempt(align, relative, cues_from(truth, count, share, seed), truth, seed) for seed in range(seeds)
            ]
            error, within = np.nanmean(scores, axis=0)
            failed = int(np.isnan([s[0] for s in scores]).sum())
            cells.append(f"{error:.3f} / {within:.2f}" + (f" ({failed} failed)" if failed else ""))
        print(f"| {way} | " + " | ".join(cells) + " |", flush=True)
    print()


def attempt(
    align: Align, relative: RelativeDepth, cues: SparseCues, truth: np.ndarray, seed: int
) -> tuple[float, float]:
    """Scores of one fit; NaN where the peer finds none."""
    try:
        return score(align(relative, cues, seed), truth)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError):
        return np.nan, np.nan


# -- coverage ---------------------------------------------------------------------------------------------------------


def room() -> np.ndarray:
    """(72, 96) depth of a slanted floor, a far wall and a box: half of the pixels lie on the wall."""
    v, u = np.mgrid[0:72, 0:96]
    floor = 1.2 / np.maximum((v - 30) / 60, 1e-3)
    z = np.minimum(floor, 3.2)
    z[30:60, 20:45] = np.minimum(z[30:60, 20:45], 1.9 + 0.004 * u[30:60, 20:45])
    return z


def coverage(trials: int) -> None:
    print(f"### Share of {trials} trials whose 95 % interval holds the true scale (scale and shift determined in)\n")
    print("Cues with 3 % noise, said to have it, on an exact map.\n")
    columns = [(count, share) for count in (20, 100, 500) for share in (0.0, 0.2, 0.3, 0.4)]
    print("| domain | " + " | ".join(f"{n}, {share:.0%}" for n, share in columns) + " |")
    print("|---|" + "---|" * len(columns))
    z = room()
    for domain in ("depth", "disparity", "log_depth"):
        relative = RelativeDepth(((to_domain(z, domain) - 0.1) / 0.8).astype(np.float32), domain)
        cells = [covered(relative, z, count, share, trials) for count, share in columns]
        print(f"| {domain} | " + " | ".join(cells) + " |", flush=True)
    print()


def covered(relative: RelativeDepth, z: np.ndarray, count: int, share: float, trials: int) -> str:
    hits = []
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        cues = cues_from(z, count, share, seed)
        depth = cues.depth * np.exp(np.sqrt(0.03**2 - 0.01**2) * rng.normal(size=count))
        fit = fit_affine(relative, SparseCues(cues.uv, depth, 0.03 * depth))
        if fit.determined == "scale and shift":
            hits.append(abs(fit.scale - 0.8) < 1.96 * np.sqrt(fit.covariance[0, 0]))
    return f"{np.mean(hits):.1%}" + (f" ({len(hits) / trials:.0%})" if len(hits) < trials else "")


# -- timing -----------------------------------------------------------------------------------------------------------


def timing() -> None:
    print("### Milliseconds a fit of a 640x480 disparity map with 5 % noise, 20 % gross outliers (median of 30)\n")
    print("The ways take turns, so that a busy machine slows them alike. Applying the fit to the map is left out.\n")
    counts = (10, 100, 500, 5000)
    rng = np.random.default_rng(0)
    exact = rng.uniform(0.2, 1, (480, 640))
    values = (exact * np.exp(0.05 * rng.normal(size=exact.shape))).astype(np.float32)
    relative, truth = RelativeDepth(values, "disparity"), 1 / (0.8 * exact + 0.1)
    fits: dict[str, Callable[[SparseCues], object]] = {
        "numpy lstsq": lambda c: least_squares(*points(values, c), 0),
        "scikit-learn RANSAC": lambda c: sklearn_ransac(*points(values, c), 0),
        "scikit-image RANSAC": lambda c: skimage_ransac(*points(values, c), 0),
        "fit_affine, not robust": lambda c: fit_affine(relative, c, robust=False),
        "fit_affine, Tukey": lambda c: fit_affine(relative, c),
        "fit_affine, Huber": lambda c: fit_affine(relative, c, loss="huber"),
        "fit_frame (with the field)": lambda c: fit_frame(relative, c),
    }
    fits = {name: fit for name, fit in fits.items() if name in (*ways(), "fit_frame (with the field)")}
    table = [milliseconds(list(fits.values()), cues_from(truth, n, 0.2, n)) for n in counts]
    print("| fit | " + " | ".join(f"{n} cues" for n in counts) + " |\n|---|" + "---|" * len(counts))
    for name, row in zip(fits, zip(*table, strict=True), strict=True):
        print(f"| {name} | " + " | ".join(f"{ms:.2f}" for ms in row) + " |")
    print()


def points(values: np.ndarray, cues: SparseCues) -> tuple[np.ndarray, np.ndarray]:
    """What a peer is given: values at the cues, and their disparity."""
    return sample(values, cues.uv).astype(float), 1 / cues.depth


def milliseconds(fits: list[Callable[[SparseCues], object]], cues: SparseCues) -> list[float]:
    took = np.zeros((30, len(fits)))
    for k in range(len(took)):
        for j, fit in enumerate(fits):
            start = time.perf_counter()
            fit(cues)
            took[k, j] = time.perf_counter() - start
    return (1000 * np.median(took, axis=0)).tolist()


def main() -> None:
    default = os.environ.get("MARIGOLD3D_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the recordings")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=500, help="of the coverage")
    parser.add_argument("--only", default="timing,coverage,accuracy")
    args = parser.parse_args()
    if "timing" in args.only:
        timing()
    if "coverage" in args.only:
        coverage(args.trials)
    if "accuracy" in args.only and not (args.data / "fastdepth_nyu").is_dir():
        raise SystemExit(f"{args.data} holds no fastdepth_nyu: name the recordings with --data")
    if "accuracy" in args.only:
        accuracy("NYU frame, FastDepth's prediction as depth", *nyu(args.data, "depth"), args.seeds)
        accuracy("NYU frame, the same prediction as log depth", *nyu(args.data, "log_depth"), args.seeds)
        accuracy("NYU frame, the same prediction as disparity", *nyu(args.data, "disparity"), args.seeds)
        accuracy("Aloe, stereo disparity with a network's noise and bend", *aloe(args.data), args.seeds)


if __name__ == "__main__":
    main()
