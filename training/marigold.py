"""Fine-tune a latent diffusion checkpoint into a Marigold depth model.

    python -m training.marigold --config training/configs/marigold.yaml base=FOLDER out=RUN
    python -m training.marigold --config training/configs/marigold.yaml base=FOLDER out=RUN --resume
    torchrun --nproc-per-node 8 -m training.marigold --config … base=FOLDER out=RUN

Every key of the recipe (training/recipe/config.py) can be overridden as key=value or section.key=value. Each
RUN/step-NNNNNN is a pipeline that `marigold3d --model` and diffusers open; `tensorboard --logdir RUN` shows the curves.

Exit codes are those of marigold3d (0 finished, 2 usage, 3 input, 4 model, 5 memory, 7 output, 130 interrupted: what is
finished is saved, --resume goes on), and 8: the loss is no longer finite.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from marigold3d.errors import Marigold3DError, OutOfMemoryError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.marigold", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the recipe, YAML")
    parser.add_argument("--resume", action="store_true", help="continue the run in `out` exactly where it stopped")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the recipe")
    given = parser.parse_intermixed_args(arguments)
    try:
        _train(given)
    except Marigold3DError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: what is finished is saved, continue with --resume", file=sys.stderr)
        return INTERRUPTED
    finally:
        _leave_group()
    return 0


def _train(given: argparse.Namespace) -> None:
    from marigold3d.depth.device import is_out_of_memory
    from marigold3d.progress import run
    from marigold3d.terminal import progress_bars
    from training.recipe.config import load_recipe
    from training.recipe.loop import train

    recipe = load_recipe(given.config, given.overrides)
    first = int(os.environ.get("RANK", "0")) == 0
    try:
        with progress_bars(given.quiet or not first) as on_progress:
            newest = run(train(recipe, given.resume), on_progress)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"a micro-batch of {recipe.micro_batch} does not fit in memory: lower micro_batch, "
            "or use gradient_checkpointing=true"
        ) from None
    if first:
        print(newest)


def _leave_group() -> None:
    """Processes that trained together part in order."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
