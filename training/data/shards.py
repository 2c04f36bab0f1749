"""Shards: tar files of samples, for data that do not fit one disk, and for disks that dislike many small files.

    python -m training.data.shards --from kind=hypersim root=DIR split=FILE --out DIR
    python -m training.data.shards --from kind=procedural height=192 width=256 --count 100000 --out DIR
    python -m training.data.shards --index DIR            # again, after shards were moved to or from DIR

The form is webdataset's: members KEY.rgb.png (8-bit sRGB), KEY.depth.png (16-bit z-depth, 0 where it does not count)
and KEY.json {"name", "unit_m"}, next to each other; every tool for webdataset reads it. Beside each shard lies
SHARD.json, which says where each sample begins, so that any sample is one read. It is read so, and not through the
webdataset library, which streams, because a run must resume exactly; wids, its sister with random access, keeps its
index as a pickle.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import yaml

from marigold3d.errors import InputError, Marigold3DError, UsageError
from training.data.interrupting import INTERRUPTED, interrupted_between_steps
from training.data.pictures import read_depth, read_rgb
from training.data.samples import CorruptSample, Sample

INDEX = "index.json"
REMEDY = "copy or write them again; if they were moved on purpose, run python -m training.data.shards --index DIR"


class Shards:
    """The samples of all shards in a folder, or in several on several disks, one after the other.

    Raises InputError for a folder without shards, or with some missing or cut short.
    """

    def __init__(self, root: str | Path | Sequence[str | Path]) -> None:
        folders = [root] if isinstance(root, str | Path) else root
        listed = [shard for folder in folders for shard in listed_shards(Path(folder))]
        self.name = "shards"
        self.shards = [path for path, _ in listed]
        self.ends = list(accumulate(count for _, count in listed))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self.ends, index)
        before = self.ends[number - 1] if number else 0
        return _read(self.shards[number], _places(self.shards[number])[index - before])


def listed_shards(folder: Path) -> list[tuple[Path, int]]:
    """The shards of a folder and their numbers of samples, once all are found whole."""
    try:
        entries = json.loads((folder / INDEX).read_text(encoding="utf-8"))["shards"]
        listed = [(str(e["file"]), int(e["bytes"]), int(e["samples"])) for e in entries]
    except FileNotFoundError:
        raise InputError(f"{folder} holds no {INDEX}: {REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / INDEX} is damaged ({error}): {REMEDY}") from error
    wrong = [name for name, size, _ in listed if not _is_whole(folder / name, size)]
    if wrong:
        more = ", …" if len(wrong) > 3 else ""
        raise InputError(
            f"{folder}: {len(wrong)} of {len(listed)} shards are missing or cut short: {', '.join(wrong[:3])}{more}; "
            f"{REMEDY}"
        )
    if not sum(count for *_, count in listed):
        raise InputError(f"{folder} holds no samples: {REMEDY}")
    return [(folder / name, count) for name, _, count in listed]


def index_path(shard: Path) -> Path:
    """The file beside a shard that says where its samples are."""
    return shard.with_suffix(".json")


def read_notes(shard: Path) -> dict[str, Any]:
    """What index_path says: "samples" gives each one's key, then offset and size of picture, depth and notes."""
    try:
        notes: dict[str, Any] = json.loads(index_path(shard).read_text(encoding="utf-8"))
        return {**notes, "samples": list(notes["samples"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index_path(shard)} is damaged ({error}): delete it, then {REMEDY}") from error


@lru_cache(maxsize=4096)
def _places(shard: Path) -> list[list[Any]]:
    places: list[list[Any]] = read_notes(shard)["samples"]
    return places


def _read(shard: Path, place: Sequence[Any]) -> Sample:
    key, *numbers = place
    name = f"{shard.name}/{key}"
    offsets, sizes = numbers[0::2], numbers[1::2]
    first = min(offsets)
    try:
        with shard.open("rb") as file:
            file.seek(first)
            data = file.read(max(o + s for o, s in zip(offsets, sizes, strict=True)) - first)
        rgb, depth, notes = (data[o - first : o - first + s] for o, s in zip(offsets, sizes, strict=True))
        said = json.loads(notes)
        original, unit_m = str(said["name"]), float(said["unit_m"])
    except OSError as error:
        raise CorruptSample(f"{name}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptSample(f"{name}: its .json cannot be read ({error})") from error
    depth_m = read_depth(io.BytesIO(depth), f"{name}.depth.png", unit_m)
    picture = read_rgb(io.BytesIO(rgb), f"{name}.rgb.png")
    if picture.shape[1:] != depth_m.shape[1:]:
        raise CorruptSample(f"{name}: picture and depth differ in size")
    return Sample(picture, depth_m, depth_m > 0, original)


def _is_whole(shard: Path, size: int) -> bool:
    try:
        return shard.stat().st_size == size and index_path(shard).is_file()
    except OSError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.data.shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--from", dest="source", nargs="+", metavar="key=value", help="a source, as in a recipe")
    what.add_argument("--index", type=Path, metavar="DIR", help="write index.json of the shards in DIR")
    parser.add_argument("--out", type=Path, help="folder for the shards")
    parser.add_argument("--first", type=int, default=0, help="first sample; several machines take a part each")
    parser.add_argument("--count", type=int, help="samples (default: all)")
    parser.add_argument("--samples-per-shard", type=int, default=1000, help="default 1000, 0.3 to 1.2 GB")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    given = parser.parse_args(arguments)
    if given.source and given.out is None:
        parser.error("--from needs --out")
    try:
        _command(given)
    except Marigold3DError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: whole shards are kept, the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


def _command(given: argparse.Namespace) -> None:
    from marigold3d.progress import run
    from marigold3d.terminal import progress_bars
    from training.data.shard_writing import write_index, write_shards

    if given.index is not None:
        folder, samples = given.index, write_index(given.index)
    else:
        folder = given.out
        steps = write_shards(_mapping(given.source), folder, given.first, given.count, given.samples_per_shard)
        with progress_bars(given.quiet) as on_progress, interrupted_between_steps(on_progress) as step:
            samples = run(steps, step)
    print(f"{folder}: {samples} samples")


def _mapping(pairs: Sequence[str]) -> dict[str, Any]:
    """key=value pairs, the values as in YAML."""
    mapping = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--from {pair!r}: write key=value, such as kind=hypersim root=DIR")
        try:
            mapping[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"--from {pair!r}: {value!r} is no YAML value") from None
    return mapping


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
