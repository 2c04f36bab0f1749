"""What matters in the embedded network's recipe: the same short training, with one thing changed at a time.

    python -m training.ablations --pool POOL --plain PLAIN --shards 70 --data FRAMES --out DIR [--steps 800] [--only …]

POOL and PLAIN are shards of `training.pool`, with and without `--assets`; FRAMES is what `training.evaluate --dataset
frames` takes. Variants that DIR holds already are not trained again. Prints a table: error on held-out scenes, and
AbsRel and delta1 on the real frames (mean of sets) after the best affine fit, in disparity where that is what the
variant predicts, else in depth. One look at 224 px each.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from marigold3d.depth.compact import processing_size
from marigold3d.depth.compact_network import CompactNetwork
from marigold3d.types import Array
from training import compact, losses
from training import pool as pools
from training.compact import Recipe
from training.data.samples import Sample
from training.evaluation.frames import Frames
from training.evaluation.metrics import depth_metrics

PROCESSING_PX = 224
NEAREST_M = 1e-3  # a fit may send depth below zero

FULL = Recipe(steps=800, warm_up_steps=50, ema_decay=0.99, first_shards=0, shards=0)
VARIANTS: dict[str, tuple[str, Recipe]] = {
    "full": ("the recipe", FULL),
    "plain_scenes": ("plain solids, no furniture models, simple shading", FULL),
    "no_prior": ("ImageNet weights in random order", replace(FULL, has_prior=False)),
    "no_gradient": ("no gradient loss", replace(FULL, gradient_weight=0.0)),
    "no_photograph": ("pictures as rendered: no tint, blur, noise, JPEG …", replace(FULL, is_photographed=False)),
    "depth": ("predicts depth up to scale and shift", replace(FULL, domain="depth")),
    "disparity": ("predicts disparity up to scale and shift", replace(FULL, domain="disparity")),
}
FRAMES_FAR = 10.0  # metres, as the frames' protocol has it


def judge(weights: Path, domain: losses.DepthDomain, frames: Frames) -> dict[str, dict[str, float]]:
    """{set: {"abs_rel", "delta1"}} of the weights in a file, and their "mean"."""
    network = CompactNetwork().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    network.eval().requires_grad_(False)
    found: dict[str, list[dict[str, float]]] = {}
    for index, group in enumerate(frames.groups):
        sample = frames[index]
        depth_m = fitted_m(predict(network, sample), sample, domain)
        found.setdefault(group, []).append(
            depth_metrics(depth_m, sample.depth_m[0].numpy().astype(float), sample.valid[0].numpy())
        )
    means = {g: {k: float(np.mean([r[k] for r in rows])) for k in ("abs_rel", "delta1")} for g, rows in found.items()}
    means["mean"] = {k: float(np.mean([row[k] for row in means.values()])) for k in ("abs_rel", "delta1")}
    return means


def predict(network: CompactNetwork, sample: Sample) -> Array:
    """(H, W) in the network's domain, bilinear from its own size."""
    height, width = sample.rgb.shape[1:]
    size = processing_size(height, width, PROCESSING_PX)
    small = torch.nn.functional.interpolate(sample.rgb[None].float() / 255, size=size, mode="bilinear", antialias=True)
    values = network(small.contiguous(memory_format=torch.channels_last))[0]
    return torch.nn.functional.interpolate(values, size=(height, width), mode="bilinear")[0, 0].double().numpy()


def fitted_m(values: Array, sample: Sample, domain: losses.DepthDomain) -> Array:
    """Depth (H, W) in metres by least squares of a scale and a shift, in disparity or in depth."""
    valid, depth_m = sample.valid[0].numpy(), sample.depth_m[0].numpy().astype(float)
    x = np.exp(values - np.median(values)) if domain == "log_depth" else values
    y = 1.0 / depth_m[valid] if domain == "disparity" else depth_m[valid]
    design = np.stack((x[valid], np.ones(len(y))), 1)
    scale, shift = np.linalg.lstsq(design, y, rcond=None)[0]
    fit = scale * x + shift
    return 1.0 / np.maximum(fit, 1.0 / FRAMES_FAR) if domain == "disparity" else np.maximum(fit, NEAREST_M)


def run(name: str, recipe: Recipe, pool: Path, held_out_pool: Path, frames: Frames, out: Path) -> dict[str, object]:
    """Train and judge a variant, or read what was found before."""
    result = out / f"{name}.json"
    if not result.exists():
        out.mkdir(parents=True, exist_ok=True)
        training, shards = compact.Training(recipe), compact.Shards(pool)
        while not training.is_finished:
            training.advance(shards)
        weights = out / f"{name}.safetensors"
        compact.export(training.average, weights)
        shard = load_file(pools.shard_path(held_out_pool, compact.HELD_OUT_SHARD))
        error = compact.held_out_error(training.average, shard, recipe.domain)
        result.write_text(json.dumps({"held_out": error, "frames": judge(weights, recipe.domain, frames)}))
    return dict(json.loads(result.read_text()))


def table(results: dict[str, dict[str, object]]) -> str:
    """Markdown, one row a variant; held-out errors of other domains are in other units, and left out."""
    sets = list(next(iter(results.values()))["frames"])  # type: ignore[call-overload]
    lines = [f"| variant | held-out scenes | {' | '.join(sets)} |", "|---" * (len(sets) + 2) + "|"]
    for name, result in results.items():
        text, recipe = VARIANTS[name]
        held_out = f"{result['held_out']:.3f}" if recipe.domain == "log_depth" else ""
        cells = [f"{v['abs_rel']:.3f} / {v['delta1']:.3f}" for v in result["frames"].values()]  # type: ignore[attr-defined]
        lines.append(f"| {text} | {held_out} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--shards", type=int, required=True, help="of POOL, from the first; as many of PLAIN")
    parser.add_argument("--plain", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=FULL.steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    frames = Frames(args.data)
    results = {}
    for name in args.only:
        pool = args.plain if name == "plain_scenes" else args.pool
        recipe = replace(
            VARIANTS[name][1], steps=args.steps, shards=args.shards, first_shards=args.shards, seed=args.seed
        )
        results[name] = run(name, recipe, pool, args.pool, frames, args.out)
        print(table({name: results[name]}), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
