"""How well the embedded network sees single real frames: `python -m training.evaluate --dataset frames`, size by size.

python tests/benchmarks/compact_single_frames.py [--data FOLDER] [--weights FILE] [--resolution 192 320]
[--pictures FOLDER]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `training` is part of the repository, not of the package

from training.evaluate import main as evaluate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("MARIGOLD3D_DATA", "../shared/data"))
    parser.add_argument("--weights", help="other weights than the package's")
    parser.add_argument("--resolution", nargs="+", default=["0"], help="longest side in pixels; 0: the default")
    parser.add_argument("--pictures", type=Path, help="write image, estimate, truth and error here")
    args = parser.parse_args()
    for resolution in args.resolution:
        options = ["--dataset", "frames", "--root", args.data, "--processing-resolution", resolution]
        options += ["--weights", args.weights] if args.weights else []
        options += ["--pictures", str(args.pictures / resolution)] if args.pictures else []
        if code := evaluate(options):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
