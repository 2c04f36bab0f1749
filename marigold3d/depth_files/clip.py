"""Depth of a clip's frames, a file a frame: OUT/STEM/NNNNNN.*, where NNNNNN is the frame's index in the clip.

First every frame's numbers are estimated and written as they are; then the formats that need to know the whole clip
(one encoding, one range of colours) are made from those files. So the network sees each frame once, whatever is asked
for, memory does not grow with the clip, and an interrupted run goes on where it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..atomic import output_error, writable_folder
from ..depth import DepthEstimator, frames_to_read, stream
from ..depth.overlap import overlapped
from ..depth.protocol import ClipEstimator
from ..errors import InputError, OutputError
from ..export.preview import paint_depth
from ..frames import VideoSource
from ..progress import FramePreview, Progress
from ..types import Frame
from ..video import video_writer
from .maps import MapFiles, Span, meaning_record, missing, write_map
from .settings import Record, read_record, write_record
from .values import ValueStore

MOST_WRITERS = 8  # threads
VIDEO = "preview.mp4"
PRESET = "veryfast"  # of x264: a third of the time of "medium" for files a tenth larger


@dataclass(frozen=True)
class ClipJob:
    """A clip, its folder, what is wanted and the settings it depends on."""

    source: VideoSource
    folder: Path
    formats: tuple[str, ...]
    colormap: str
    uncertainty: bool
    max_side: int | None
    batch: int | None
    settings: Record
    source_record: Record
    digest: str
    title: str  # of the stage that estimates

    @property
    def record(self) -> Path:
        return self.folder / "depth.json"

    @property
    def frame_formats(self) -> tuple[str, ...]:
        return tuple(f for f in self.formats if f != "video")


def check_folder(job: ClipJob, *, overwrite: bool) -> Record | None:
    """The record of what is there already: None: nothing. OutputError when that cannot be gone on with."""
    record = read_record(job.record)
    if record is None:
        if job.folder.is_file() or (job.folder.is_dir() and any(job.folder.iterdir())):
            raise OutputError(f"{job.folder} exists already and holds something else: choose another folder")
        return None
    if overwrite:
        return None
    if record.get("digest") != job.digest:
        raise OutputError(f"{job.folder} was made of another clip or with other settings: pass --overwrite")
    return record


def is_made(job: ClipJob, record: Record | None) -> bool:
    """Whether all that is wanted is there."""
    if record is None or record.get("status") != "finished" or record.get("colormap") != job.colormap:
        return False
    if "video" in job.formats and not (job.folder / VIDEO).is_file():
        return False
    uncertain = bool(record["uncertainty"])
    return not any(
        True
        for index in record["frames"]
        for _ in missing(MapFiles.of_frame(job.folder, index), job.frame_formats, uncertain=uncertain)
    )


def estimate_clip(
    job: ClipJob, load: Callable[[], DepthEstimator], before: Record | None
) -> Generator[Progress, None, Record]:
    """Write the depth of a clip into its folder, going on from `before`; returns the final record."""
    estimator = load()
    if before is None and job.folder.exists():
        _remove(job.folder)
    writable_folder(job.folder)
    for left in job.folder.rglob(".*.partial*"):  # by a process that was killed
        left.unlink()
    record: Record = {
        "status": "unfinished",
        "source": job.source_record,
        "settings": job.settings,
        "digest": job.digest,
        "model": estimator.provenance(),
        "generator": f"marigold3d {__version__}",
    }
    if before is None or before.get("colormap") != job.colormap:
        for name in ("preview", VIDEO):
            _remove(job.folder / name)
    write_record(job.record, record | {"colormap": job.colormap})
    store = ValueStore(job.folder, job.formats, estimator.domain)
    try:
        spans, estimated = yield from _estimate(job, store, estimator)
    except InputError:
        if not store.indices():
            _remove(job.folder)
        raise
    record |= yield from _finish(job, store, spans)
    record |= {"status": "finished", "colormap": job.colormap, "warnings": list(job.source.warnings)}
    write_record(job.record, record)
    store.drop_hidden()
    return record | {"estimated": estimated}


def _estimate(
    job: ClipJob, store: ValueStore, estimator: DepthEstimator
) -> Generator[Progress, None, tuple[dict[int, Span | None], int]]:
    """First pass: the numbers of all frames. Spans by index, None for frames that were there; how many are new."""
    spans: dict[int, Span | None] = {}
    there, total, estimated = store.indices(), job.source.expected_frames(), 0
    segment = estimator.segment if isinstance(estimator, ClipEstimator) else 1
    indices: dict[int, int] = {}  # of the frames under way, by position

    def pictures() -> Iterator[tuple[int, NDArray[np.uint8]]]:
        frames = enumerate(job.source.frames(max_side=job.max_side))
        for position, frame, needed in _needed(frames, there, segment if there else 1, estimator):
            spans.setdefault(frame.index, None)
            if needed:
                indices[position] = frame.index
                yield position, frame.rgb

    with closing(stream(estimator, pictures(), job.batch)) as results:
        for result in results:
            index = indices.pop(result.position)
            depth = result.depth if job.uncertainty else replace(result.depth, uncertainty=None)
            store.write(index, depth)
            spans[index] = Span.of(depth)
            estimated += 1
            yield Progress(job.title, result.position + 1, total, FramePreview(result.position, depth.values))
    return spans, estimated


def _needed(
    frames: Iterable[tuple[int, Frame]], there: set[int], segment: int, estimator: DepthEstimator
) -> Iterator[tuple[int, Frame, bool]]:
    """(position, frame, whether the estimator must see it): those not there, and in a segment those they lean on."""
    remaining = iter(frames)
    while chain := list(islice(remaining, segment)):
        done = {position for position, frame in chain if frame.index in there}
        wanted = set(frames_to_read(estimator, [position for position, _ in chain], done))
        yield from ((position, frame, position in wanted) for position, frame in chain)


def _finish(job: ClipJob, store: ValueStore, spans: dict[int, Span | None]) -> Generator[Progress, None, Record]:
    """Second pass: the other formats, from the files of the first. Returns what it adds to the record."""
    indices = list(spans)
    known = [span or Span.of(store.read(index)) for index, span in spans.items()]
    whole, sample = Span.of_clip(known), store.read(indices[0])
    uncertain = sample.uncertainty is not None

    def write(index: int) -> int:
        files = MapFiles.of_frame(job.folder, index)
        lacking = list(missing(files, job.frame_formats, uncertain=uncertain))
        if lacking:
            write_map(files, store.read(index), lacking, whole, job.colormap)
        return index

    if set(job.frame_formats) - set(store.kept):
        with closing(overlapped(write, indices, _writers())) as written:
            for done, _ in enumerate((i for i in written if i is not None), start=1):
                yield Progress("files", done, len(indices))
    if "video" in job.formats and not (job.folder / VIDEO).is_file():
        yield from _write_video(job, store, whole, len(indices))
    height, width = sample.values.shape
    size: Record = {"height": height, "width": width, "fps": _fps(job), "uncertainty": uncertain}
    meaning = meaning_record(sample.domain) | whole.as_record(sample.domain, uncertain=uncertain)
    return meaning | size | {"frames": indices}


def _write_video(job: ClipJob, store: ValueStore, span: Span, total: int) -> Generator[Progress, None, None]:
    """The clip and its depth side by side."""

    def paint(frame: Frame) -> NDArray[np.uint8]:
        return np.hstack((frame.rgb, paint_depth(store.read(frame.index), span.shown, job.colormap)))

    frames = job.source.frames(max_side=job.max_side)
    with (
        video_writer(job.folder / VIDEO, _fps(job), preset=PRESET) as add,
        closing(overlapped(paint, frames, _writers())) as painted,
    ):
        for done, picture in enumerate((p for p in painted if p is not None), start=1):
            add(picture)
            yield Progress("preview", done, total)


def _fps(job: ClipJob) -> float:
    config, info = job.source.config, job.source.info
    return min(config.fps, info.fps) if config.fps else info.fps / config.stride


def _writers() -> int:
    return min(MOST_WRITERS, os.cpu_count() or 1)


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(path, error) from error
