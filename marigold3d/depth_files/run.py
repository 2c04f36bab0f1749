"""From inputs to files: what is there already stays, what cannot be used is told, the rest is estimated."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ..atomic import writable_folder
from ..config import DepthConfig, VideoConfig
from ..depth import DepthEstimator, load_estimator
from ..errors import InputError
from ..progress import Progress
from ..video import open_video
from .clip import ClipJob, check_folder, estimate_clip, is_made
from .inputs import Input, find_inputs
from .maps import MapFiles
from .settings import OutputConfig, Record, digest, settings_record, source_record
from .stills import estimate_stills, plan_stills

Load = Callable[[], DepthEstimator]


@dataclass
class Report:
    """What was done: an entry an input in `results`, `failures` by path, and how fast the frames came."""

    results: list[Record] = field(default_factory=list)
    failures: dict[Path, InputError] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    estimated: int = 0
    seconds: float = 0.0

    def as_dict(self) -> Record:
        """JSON-ready."""
        return {
            "results": self.results,
            "failed": {str(path): str(error) for path, error in self.failures.items()},
            "warnings": self.warnings,
            "frames_estimated": self.estimated,
            "seconds": round(self.seconds, 3),
        }


def estimate_files(
    given: Sequence[str | Path],
    folder: Path,
    depth: DepthConfig,
    clip: VideoConfig,
    output: OutputConfig,
    *,
    overwrite: bool = False,
) -> Generator[Progress, None, Report]:
    """Write the depth of images and clips to `folder`.

    Inputs that cannot be read are in the report's failures, and do not stop the others. Raises InputError for what is
    missing, OutputError when something else is in the way, before anything is estimated.
    """
    began, report = time.monotonic(), Report()
    inputs = find_inputs(given, sequence=output.sequence)
    load: Load = cache(lambda: load_estimator(depth))
    images, clips = ([item for item in inputs if item.kind == kind] for kind in ("image", "clip"))
    jobs = list(_clip_jobs(clips, folder, depth, clip, output, report))
    before = [check_folder(job, overwrite=overwrite) for job in jobs]
    if images:
        yield from _images(images, folder, depth, output, overwrite, load, report)
    for job, record in zip(jobs, before, strict=True):
        if is_made(job, record):
            report.results.append(_clip_entry(job, record or {}, 0))
            continue
        try:
            record = yield from estimate_clip(job, load, record)
        except InputError as error:
            report.failures[job.source.info.path] = error
            continue
        report.results.append(_clip_entry(job, record, record["estimated"]))
        report.estimated += record["estimated"]
        report.warnings += job.source.warnings
    report.seconds = time.monotonic() - began
    return report


def _images(
    images: list[Input],
    folder: Path,
    depth: DepthConfig,
    output: OutputConfig,
    overwrite: bool,
    load: Load,
    report: Report,
) -> Generator[Progress, None, None]:
    settings = settings_record(depth, VideoConfig(), output, "image")
    wanted, unusable = plan_stills(images, folder, output, settings, overwrite=overwrite)
    report.failures |= unusable
    if wanted:
        estimator = load()
        writable_folder(folder)
        report.failures |= yield from estimate_stills(wanted, estimator, output, settings, depth.batch)
    estimated = {still.input for still in wanted}
    for item in images:
        if item.path in report.failures:
            continue
        report.estimated += item in estimated
        files = MapFiles.of_image(folder, item.stem)
        written = [p for form in output.formats_of("image") for p in files.of(form, uncertain=output.uncertainty)]
        report.results.append(
            {
                "input": str(item.path),
                "kind": "image",
                "record": str(folder / f"{item.stem}_depth.json"),
                "files": [str(path) for path in written if path.is_file()],
                "reused": item not in estimated,
            }
        )


def _clip_jobs(
    clips: list[Input], folder: Path, depth: DepthConfig, clip: VideoConfig, output: OutputConfig, report: Report
) -> Generator[ClipJob, None, None]:
    settings = settings_record(depth, clip, output, "clip")
    for item in clips:
        try:
            source = open_video(item.path, clip)
        except InputError as error:
            report.failures[item.path] = error
            continue
        record = source_record(item.path)
        yield ClipJob(
            source=source,
            folder=folder / item.stem,
            formats=output.formats_of("clip"),
            colormap=output.colormap,
            uncertainty=output.uncertainty,
            max_side=output.longest_px("clip"),
            batch=depth.batch,
            settings=settings,
            source_record=record,
            digest=digest(settings, record),
            title="depth" if len(clips) == 1 else f"Depth of {item.stem}",
        )


def _clip_entry(job: ClipJob, record: Record, estimated: int) -> Record:
    return {
        "input": str(job.source.info.path),
        "kind": "clip",
        "record": str(job.record),
        "folder": str(job.folder),
        "formats": list(job.formats),
        "frames": len(record["frames"]),
        "frames_estimated": estimated,
        "reused": not estimated,
    }
