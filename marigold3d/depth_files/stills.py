"""Depth of single images, each for itself: OUT/STEM_depth.* and, last, OUT/STEM_depth.json, which makes them whole."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..depth import DepthEstimator, stream
from ..errors import InputError, OutputError
from ..frames import reduced_size
from ..images import image_size, read_image
from ..progress import FramePreview, Progress
from ..types import RelativeDepth
from .inputs import Input
from .maps import MapFiles, Span, meaning_record, missing, write_map
from .settings import OutputConfig, Record, digest, read_record, source_record, write_record

LARGE_MEGAPIXELS = 16  # larger pictures are estimated one at a time, however many cores there are

Failures = dict[Path, InputError]


@dataclass(frozen=True)
class Still:
    """An image to estimate: where its files go, and the digest of what they depend on."""

    input: Input
    record: Path
    files: MapFiles
    source: Record
    digest: str
    megapixels: float  # of its depth map


def plan_stills(
    inputs: Sequence[Input], folder: Path, output: OutputConfig, settings: Record, *, overwrite: bool
) -> tuple[list[Still], Failures]:
    """Images to estimate, without those whose files are there, made from the same image with the same settings; and
    what is no image.

    OutputError when other files are there.
    """
    wanted: list[Still] = []
    failures: Failures = {}
    for item in inputs:
        source, files = source_record(item.path), MapFiles.of_image(folder, item.stem)
        try:
            width, height = reduced_size(*image_size(item.path), output.longest_px("image"))
        except InputError as error:
            failures[item.path] = error
            continue
        record, megapixels = folder / f"{item.stem}_depth.json", 1e-6 * width * height
        still = Still(item, record, files, source, digest(settings, source), megapixels)
        if overwrite or not _is_made(still, output):
            wanted.append(still)
    return wanted, failures


def _is_made(still: Still, output: OutputConfig) -> bool:
    """Whether the files are there. OutputError when others are in their place."""
    formats = output.formats_of("image")
    record = read_record(still.record)
    if record is None:
        for path in (p for form in formats for p in still.files.of(form, uncertain=output.uncertainty)):
            if path.exists():
                raise OutputError(f"{path} exists already: pass --overwrite or choose another folder")
        return False
    if record.get("digest") != still.digest or record.get("colormap") != output.colormap:
        raise OutputError(
            f"{still.record} tells of another image or other settings: pass --overwrite or choose another folder"
        )
    return not list(missing(still.files, formats, uncertain=bool(record.get("uncertainty"))))


def estimate_stills(
    stills: Sequence[Still], estimator: DepthEstimator, output: OutputConfig, settings: Record, batch: int | None
) -> Generator[Progress, None, Failures]:
    """Write the depth of every image; returns the images that cannot be used and why."""
    failures: Failures = {}
    finished = 0
    with closing(_estimated(stills, estimator, output, batch, failures)) as results:
        for still, depth in results:
            depth = depth if output.uncertainty else replace(depth, uncertainty=None)
            _write(still, depth, estimator, output, settings)
            finished += 1
            yield Progress("depth", finished + len(failures), len(stills), FramePreview(finished - 1, depth.values))
    return failures


def _write(
    still: Still, depth: RelativeDepth, estimator: DepthEstimator, output: OutputConfig, settings: Record
) -> None:
    still.record.unlink(missing_ok=True)  # while its files are replaced, nothing says that they are whole
    span, uncertain = Span.of(depth), depth.uncertainty is not None
    write_map(still.files, depth, output.formats_of("image"), span, output.colormap)
    write_record(
        still.record,
        {
            **meaning_record(depth.domain),
            **span.as_record(depth.domain, uncertain=uncertain),
            "uncertainty": uncertain,
            "height": depth.values.shape[0],
            "width": depth.values.shape[1],
            "source": still.source,
            "model": estimator.provenance(),
            "settings": settings,
            "colormap": output.colormap,
            "digest": still.digest,
            "generator": f"marigold3d {__version__}",
        },
    )


def _estimated(
    stills: Sequence[Still], estimator: DepthEstimator, output: OutputConfig, batch: int | None, failures: Failures
) -> Generator[tuple[Still, RelativeDepth], None, None]:
    """Images with their depth; those that cannot be read or are too small are left out and told in `failures`."""
    for large, group in groupby(stills, lambda still: still.megapixels > LARGE_MEGAPIXELS):
        rest = list(group)
        while rest:
            at_once = 1 if large else len(rest)
            try:
                yield from _together(rest[:at_once], estimator, output, batch, failures)
                rest = rest[at_once:]
            except _Refused as refused:
                failures[rest[refused.position].input.path] = refused.reason
                rest = rest[refused.position + 1 :]


class _Refused(Exception):
    """The estimator cannot use the image at `position`."""

    def __init__(self, position: int, reason: InputError) -> None:
        self.position, self.reason = position, reason


def _together(
    stills: Sequence[Still], estimator: DepthEstimator, output: OutputConfig, batch: int | None, failures: Failures
) -> Iterator[tuple[Still, RelativeDepth]]:
    following = 0  # the first image that has neither depth nor a failure
    readable: list[int] = []

    def pictures() -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for i, still in enumerate(stills):
            try:
                rgb = read_image(still.input.path, output.longest_px("image"))
            except InputError as error:
                failures[still.input.path] = error
                continue
            readable.append(i)
            yield 2 * i, rgb  # gaps between the positions: no image leans on the one before

    try:
        with closing(stream(estimator, pictures(), batch)) as results:
            for result in results:
                following += 1
                yield stills[result.position // 2], result.depth
    except InputError as error:
        raise _Refused(readable[following], error) from error
