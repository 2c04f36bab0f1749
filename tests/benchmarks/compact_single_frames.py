"""How well the embedded network sees single real frames, beside a constant and a row ramp: a Markdown table.

    python tests/benchmarks/compact_single_frames.py [--data FOLDER] [--weights FILE] [--resolution 320] [--pictures
    FOLDER]

Each map is brought to metres by the best affine fit in depth (least squares over pixels measured at 0.3 to 10 m), and
so are the baselines. AbsRel is mean(|z - truth| / truth), d1 the share within a factor of 1.25; means over the frames
of a set. The frames serve as a check only; the network never trained on them, nor on any real image with depth.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from marigold3d.depth.compact import CompactEstimator, load_network

Sample = tuple[NDArray[np.uint8], NDArray[np.float64]]  # rgb (H, W, 3), z in metres (H, W), 0 where unmeasured
NEAR_M, FAR_M = 0.3, 10.0


def read(path: Path) -> NDArray[np.generic]:
    return np.asarray(Image.open(path))


def single_pair(rgb: str, depth: str, units_a_metre: float) -> Callable[[Path], Iterator[Sample]]:
    """Loader of one frame."""

    def load(folder: Path) -> Iterator[Sample]:
        yield read(folder / rgb)[..., :3], read(folder / depth) / units_a_metre

    return load


def fastdepth(folder: Path) -> Iterator[Sample]:
    yield read(folder / "rgb.png")[..., :3], np.load(folder / "depth.npy").squeeze().astype(float)


def slambook(folder: Path) -> Iterator[Sample]:
    for path in sorted((folder / "color").glob("*.png")):
        depth = next((folder / "depth").glob(f"{path.stem}.*"))
        yield read(path)[..., :3], read(depth) / 1000.0


def clip(folder: Path) -> Iterator[Sample]:
    """Eight frames spread over a clip with truth."""
    wanted = sorted((folder / "depth").glob("*.png"))
    wanted = [wanted[i] for i in np.linspace(0, len(wanted) - 1, 10).round().astype(int)[1:-1]]
    paths = {int(path.stem): path for path in wanted}
    with av.open(str(folder / "clip.mp4")) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in paths:
                yield frame.to_ndarray(format="rgb24"), read(paths[index]) / 1000.0


SETS: dict[str, Callable[[Path], Iterator[Sample]]] = {
    "tum_frame": single_pair("TUM_color.png", "TUM_depth.png", 5000.0),
    "fastdepth_nyu": fastdepth,
    "slambook": slambook,
    "kitchen": clip,
    "hololens": clip,
}


def scores(values: NDArray[np.float64], depth_m: NDArray[np.float64]) -> tuple[float, float]:
    """AbsRel and d1 of `values` after the best affine fit to depth."""
    valid = (depth_m > NEAR_M) & (depth_m < FAR_M)
    x, z = values[valid], depth_m[valid]
    design = np.stack((x, np.ones_like(x)), 1)
    fitted = np.maximum(design @ np.linalg.lstsq(design, z, rcond=None)[0], 1e-3)
    return float(np.mean(np.abs(fitted - z) / z)), float(np.mean(np.maximum(fitted / z, z / fitted) < 1.25))


def judge(estimator: CompactEstimator, samples: list[Sample], pictures: Path | None, name: str) -> NDArray[np.float64]:
    """(3, 2): mean AbsRel and d1 of the constant, the ramp, the network."""
    rows = []
    for index, (rgb, depth_m) in enumerate(samples):
        values = np.exp(estimator.estimate(np.ascontiguousarray(rgb)[None])[0].values.astype(float))
        if values.shape != depth_m.shape:
            raise SystemExit(f"{name}: truth {depth_m.shape} does not match the picture {values.shape}")
        ramp = np.broadcast_to(np.arange(len(depth_m), dtype=float)[:, None], depth_m.shape)
        rows.append([scores(v, depth_m) for v in (np.ones_like(values), ramp, values)])
        if pictures is not None:
            save_picture(pictures / f"{name}{index}.png", rgb, np.log(values), depth_m)
    return np.mean(rows, axis=0)


def save_picture(
    path: Path, rgb: NDArray[np.uint8], log_depth: NDArray[np.float64], depth_m: NDArray[np.float64]
) -> None:
    """Picture, prediction and truth side by side, near dark."""

    def grey(x: NDArray[np.float64]) -> NDArray[np.uint8]:
        low, high = np.nanpercentile(x, (1, 99))
        level = np.nan_to_num(np.clip((x - low) / (high - low + 1e-9), 0, 1)) * 255
        return np.repeat(level.astype(np.uint8)[..., None], 3, 2)

    path.parent.mkdir(parents=True, exist_ok=True)
    truth = np.log(np.where((depth_m > NEAR_M) & (depth_m < FAR_M), depth_m, np.nan))
    Image.fromarray(np.concatenate((rgb, grey(log_depth), grey(truth)), 1)).reduce(2).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MARIGOLD3D_DATA", "../shared/data"))
    parser.add_argument("--weights", type=Path, help="other weights than the package's")
    parser.add_argument("--resolution", type=int, nargs="+", default=[0], help="longest side in pixels; 0: the default")
    parser.add_argument("--pictures", type=Path, help="write picture, prediction, truth here")
    args = parser.parse_args()
    sets = {name: list(load(args.data / name)) for name, load in SETS.items() if (args.data / name).is_dir()}
    if not sets:
        raise SystemExit(f"no data in {args.data}: pass --data or set MARIGOLD3D_DATA")
    for resolution in args.resolution:
        estimator = CompactEstimator(processing_resolution=resolution)
        if args.weights:
            estimator._network = load_network(args.weights.read_bytes())[1]
        print(f"\nlongest side {estimator.longest_side_px} px; AbsRel / d1 after the best affine fit in depth\n")
        print("| data | frames | constant | row ramp | compact |\n|---|---|---|---|---|")
        table = {name: judge(estimator, samples, args.pictures, name) for name, samples in sets.items()}
        for name, result in (*table.items(), ("**mean of sets**", np.mean(list(table.values()), axis=0))):
            cells = " | ".join(f"{rel:.3f} / {within:.3f}" for rel, within in result)
            print(f"| {name} | {len(sets.get(name, [])) or ''} | {cells} |")


if __name__ == "__main__":
    main()
