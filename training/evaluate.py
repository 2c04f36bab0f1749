"""Judge a depth estimator by Marigold's protocol, beside the published rows, a constant and a row ramp.

    python -m training.evaluate --dataset nyu --root nyu_labeled_extracted.tar --split filename_list_test.txt \\
        --model marigold --steps 1 --ensemble 10 --json nyu.json
    python -m training.evaluate --dataset frames --root FOLDER --model compact --per-image --pictures PICTURES
    python -m training.evaluate --dataset frames --root FOLDER --weights compact.safetensors --flip --sizes 192 224 288
    python -m training.evaluate --table nyu.json kitti.json eth3d.json scannet.json diode.json

Every image's figures are kept beside --json (or in --work): the same command after an interruption goes on where it
was. Damaged images are named, skipped and counted; above 1 % the evaluation fails.

Exit codes are those of marigold3d: 0 finished, 2 usage, 3 input, 4 model, 5 memory, 7 output, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from marigold3d.errors import Marigold3DError, UsageError

DATASETS = ("nyu", "kitti", "eth3d", "scannet", "diode", "frames")
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = _parser().parse_args(arguments)
    try:
        print(_table(given.table) if given.table else _evaluate(given))
    except Marigold3DError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        kept = "what is judged is kept, the same command goes on" if given.json or given.work else "nothing is kept"
        print(f"interrupted: {kept}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", choices=DATASETS)
    data.add_argument("--root", metavar="PATH", help="the data set's folder, or its official tar as it is")
    data.add_argument("--split", metavar="FILE", help="the official list; else it must lie in the folder of --root")
    data.add_argument("--kitti-mask", choices=("eigen", "garg", "none"), default="eigen", help="default: eigen")
    data.add_argument("--limit", type=int, metavar="N", help="only N images, spread evenly")
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="compact", help="a registered name, a folder, OWNER/NAME, constant or ramp")
    model.add_argument("--weights", metavar="FILE", help="other weights for --model compact, safetensors")
    model.add_argument("--steps", type=int, metavar="N", help="denoising steps; default: the checkpoint's")
    model.add_argument("--ensemble", type=int, default=1, metavar="N", help="predictions merged an image")
    model.add_argument(
        "--processing-resolution",
        type=int,
        metavar="PX",
        help="longest side at the network, 0 the picture's own; default: the protocol's for Marigold checkpoints "
        "(ETH3D 756, DIODE 640, else 0), their own for other networks",
    )
    model.add_argument(
        "--seed", type=int, default=1234, help="of the noise and the bootstrap; default 1234, Marigold's"
    )
    model.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    model.add_argument("--offline", action="store_true", help="never contact the model hub")
    model.add_argument("--flip", action="store_true", help="average with the mirrored picture's depth")
    model.add_argument("--sizes", type=int, nargs="+", default=[], metavar="PX", help="average over these sizes")
    out = parser.add_argument_group("output")
    out.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    out.add_argument("--work", type=Path, metavar="FOLDER", help="keep the images' figures there, not beside --json")
    out.add_argument("--pictures", type=Path, metavar="FOLDER", help="image, estimate, truth and error of every image")
    out.add_argument("--per-image", action="store_true", help="print a row for every image")
    out.add_argument("--quiet", action="store_true", help="no progress bar")
    out.add_argument("--table", nargs="+", type=Path, metavar="FILE", help="only print the paper's table of reports")
    return parser


def _evaluate(given: argparse.Namespace) -> str:
    if given.dataset is None or given.root is None:
        raise UsageError("give --dataset and --root (or --table and reports)")
    if given.limit is not None and given.limit < 1:
        raise UsageError(f"--limit must be at least 1, got {given.limit}")
    from training.evaluation.command import Request, evaluate

    names = Request.__dataclass_fields__
    return evaluate(Request(**{name: getattr(given, name) for name in names}))


def _table(paths: Sequence[Path]) -> str:
    from training.evaluation.command import read_report
    from training.evaluation.tables import paper_table

    return paper_table([read_report(path) for path in paths])


if __name__ == "__main__":
    sys.exit(main())
