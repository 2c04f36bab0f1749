"""A small true Marigold on a CPU, from rendered scenes to its report.

    python -m training.pool --out POOL --shards 160               # training scenes
    python -m training.pool --out POOL --first 99999 --shards 1   # held-out scenes
    python -m training.small vae --pool POOL --shards 160 --out START          # the VAE, and a random U-Net beside it
    python -m training.small encode --pool POOL --shards 160 --start START --out LATENTS
    python -m training.marigold --config training/configs/small_annealed.yaml base=START out=ANNEALED \\
        data.sources='[{kind: latents, root: LATENTS}]' validation.sources='[{kind: pool, root: POOL, first: 99999}]'
    python -m training.small report --run annealed=ANNEALED --run gaussian=GAUSSIAN --pool POOL --out REPORT
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marigold3d.errors import Marigold3DError, OutputError, UsageError

HELD_OUT_SHARD = 99_999  # as training/compact.py has it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, as `python -m training.marigold` has them."""
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
    except Marigold3DError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.small", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="vae | encode | report")
    vae = commands.add_parser("vae", help="train the VAE and write the folder the recipe starts from")
    vae.add_argument("--steps", type=int, default=3000)
    vae.add_argument("--batch", type=int, default=16)
    vae.set_defaults(run=_vae)
    encode = commands.add_parser("encode", help="encode a pool once")
    encode.add_argument("--start", type=Path, required=True, help="the folder that `vae` wrote")
    encode.add_argument("--pixels", action="store_true", help="keep metric depth too, for end-to-end training")
    encode.set_defaults(run=_encode)
    report = commands.add_parser("report", help="tables and plots of finished runs")
    report.add_argument("--run", dest="runs", action="append", required=True, metavar="NAME=FOLDER")
    report.add_argument("--scenes", type=int, default=128, help="held-out views to judge on")
    report.set_defaults(run=_report)
    for command in (vae, encode, report):
        command.add_argument("--pool", required=True, help="shards of training/pool.py")
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--seed", type=int, default=0)
    for command in (vae, encode):
        command.add_argument("--shards", type=int, required=True, help="how many of the pool, from the first")
    return parser


def _vae(given: argparse.Namespace) -> None:
    from training.small.autoencoder import VaeRecipe, round_trip_error, train_vae
    from training.small.networks import write_start
    from training.small.scenes import PoolSource

    if (given.out / "model_index.json").exists():
        raise OutputError(f"{given.out} holds a pipeline already: choose another --out")
    source = PoolSource(given.pool, 0, given.shards)
    vae = _with_progress(train_vae(source, VaeRecipe(steps=given.steps, batch=given.batch, seed=given.seed)))
    pictures, depth = round_trip_error(vae, PoolSource(given.pool, HELD_OUT_SHARD), 64)
    write_start(given.out, vae, given.seed)
    print(f"{given.out}: held-out round trip: pictures {pictures:.1f} of 255, depth {depth:.4f} of -1..1")


def _encode(given: argparse.Namespace) -> None:
    from training.recipe.networks import network
    from training.small.encoding import encode_pool
    from training.small.scenes import PoolSource

    vae = network(given.start, "vae", "AutoencoderKL").eval().requires_grad_(False)
    count = _with_progress(encode_pool(vae, PoolSource(given.pool, 0, given.shards), given.out, given.pixels))
    print(f"{given.out}: {count} samples and their mirror images")


def _report(given: argparse.Namespace) -> None:
    from training.small.report import write_report
    from training.small.scenes import PoolSource

    runs = dict(_named(run) for run in given.runs)
    text = _with_progress(write_report(runs, PoolSource(given.pool, HELD_OUT_SHARD), given.scenes, given.out))
    print(text)


def _named(run: str) -> tuple[str, Path]:
    name, equals, folder = run.partition("=")
    if not equals:
        raise UsageError(f"{run!r}: write NAME=FOLDER, such as annealed=runs/annealed")
    return name, Path(folder)


def _with_progress(steps: Any) -> Any:
    from marigold3d.progress import run
    from marigold3d.terminal import progress_bars

    with progress_bars() as on_progress:
        return run(steps, on_progress)


if __name__ == "__main__":
    sys.exit(main())
