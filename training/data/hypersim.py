"""Hypersim (Roberts et al., ICCV 2021): rendered interiors, raw as published, and preprocessed once to PNG files.

Preprocessed, in Marigold's form: SCENE/rgb_cam_00_fr0000.png and SCENE/depth_plane_cam_00_fr0000.png, 16-bit
millimetres of z-depth, 0 where nothing is seen. One command writes it; stopped, it goes on where it was:

    python -m training.data.hypersim --raw DIR --split-csv metadata_images_split_scene_v1.csv --out DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from marigold3d.errors import InputError, Marigold3DError, UsageError
from training.data.hypersim_frames import Frame, found_frames, listed_frames, read_frame
from training.data.interrupting import INTERRUPTED, interrupted_between_steps
from training.data.pictures import read_depth, read_rgb, to_sample
from training.data.samples import Sample
from training.data.splits import read_split, read_table, require_files

UNIT_M = 0.001
RANGE_M = (1e-5, 65.0)
RAW_REMEDY = (
    "download it with dataset_download_images.py of https://github.com/apple/ml-hypersim "
    "(color, depth_meters and render_entity_id are needed), or name fewer frames"
)
REMEDY = "write it with python -m training.data.hypersim --raw DIR --split-csv FILE --out DIR"


class Hypersim:
    """The preprocessed form: pictures as stored (usually 768 x 1024), depth that counts from 0 to 65 m.

    `split`: a list of `rgb depth` a line, or a filename_meta_*.csv, of which `max_invalid` (0..1) leaves out frames
    that see too much nothing; without it, every pair below `root`. Raises InputError where files are missing.
    """

    def __init__(self, root: str | Path, split: str | Path | None = None, max_invalid: float | None = None) -> None:
        self.root, self.name = Path(root), "hypersim"
        self.pairs = _pairs(self.root, split, max_invalid)
        require_files(self.root, (path for pair in self.pairs for path in pair), REMEDY)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        rgb_path, depth_path = self.pairs[index]
        depth_m = read_depth(self.root / depth_path, depth_path, UNIT_M)
        return to_sample(read_rgb(self.root / rgb_path, rgb_path), depth_m, RANGE_M, rgb_path)


class HypersimRaw:
    """The published HDF5 files, tone-mapped and made z-depth on reading, which takes about three times as long.

    `split`: metadata_images_split_scene_v1.csv, of which the frames of `partition` are used; without it, every frame
    below `root`. Raises InputError where files are missing.
    """

    def __init__(self, root: str | Path, split: str | Path | None = None, partition: str = "train") -> None:
        self.root, self.name = Path(root), "hypersim_raw"
        self.frames = found_frames(self.root) if split is None else partition_of(split, partition)
        if not self.frames:
            raise InputError(f"{root} holds no ai_*/images/scene_cam_*_final_hdf5: {RAW_REMEDY}")
        require_raw(self.root, self.frames)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        frame = self.frames[index]
        rgb, depth_m = read_frame(self.root, frame)
        picture = torch.from_numpy(rgb).permute(2, 0, 1).contiguous()
        return to_sample(picture, torch.from_numpy(depth_m)[None], RANGE_M, frame.rgb_name)


def partition_of(split_csv: str | Path, partition: str) -> list[Frame]:
    """The public frames of one partition. Raises UsageError if the table has no such partition."""
    partitions = listed_frames(split_csv)
    if partition not in partitions:
        raise UsageError(f"{split_csv} has no partition {partition!r}: use {', '.join(partitions)}")
    return partitions[partition]


def require_raw(root: Path, frames: Iterable[Frame]) -> None:
    """Raises InputError unless all that the frames need is below `root`."""
    require_files(root, (path for frame in frames for path in frame.files), RAW_REMEDY)


def _pairs(root: Path, split: str | Path | None, max_invalid: float | None) -> list[tuple[str, str]]:
    if split is not None and Path(split).suffix == ".csv":
        rows = read_table(split, ("rgb_path", "depth_path", "invalid_ratio"))
        most = 1.0 if max_invalid is None else max_invalid
        pairs = [(r["rgb_path"], r["depth_path"]) for r in rows if float(r["invalid_ratio"]) <= most]
        if not pairs:
            raise InputError(f"{split} lists no frame with an invalid_ratio up to {most}")
        return pairs
    if max_invalid is not None:
        raise UsageError("max_invalid needs split to be a filename_meta_*.csv, which says how much is invalid")
    if split is not None:
        return [(row[0], row[1]) for row in read_split(split)]
    if not root.is_dir():
        raise InputError(f"{root} is no folder: {REMEDY}")
    found = sorted(path.relative_to(root).as_posix() for path in root.glob("**/rgb_cam_*.png"))
    if not found:
        raise InputError(f"{root} holds no rgb_cam_*.png: {REMEDY}")
    return [(path, "depth_plane_cam_".join(path.rsplit("rgb_cam_", 1))) for path in found]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.data.hypersim",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--raw", type=Path, required=True, help="folder of ai_VVV_NNN, as downloaded")
    parser.add_argument("--split-csv", type=Path, required=True, help="metadata_images_split_scene_v1.csv")
    parser.add_argument("--out", type=Path, required=True, help="gets train/, val/ and test/")
    parser.add_argument("--partitions", nargs="+", metavar="NAME", help="of train, val and test (default all)")
    parser.add_argument("--present", action="store_true", help="convert the frames that are there, pass over others")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    given = parser.parse_args(arguments)
    from marigold3d.progress import run
    from marigold3d.terminal import progress_bars
    from training.data.hypersim_convert import convert

    try:
        for partition in given.partitions or listed_frames(given.split_csv):
            frames = partition_of(given.split_csv, partition)
            steps = convert(given.raw, frames, given.out / partition, partition, given.present, given.workers)
            with progress_bars(given.quiet) as on_progress, interrupted_between_steps(on_progress) as step:
                written = run(steps, step)
            print(f"{given.out / partition}: {written} frames", flush=True)
    except Marigold3DError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept, the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
