"""Many clips: one after another, or several at a time through Ray. A clip that fails does not stop the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from .config import RunConfig
from .errors import InputError, Marigold3DError, UsageError
from .pipeline import reconstruct


def reconstruct_all(
    jobs: Mapping[str, Path], config: RunConfig, *, workers: int = 1, overwrite: bool = False
) -> dict[str, Marigold3DError]:
    """Reconstruct every clip of `jobs` (clip -> run folder); the error of each clip that failed.

    Finished runs are skipped unless `overwrite`. workers > 1 takes Ray, which also spreads over machines that share
    the disk. Raises UsageError when two clips want the same folder.
    """
    if workers < 1:
        raise UsageError(f"--workers must be at least 1, got {workers}")
    for folder, count in Counter(jobs.values()).items():
        if count > 1:
            raise UsageError(f"{count} clips would share the run folder {folder}: give clips of different names")
    todo = {clip: folder for clip, folder in jobs.items() if overwrite or not _finished(folder)}
    results = _in_turn(todo, config, overwrite) if workers == 1 else _with_ray(todo, config, overwrite, workers)
    return {clip: error for clip, error in results.items() if error is not None}


def _finished(folder: Path) -> bool:
    from .store import Run

    try:
        return (folder / "run.json").is_file() and Run.open(folder).finished
    except InputError:  # damaged: the run itself will say so
        return False


def _one(clip: str, folder: Path, config: RunConfig, overwrite: bool) -> Marigold3DError | None:
    try:
        reconstruct(clip, folder, config, overwrite=overwrite)
    except Marigold3DError as error:
        return error
    return None


def _in_turn(todo: Mapping[str, Path], config: RunConfig, overwrite: bool) -> dict[str, Marigold3DError | None]:
    return {clip: _one(clip, folder, config, overwrite) for clip, folder in todo.items()}


def _with_ray(
    todo: Mapping[str, Path], config: RunConfig, overwrite: bool, workers: int
) -> dict[str, Marigold3DError | None]:
    try:
        import ray
    except ImportError:
        raise UsageError("--workers takes Ray: pip install 'marigold3d[scale]', or use --workers 1") from None
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    try:
        remote = ray.remote(num_cpus=1)(_one)
        handles = {clip: remote.remote(clip, folder.absolute(), config, overwrite) for clip, folder in todo.items()}
        return {clip: ray.get(handle) for clip, handle in handles.items()}
    finally:
        ray.shutdown()
