"""How accurate and how fast whole runs are: every case through the command line, scored against the truth, as a table.

    python tests/benchmarks/reconstruction.py [--data FOLDER] [--only kitchen hololens …] [--keep FOLDER]

Each case runs in a process of its own, so that seconds and peak memory are its own. The command is printed first; the
Markdown table follows when all are done or the benchmark is interrupted. tests/scoring.py defines the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # a script sees its own folder only, the scoring stands one above

from marigold3d.store import Run  # noqa: E402
from tests.scoring import Truth, score_run  # noqa: E402

KITCHEN_FPS, HOLOLENS_FPS = 30.0, 10.0
STAGES = ("scan", "poses", "depth", "align", "refine", "fuse", "write")
COLUMNS = ("case", "frames posed", "AbsRel", "δ1", "coverage", "ATE, m", "F 5 cm", "F 10 cm")
SURFACE, COSTS = "to surface, mm: mean / median / 90 %", ("/".join(STAGES) + ", s", "total, s", "peak, MB")


@dataclass(frozen=True)
class Case:
    """A clip, what is told about it (`{}` stands for its folder), and how its truth is read."""

    name: str
    folder: str | None  # of the recordings; None: the example in the repository
    options: tuple[str, ...]
    fps: float | None = None

    def paths(self, data: Path) -> tuple[Path, Path]:
        """(clip, folder of its truth)."""
        if self.folder is None:
            return ROOT / "examples" / "clip.mp4", ROOT / "examples" / "clip_truth"
        return data / self.folder / "clip.mp4", data / self.folder

    def truth(self, data: Path) -> Truth:
        folder = self.paths(data)[1]
        return Truth.rendered(folder) if self.fps is None else Truth.recording(folder, self.fps)

    def command(self, data: Path, run: Path, extra: list[str]) -> list[str]:
        clip, folder = self.paths(data)
        options = [option.format(folder) for option in self.options]
        program = [sys.executable, "-m", "marigold3d.cli", "video", str(clip), *options, *extra]
        return [*program, "--json", "-q", "--overwrite", "-o", str(run)]


CAMERA, POSES = ("--intrinsics", "{}/K.txt"), ("--poses", "{}/poses_c2w.npy", "--metric-poses")
CASES = (
    Case("examples", None, ()),
    Case("kitchen", "kitchen", (), KITCHEN_FPS),
    Case("kitchen-no-refine", "kitchen", ("--no-refine",), KITCHEN_FPS),
    Case("kitchen-given-poses", "kitchen", (*POSES, *CAMERA), KITCHEN_FPS),
    Case("hololens", "hololens", CAMERA, HOLOLENS_FPS),
    Case("hololens-given-poses", "hololens", (*POSES, *CAMERA), HOLOLENS_FPS),
)


class CaseError(Exception):
    """Why a case has no figures, in one line."""


def last_line(process: subprocess.CompletedProcess[str]) -> str:
    lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}, nothing said"]
    return lines[-1]


def execute(command: list[str], timeout_s: float) -> str:
    """What a command prints; CaseError when it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise CaseError(f"stopped after {timeout_s:.0f} s") from None
    if done.returncode:
        raise CaseError(last_line(done))
    return done.stdout


def row(case: Case, report: dict[str, Any], figures: dict[str, float]) -> list[str]:
    """The case's cells, under COLUMNS, SURFACE and COSTS."""
    cameras, seconds = report["cameras"], report["seconds"]
    surface = [figures[f"surface_{name}_m"] for name in ("mean", "median", "p90") if f"surface_{name}_m" in figures]
    return [
        case.name,
        f"{cameras['frames_posed']} of {cameras['frames']}",
        *(f"{figures[name]:.3f}" for name in ("abs_rel", "delta1", "coverage", "ate_rmse_m")),
        *(f"{figures[name]:.3f}" if name in figures else "" for name in ("f_5cm", "f_10cm")),
        " / ".join(f"{1000 * metres:.0f}" for metres in surface),
        "/".join(f"{seconds.get(stage, 0):.0f}" for stage in STAGES),
        f"{seconds['total']:.0f}",
        f"{report['peak_memory_mb']:.0f}",
    ]


def other_row(case: Case, tool: Path, run: Path, data: Path) -> list[str]:
    """The figures of another scoring script, called as `tool RUN DATA --fps N` and answering `name value` lines."""
    command = [sys.executable, str(tool.absolute()), str(run), str(case.paths(data)[1]), "--fps", f"{case.fps:g}"]
    said = dict(line.split(maxsplit=1) for line in execute(command, 1800).splitlines() if len(line.split()) > 1)
    names = ("posed_frames", "abs_rel", "delta1", "coverage", "ate_rmse_m", "f_score_5cm", "f_score_10cm")
    return [f"{case.name}, by {tool.name}", *(said.get(name, "").strip() for name in names), "", "", "", ""]


def judge(case: Case, run: Path, args: argparse.Namespace) -> list[list[str]]:
    """Run and score one case: its rows, or one row that says what went wrong."""
    command = case.command(args.data, run, shlex.split(args.options))
    print(f"\n{case.name}:\n\n    {shlex.join(command)}\n", flush=True)
    try:
        report = json.loads(execute(command, args.timeout))
        rows = [row(case, report, score_run(Run.open(run), case.truth(args.data)))]
        for warning in report["warnings"]:
            print(f"    warning: {warning}", flush=True)
        if args.score and case.fps is not None:
            rows.append(other_row(case, args.score, run, args.data))
        return rows
    except Exception as error:  # whatever it is, the other cases still count
        return [[case.name, "failed: " + " ".join(str(error).split())]]


def markdown(rows: list[list[str]]) -> str:
    header = [*COLUMNS, SURFACE, *COSTS]
    lines = [header, ["---"] * len(header), *(cells + [""] * (len(header) - len(cells)) for cells in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MARIGOLD3D_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], metavar="CASE", help="these cases")
    parser.add_argument("--options", default="", help='more options for every run, such as "--max-frames 30"')
    parser.add_argument(
        "--score", type=Path, metavar="TOOL", help="a script that scores runs too: TOOL RUN DATA --fps N"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the runs here")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds a run may take")
    args = parser.parse_args()
    args.data = args.data.resolve()
    return args


def main() -> None:
    args = arguments()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="marigold3d-") as scratch:
        try:
            for case in CASES:
                if args.only and case.name not in args.only:
                    continue
                if not case.paths(args.data)[0].is_file():
                    rows.append([case.name, "skipped: no such recording; pass --data or set MARIGOLD3D_DATA"])
                    continue
                rows += judge(case, (args.keep or Path(scratch)).absolute() / case.name, args)
        finally:
            print("\n" + markdown(rows), flush=True)


if __name__ == "__main__":
    main()
