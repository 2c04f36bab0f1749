"""Hypersim's HDF5 files, once, to PNG files: half the size, and three times as fast to read.

filename_meta_PARTITION.csv grows by a line a finished frame, so that it also says where to go on.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from marigold3d.atomic import atomic_path, output_error, writable_folder
from marigold3d.errors import InputError, UsageError
from marigold3d.progress import Progress, Steps
from training.data.hypersim_frames import Frame, read_frame
from training.data.interrupting import ignore_interrupts
from training.data.samples import CorruptSample

UNIT_M = 0.001
MOST_CORRUPT = 0.01
STATISTICS = ("mean", "std", "min", "max")
COLUMNS = (
    *("scene_name", "camera_name", "frame_id", "split_partition_name"),
    *("rgb_path", *(f"rgb_{name}" for name in STATISTICS)),
    *("depth_path", *(f"depth_{name}" for name in STATISTICS)),
    "invalid_ratio",
)
Row = dict[str, Any]


def convert(
    raw: Path, frames: Sequence[Frame], out: Path, partition: str, present: bool = False, workers: int = 1
) -> Steps[int]:
    """Write the preprocessed form of `frames` into `out`, with filename_list_* and filename_meta_*; their number.

    Frames that are done are passed over; `present`: those whose files are missing, too. A frame that cannot be read
    is left out. Raises InputError where files are missing or more than MOST_CORRUPT of the frames cannot be read,
    OutputError where `out` cannot be written; what is finished stays.
    """
    from training.data.hypersim import require_raw

    if workers < 1:
        raise UsageError(f"workers={workers}: give 1 or more")
    if present:
        frames = [frame for frame in frames if all((raw / path).is_file() for path in frame.files)]
    require_raw(raw, frames)
    table = writable_folder(out) / f"filename_meta_{partition}.csv"
    done = finished_rows(table)
    left = [frame for frame in frames if frame.rgb_name not in done]
    corrupt: list[str] = []
    stage = f"Converting {partition}"
    yield Progress(stage, len(frames) - len(left), len(frames))
    with _appending(table, done) as append, _mapping(workers) as each:
        for number, row in enumerate(each(partial(_convert_frame, raw, out, partition), left), 1):
            if isinstance(row, str):
                corrupt.append(row)
            else:
                append(row)
                done[row["rgb_path"]] = row
            yield Progress(stage, len(frames) - len(left) + number, len(frames))
    if len(corrupt) > MOST_CORRUPT * len(frames):
        raise InputError(
            f"{len(corrupt)} of {len(frames)} frames cannot be read, more than {MOST_CORRUPT:.0%}: download them "
            f"again; the first: {corrupt[0]}"
        )
    wanted = {frame.rgb_name for frame in frames}
    lines = [f"{row['rgb_path']} {row['depth_path']}" for name, row in done.items() if name in wanted]
    with atomic_path(out / f"filename_list_{partition}.txt") as path:
        path.write_text("\n".join(sorted(lines)), encoding="utf-8")
    return len(lines)


def finished_rows(table: Path) -> dict[str, Row]:
    """The rows of a filename_meta_*.csv by rgb_path; a last line that was cut short does not count."""
    try:
        text = table.read_text(encoding="utf-8") if table.exists() else ""
    except OSError as error:
        raise InputError(f"cannot read {table}: {error.strerror}") from error
    whole = text[: text.rfind("\n") + 1]
    rows = csv.DictReader(io.StringIO(whole))
    if rows.fieldnames is not None and tuple(rows.fieldnames) != COLUMNS:
        raise InputError(f"{table} was not written by this command: choose another folder with --out")
    return {row["rgb_path"]: row for row in rows}


@contextmanager
def _appending(table: Path, done: dict[str, Row]) -> Iterator[Any]:
    """A function that adds a row to the table at once; the table begins with the rows that are done."""
    with atomic_path(table) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(done.values())
    with table.open("a", newline="", encoding="utf-8") as file:

        def append(row: Row) -> None:
            try:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
                file.flush()
            except OSError as error:
                raise output_error(table, error) from error

        yield append


@contextmanager
def _mapping(workers: int) -> Iterator[Any]:
    """`map`, in this process or over several."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, initializer=ignore_interrupts) as pool:
        try:
            yield pool.map
        finally:
            pool.shutdown(cancel_futures=True)


def _convert_frame(raw: Path, out: Path, partition: str, frame: Frame) -> Row | str:
    """The row of a frame that was written, or what is wrong with it."""
    try:
        rgb, depth_m = read_frame(raw, frame)
    except CorruptSample as error:
        return str(error)
    depth = np.rint(depth_m / UNIT_M)
    depth = np.where(depth <= np.iinfo(np.uint16).max, depth, 0).astype(np.uint16)
    _write_png(out / frame.rgb_name, rgb)
    _write_png(out / frame.depth_name, depth)
    return {
        "scene_name": frame.scene,
        "camera_name": frame.camera,
        "frame_id": frame.number,
        "split_partition_name": partition,
        "rgb_path": frame.rgb_name,
        **{f"rgb_{name}": f"{getattr(rgb, name)():.6g}" for name in STATISTICS},
        "depth_path": frame.depth_name,
        **{f"depth_{name}": f"{getattr(depth * UNIT_M, name)():.6g}" for name in STATISTICS},
        "invalid_ratio": f"{(depth == 0).mean():.6g}",
    }


def _write_png(path: Path, values: NDArray[Any]) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(values).save(temporary, compress_level=3)
