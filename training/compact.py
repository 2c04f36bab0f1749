"""Train the embedded `compact` network on procedural scenes.

    python -m training.compact --minutes 60 --out DIR [--seed 0] [--resume] [--start FILE] [--sizes 160x120 …]

Scenes are rendered into DIR/pool by a process of their own while the network trains on those that are there; step k
uses the first `ready(k)` shards, so that a resumed run sees what an uninterrupted one would have. DIR gets state.pt,
log.csv, compact.safetensors.
"""

import argparse
import math
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from marigold3d.depth.compact_network import CompactNetwork
from training import augment, losses, pool, prior

HELD_OUT_SHARD = 99_999
FROZEN_BLOCKS = 5  # stem and strides 2 to 8 keep the prior: general, and the dearest to train


@dataclass(frozen=True)
class Recipe:
    """Every setting of a run."""

    steps: int = 6000
    minutes: float = math.inf  # of wall clock; the schedule ends with steps or minutes, whichever end first
    batch: int = 16
    sizes: tuple[tuple[int, int], ...] = ((160, 120), (192, 144), (224, 168))  # (width, height), one of them each step
    rate: float = 1e-3  # decoder
    encoder_rate: float = 2e-4
    weight_decay: float = 0.02
    warm_up_steps: int = 100
    ema_decay: float = 0.998
    first_shards: int = 30  # ready before the first step
    steps_a_shard: int = 16  # then one more shard each so many steps
    shards: int = 160
    seed: int = 0
    checkpoint_s: float = 180.0


def ready(recipe: Recipe, step: int) -> int:
    """How many shards a step may draw from."""
    return min(recipe.shards, recipe.first_shards + step // recipe.steps_a_shard)


def learning_rate(recipe: Recipe, step: int, elapsed_s: float = 0.0) -> float:
    """Share of the full rate: linear warm-up, then half a cosine to 1 % over the steps or the minutes, whichever end
    first.
    """
    warm = min(1.0, (step + 1) / recipe.warm_up_steps)
    done = min(1.0, max(step / recipe.steps, elapsed_s / (60 * recipe.minutes)))
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


class Shards:
    """Random batches from the shards rendered so far, kept in memory as bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: list[dict[str, Tensor]] = []

    def up_to(self, count: int) -> None:
        """Load the first `count` shards, waiting for the renderer."""
        while len(self.loaded) < count:
            path = pool.shard_path(self.folder, len(self.loaded))
            while not path.exists():
                time.sleep(0.5)
            self.loaded.append(load_file(path))

    def batch(self, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """rgb (B, 3, H, W) in 0..1 and log depth (B, 1, H, W), float32, drawn with replacement."""
        views = len(self.loaded[0]["rgb"])
        picks = torch.randint(len(self.loaded) * views, (size,), generator=rng).tolist()
        rgb = torch.stack([self.loaded[i // views]["rgb"][i % views] for i in picks])
        log_depth = torch.stack([self.loaded[i // views]["log_depth"][i % views] for i in picks])
        return rgb.float() / 255, log_depth.float()


class Training:
    """Network, its running average, optimiser and random state: all that a checkpoint holds."""

    def __init__(self, recipe: Recipe, start: Path | None = None) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.network = CompactNetwork()
        prior.load_imagenet(self.network.encoder)
        if start is not None:
            self.network.load_state_dict({k: v.float() for k, v in load_file(start).items()})
        self.network = self.network.to(memory_format=torch.channels_last)
        freeze(self.network)
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.optimiser = optimiser(recipe, self.network)
        self.rng = torch.Generator().manual_seed(recipe.seed)
        self.step = 0
        self.elapsed_s = 0.0

    @property
    def is_finished(self) -> bool:
        """Whether the steps or the minutes are used up."""
        return self.step >= self.recipe.steps or self.elapsed_s >= 60 * self.recipe.minutes

    def advance(self, shards: Shards) -> float:
        """One step; returns its loss."""
        recipe, began = self.recipe, time.monotonic()
        shards.up_to(ready(recipe, self.step))
        width, height = recipe.sizes[int(torch.randint(len(recipe.sizes), (), generator=self.rng))]
        rgb, log_depth = augment.crop_and_flip(*shards.batch(recipe.batch, self.rng), (height, width), self.rng)
        rgb = augment.photograph(rgb, self.rng).contiguous(memory_format=torch.channels_last)
        for group in self.optimiser.param_groups:
            group["lr"] = group["full_rate"] * learning_rate(recipe, self.step, self.elapsed_s)
        prediction, log_scale = self.network(rgb)
        loss = losses.depth_loss(prediction, log_scale, log_depth)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self._average()
        self.step += 1
        self.elapsed_s += time.monotonic() - began
        return float(loss.detach())

    def _average(self) -> None:
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():  # detached by state_dict
            self.average[name].lerp_(value, 1 - decay)

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "rng": self.rng.get_state(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def restore(self, path: Path) -> None:
        """Continue exactly where `save` stood."""
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.rng.set_state(state["rng"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]


def freeze(network: CompactNetwork) -> None:
    """Keep the prior's first layers."""
    for module in (network.encoder.stem, *network.encoder.blocks[:FROZEN_BLOCKS]):
        module.requires_grad_(False)


def optimiser(recipe: Recipe, network: CompactNetwork) -> torch.optim.AdamW:
    """AdamW; the encoder learns slower, so that what it knows of real images survives the synthetic ones."""
    encoder = [p for p in network.encoder.parameters() if p.requires_grad]
    names = {id(p) for p in network.encoder.parameters()}
    decoder = [p for p in network.parameters() if id(p) not in names]
    groups = [{"params": encoder, "full_rate": recipe.encoder_rate}, {"params": decoder, "full_rate": recipe.rate}]
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def export(weights: dict[str, Tensor], path: Path) -> None:
    """float16 safetensors, atomically."""
    partial = path.with_suffix(".partial")
    save_file({k: v.half().contiguous() for k, v in weights.items()}, partial)
    partial.replace(path)


def held_out_error(weights: dict[str, Tensor], shard: dict[str, Tensor], recipe: Recipe) -> float:
    """Mean absolute log-depth error (sky out, median shift) on scenes never trained on."""
    network = CompactNetwork().to(memory_format=torch.channels_last)
    network.load_state_dict(weights)
    network.eval().requires_grad_(False)
    size = recipe.sizes[0][::-1]
    rgb = nn.functional.interpolate(shard["rgb"].float() / 255, size=size, mode="area")
    log_depth = nn.functional.interpolate(shard["log_depth"].float(), size=size, mode="nearest-exact")
    total = 0.0
    for part, truth in zip(rgb.split(16), log_depth.split(16), strict=True):
        weight = losses.weights(truth)
        error = losses.residual(network(part)[0], truth, weight).abs()
        total += float(error[weight >= 1.0].mean()) * len(part)
    return total / len(rgb)


def train(
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    start: Path | None = None,
    pool_folder: Path | None = None,
) -> float:
    """Train to the end of the schedule; returns the held-out error."""
    out.mkdir(parents=True, exist_ok=True)
    folder = pool_folder or out / "pool"
    for numbers in (range(HELD_OUT_SHARD, HELD_OUT_SHARD + 1), range(recipe.shards)):
        renderer = multiprocessing.get_context("spawn").Process(
            target=pool.fill, args=(folder, recipe.seed, numbers), daemon=True
        )
        renderer.start()
    training = Training(recipe, start)
    if resume:
        training.restore(out / "state.pt")
    shards, saved, recent = Shards(folder), time.monotonic(), []
    while not training.is_finished:
        recent.append(training.advance(shards))
        if time.monotonic() - saved > recipe.checkpoint_s:
            report(training, out, recent, folder)
            saved, recent = time.monotonic(), []
    return report(training, out, recent, folder)


def report(training: Training, out: Path, recent: list[float], folder: Path) -> float:
    """Checkpoint, export, and one line of log; returns the held-out error."""
    training.save(out / "state.pt")
    export(training.average, out / "compact.safetensors")
    path = pool.shard_path(folder, HELD_OUT_SHARD)
    while not path.exists():
        time.sleep(0.5)
    error = held_out_error(training.average, load_file(path), training.recipe)
    line = f"{training.step},{sum(recent) / max(1, len(recent)):.4f},{error:.4f},{time.strftime('%H:%M:%S')}"
    with (out / "log.csv").open("a") as log:
        log.write(line + "\n")
    print(line, flush=True)
    return error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="length of the cosine")
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--shards", type=int, default=Recipe.shards)
    parser.add_argument("--sizes", nargs="+", default=["160x120", "192x144", "224x168"], help="WIDTHxHEIGHT, px")
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="continue from state.pt")
    parser.add_argument("--start", type=Path, help="weights to begin from (a second phase)")
    parser.add_argument("--pool", type=Path, help="folder of rendered shards, instead of OUT/pool")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = tuple((int(width), int(height)) for width, height in (size.split("x") for size in args.sizes))
    recipe = Recipe(
        steps=args.steps,
        minutes=args.minutes,
        batch=args.batch,
        shards=args.shards,
        seed=args.seed,
        sizes=sizes,
        rate=args.rate,
        encoder_rate=args.rate / 5,
    )
    train(recipe, args.out, args.resume, args.start, args.pool)


if __name__ == "__main__":
    main()
