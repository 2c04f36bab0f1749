"""Train the embedded `compact` network on procedural scenes.

    python -m training.compact --minutes 100 --out DIR --assets MODELS [--seed 0] [--resume] [--start FILE]
                               [--sizes 224x160 …] [--second POOL] [--renderers 1] [--device auto]

Scenes are rendered into DIR/pool by processes of their own while the network trains on those that are there; step k
draws from the first `ready(k)` shards, so that a resumed run sees what an uninterrupted one would have. MODELS is what
`training.assets` wrote; without it rooms are furnished with plain solids only. DIR gets state.pt, log.csv,
compact.safetensors.
"""

import argparse
import math
import multiprocessing
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from marigold3d.depth.compact_network import CompactNetwork
from training import augment, depthwise, losses, pool, prior

HELD_OUT_SHARD = 99_999
FROZEN_BLOCKS = 5  # stem and strides 2 to 8 keep the prior: general, and the dearest to train
HELD_OUT_SIZE = (160, 224)


@dataclass(frozen=True)
class Recipe:
    """Every setting of a run."""

    steps: int = 20_000
    minutes: float = math.inf  # of wall clock; the schedule ends with steps or minutes, whichever end first
    batch: int = 16
    sizes: tuple[tuple[int, int], ...] = ((192, 160), (224, 160), (256, 192), (160, 192))  # (width, height)
    rate: float = 1e-3  # decoder
    encoder_rate: float = 2e-4
    weight_decay: float = 0.02
    warm_up_steps: int = 100
    ema_decay: float = 0.998
    gradient_weight: float = losses.GRADIENT_WEIGHT
    domain: losses.DepthDomain = "log_depth"
    has_prior: bool = True  # ImageNet weights, partly frozen; else the encoder begins shuffled and learns as the rest
    is_photographed: bool = True  # pictures go through `augment.photograph`
    first_shards: int = 8  # ready before the first step
    steps_a_shard: int = 30  # then one more shard each so many steps
    shards: int = 500
    second_share: float = 0.2  # of the pictures come from the second pool, if there is one
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
    """Random batches from the shards rendered so far, read where they lie; and from a second, finished pool."""

    def __init__(self, folder: Path, second: Path | None = None, second_share: float = 0.0) -> None:
        self.folder = folder
        self.opened: list[Any] = []
        paths = sorted(second.glob("shard*.safetensors")) if second is not None else []
        self.second = [safe_open(p, "pt") for p in paths if p != pool.shard_path(p.parent, HELD_OUT_SHARD)]
        self.second_share = second_share if self.second else 0.0

    def up_to(self, count: int) -> None:
        """Open the first `count` shards, waiting for the renderer."""
        while len(self.opened) < count:
            path = pool.shard_path(self.folder, len(self.opened))
            while not path.exists():
                time.sleep(0.5)
            self.opened.append(safe_open(path, "pt"))

    def batch(self, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """rgb (B, 3, H, W) in 0..1 and log depth (B, 1, H, W), float32, drawn with replacement."""
        rgb, log_depth = [], []
        for _ in range(size):
            second, which, view = torch.rand(3, generator=rng).tolist()
            group = self.second if second < self.second_share else self.opened
            shard = group[int(which * len(group))]
            pictures = shard.get_slice("rgb")
            i = int(view * pictures.get_shape()[0])
            rgb.append(pictures[i : i + 1])
            log_depth.append(shard.get_slice("log_depth")[i : i + 1])
        return torch.cat(rgb).float() / 255, torch.cat(log_depth).float()


class Training:
    """Network, its running average, optimiser and random state: all that a checkpoint holds."""

    def __init__(self, recipe: Recipe, start: Path | None = None, device: str = "cpu") -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, torch.device(device)
        self.network = CompactNetwork()
        prior.load_imagenet(self.network.encoder)
        if not recipe.has_prior:
            prior.shuffle(self.network.encoder, torch.Generator().manual_seed(recipe.seed))
        if start is not None:
            self.network.load_state_dict({k: v.float() for k, v in load_file(start).items()})
        self.network = self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if recipe.has_prior:
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
        if recipe.is_photographed:
            rgb = augment.photograph(rgb, self.rng)
        rgb = rgb.to(self.device).contiguous(memory_format=torch.channels_last)
        log_depth = log_depth.to(self.device)
        for group in self.optimiser.param_groups:
            group["lr"] = group["full_rate"] * learning_rate(recipe, self.step, self.elapsed_s)
        # The plain formula of attention: at these sizes the fused one is several times slower backwards on a CPU.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(self.device.type, torch.bfloat16):
            prediction, log_scale = self.network(rgb)
        loss = losses.depth_loss(
            prediction.float(), log_scale.float(), log_depth, recipe.gradient_weight, recipe.domain
        )
        if not bool(loss.isfinite()):
            raise FloatingPointError(f"the loss is {float(loss)} at step {self.step}: the last checkpoint is kept")
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
        state = torch.load(path, weights_only=True, map_location=self.device)
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.rng.set_state(state["rng"].cpu())
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]


def freeze(network: CompactNetwork) -> None:
    """Keep the prior's first layers, and its spatial filters everywhere; what mixes channels learns."""
    for module in (network.encoder.stem, *network.encoder.blocks[:FROZEN_BLOCKS]):
        module.requires_grad_(False)
    depthwise.freeze(network.encoder)


def optimiser(recipe: Recipe, network: CompactNetwork) -> torch.optim.AdamW:
    """AdamW; the encoder learns slower, so that what it knows of real images survives the synthetic ones."""
    encoder = [p for p in network.encoder.parameters() if p.requires_grad]
    names = {id(p) for p in network.encoder.parameters()}
    decoder = [p for p in network.parameters() if id(p) not in names]
    encoder_rate = recipe.encoder_rate if recipe.has_prior else recipe.rate
    groups = [{"params": encoder, "full_rate": encoder_rate}, {"params": decoder, "full_rate": recipe.rate}]
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def export(weights: dict[str, Tensor], path: Path) -> None:
    """float16 safetensors, atomically."""
    partial = path.with_suffix(".partial")
    save_file({k: v.cpu().half().contiguous() for k, v in weights.items()}, partial)
    partial.replace(path)


def held_out_error(
    weights: dict[str, Tensor], shard: dict[str, Tensor], domain: losses.DepthDomain = "log_depth"
) -> float:
    """Mean absolute error (sky out; of log depth after its median shift) on scenes never trained on."""
    network = CompactNetwork().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.load_state_dict(weights)
    network.eval().requires_grad_(False)
    rgb = nn.functional.interpolate(shard["rgb"].float() / 255, size=HELD_OUT_SIZE, mode="area")
    log_depth = nn.functional.interpolate(shard["log_depth"].float(), size=HELD_OUT_SIZE, mode="nearest-exact")
    total = 0.0
    for part, truth in zip(rgb.split(16), log_depth.split(16), strict=True):
        weight = losses.weights(truth)
        error = losses.residual(network(part)[0], truth, weight, domain).abs()
        total += float(error[weight >= 1.0].mean()) * len(part)
    return total / len(rgb)


def start_renderers(recipe: Recipe, folder: Path, assets: Path | None, count: int) -> None:
    """Processes that fill the pool, shard by shard in turn, the held-out one first; they end with this one."""
    processes = multiprocessing.get_context("spawn")
    work = [range(HELD_OUT_SHARD, HELD_OUT_SHARD + 1), *(range(n, recipe.shards, count) for n in range(count))]
    for numbers in work if count > 0 else []:
        processes.Process(target=pool.fill, args=(folder, recipe.seed, numbers, assets), daemon=True).start()


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    start: Path | None = None,
    pool_folder: Path | None = None,
    second: Path | None = None,
    assets: Path | None = None,
    renderers: int = 1,
    device: str = "cpu",
) -> float:
    """Train to the end of the schedule; returns the held-out error. `renderers` = 0: the pool is filled elsewhere."""
    out.mkdir(parents=True, exist_ok=True)
    folder = pool_folder or out / "pool"
    start_renderers(recipe, folder, assets, renderers)
    training = Training(recipe, start, device)
    if resume:
        training.restore(out / "state.pt")
    shards = Shards(folder, second, recipe.second_share)
    saved, recent = time.monotonic(), []
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
    error = held_out_error({k: v.cpu() for k, v in training.average.items()}, load_file(path), training.recipe.domain)
    line = f"{training.step},{sum(recent) / max(1, len(recent)):.4f},{error:.4f},{time.strftime('%H:%M:%S')}"
    with (out / "log.csv").open("a") as log:
        log.write(line + "\n")
    print(line, flush=True)
    return error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Recipe):
        if field.type in (int, float, "int", "float"):
            option = f"--{field.name.replace('_', '-')}"
            parser.add_argument(option, type=float if field.type is float else int, default=field.default)
    parser.add_argument("--sizes", nargs="+", help="WIDTHxHEIGHT, px")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="continue from state.pt")
    parser.add_argument("--start", type=Path, help="weights to begin from (a second phase)")
    parser.add_argument("--pool", type=Path, help="folder of rendered shards, instead of OUT/pool")
    parser.add_argument("--second", type=Path, help="another, finished pool to mix in")
    parser.add_argument("--assets", type=Path, help="folder of models that training.assets wrote")
    parser.add_argument(
        "--renderers", type=int, default=1, help="processes that render; 0: the pool is filled elsewhere"
    )
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # freshly initialised gates make them by the million, and each costs 100 cycles
    settings = {field.name: getattr(args, field.name) for field in fields(Recipe) if hasattr(args, field.name)}
    if args.sizes is None:
        del settings["sizes"]
    else:
        settings["sizes"] = tuple((int(w), int(h)) for w, h in (size.split("x") for size in args.sizes))
    train(
        Recipe(**settings),
        args.out,
        resume=args.resume,
        start=args.start,
        pool_folder=args.pool,
        second=args.second,
        assets=args.assets,
        renderers=args.renderers,
        device=args.device,
    )


if __name__ == "__main__":
    main()
