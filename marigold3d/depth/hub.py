"""Fetching a checkpoint from the Hugging Face hub: what it takes and under which licence is said before it starts.

Downloads go to the hub client's cache, which keeps what an interrupted one has got.
"""

from __future__ import annotations

import errno
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ModelError

_SETTINGS = (".json", ".txt", ".model")
_PICKLES = (".bin", ".pt", ".ckpt", ".pth")
_HALF = re.compile(r"\.fp16[.-]")
_OTHER_VARIANT = re.compile(r"\.(non_ema|ema|int8|int4|fp8|bf16)[.-]")
_NON_COMMERCIAL = re.compile(r"(^|[^a-z])(nc|amlr|non-?commercial|research)([^a-z]|$)", re.IGNORECASE)


def fetch(name: str, offline: bool = False, licence: str | None = None) -> Path:
    """Folder of the newest revision of `name` (OWNER/NAME), downloaded as far as it is not in the cache.

    offline: look in the cache only; so does the environment variable HF_HUB_OFFLINE=1, and so it is without a
    connection. licence: where the repository states none. One line on stderr announces a download. Raises ModelError
    if nothing usable can be had.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    if offline or constants.HF_HUB_OFFLINE:
        return cached(name) or _refuse(name, None)
    try:
        info = HfApi().model_info(name, files_metadata=True, timeout=20)
        files = wanted_files(name, {file.rfilename: file.size or 0 for file in info.siblings or ()})
        missing = {file: size for file, size in files.items() if not is_cached(name, file, info.sha)}
        if not missing and (here := cached(name, info.sha)) is not None:
            return here
        _announce(name, sum(missing.values()), _licence(info) or licence)
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except ModelError:
        raise
    except Exception as error:  # the hub client raises its own errors, its HTTP library's and the system's
        if _is_refusal(error):
            _refuse(name, error)
        return cached(name) or _refuse(name, error)


def cached(name: str, revision: str | None = None) -> Path | None:
    """Folder of `name` in the hub's cache, as far as it was downloaded; None if it never was."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("model_index.json", "config.json"):
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def is_cached(name: str, file: str, revision: str | None) -> bool:
    """Whether one file of that revision is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, file, revision=revision), str)


def wanted_files(name: str, files: Mapping[str, int]) -> dict[str, int]:
    """Of a repository's files and their sizes in bytes, those that a depth model is loaded from.

    Settings, and the safetensors beside each config.json: one precision of them, and no single-file copies of a
    pipeline. Raises ModelError if there are none, since weights as pickles are never fetched.
    """
    paths = {PurePosixPath(file): size for file, size in files.items()}
    is_pipeline = "model_index.json" in files
    weights: list[PurePosixPath] = []
    for folder in {path.parent for path in paths if path.name == "config.json" and len(path.parts) <= 2}:
        if is_pipeline and folder == PurePosixPath("."):
            continue
        found = [p for p in paths if p.parent == folder and p.suffix == ".safetensors"]
        found = [p for p in found if not _OTHER_VARIANT.search(p.name)]
        weights += [p for p in found if not _HALF.search(p.name)] or found
    if not weights:
        pickles = sorted(file for file in files if file.endswith(_PICKLES))
        reason = f"only pickles ({pickles[0]}, …), which can run code when loaded" if pickles else "no weights"
        raise ModelError(f"{name} offers {reason}: choose a repository with safetensors")
    folders = {path.parent for path in weights} | {PurePosixPath("."), *(_weightless(paths) if is_pipeline else ())}
    settings = [p for p in paths if p.suffix in _SETTINGS and p.parent in folders]
    return {str(path): paths[path] for path in sorted(settings + weights)}


def excludes_commercial_use(licence: str) -> bool:
    """Whether a licence's name says so; one that does not is no promise."""
    return bool(_NON_COMMERCIAL.search(licence))


def size_text(size_bytes: float) -> str:
    """In MB below a GB, else in GB; decimal, as shops and the hub count."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{max(size_bytes / 1e6, 0.1):.1f} MB"


def _weightless(paths: Mapping[PurePosixPath, int]) -> set[PurePosixPath]:
    """Folders of a pipeline's parts that are settings alone: scheduler and tokenizer."""
    return {path.parent for path in paths if path.parent.name in ("scheduler", "tokenizer")}


def _announce(name: str, size_bytes: int, licence: str | None) -> None:
    """The line before a download. Raises ModelError if the disk cannot hold it."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if size_bytes > free:
        raise ModelError(
            f"{name} takes {size_text(size_bytes)}, but {folder} has {size_text(free)} left: "
            "free space, or set HF_HOME to a folder on a larger disk"
        )
    warning = ", which excludes commercial use" if licence and excludes_commercial_use(licence) else ""
    terms = f"licence {licence}{warning}" if licence else "no licence stated: ask its authors before you publish"
    print(f"marigold3d: downloading {name}, {size_text(size_bytes)}; {terms}", file=sys.stderr, flush=True)


def _licence(info: Any) -> str | None:
    """As the repository's model card states it."""
    stated = [str(tag).removeprefix("license:") for tag in info.tags or () if str(tag).startswith("license:")]
    return stated[0] if stated else None


def _is_refusal(error: Exception) -> bool:
    """Whether the hub, or the disk, said no; anything else is taken for a broken connection."""
    from huggingface_hub.errors import RepositoryNotFoundError

    return isinstance(error, RepositoryNotFoundError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def _refuse(name: str, error: Exception | None) -> Path:
    """Always raises ModelError, with what a user can do about it."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        what = f"{name} asks you to accept its terms: do so at https://huggingface.co/{name}, then run `hf auth login`"
    elif isinstance(error, RepositoryNotFoundError):
        what = f"the hub has no model {name}, or it is private: check the name, or run `hf auth login`"
    elif error is not None and getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        what = f"the disk is full: free space in {constants.HF_HUB_CACHE}; the same command resumes the download"
    else:
        reason = "not on this computer, and offline" if error is None else type(error).__name__
        what = (
            f"cannot get the weights of {name} ({reason}): with a connection run `hf download {name}`, "
            "or copy its folder here and pass --model FOLDER"
        )
    raise ModelError(what) from error
