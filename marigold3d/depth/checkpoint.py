"""A checkpoint's folder and its files. Weights are safetensors, never pickles."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ..errors import ModelError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HALF = re.compile(r"\.fp16[.-]")


def checkpoint_folder(source: str | Path, offline: bool = False, licence: str | None = None) -> Path:
    """Folder of the checkpoint `source`, fetched from the hub unless it is a local folder already.

    offline: look in the local hub cache only; so does the environment variable HF_HUB_OFFLINE=1. licence: what to name
    before a download where the hub does not say. Raises ModelError if it is neither.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"model {source} is a file: give the folder with its config.json or model_index.json")
    if not _HUB_NAME.fullmatch(str(source)):
        raise ModelError(f"model folder {source} does not exist: give a folder, a registered name or OWNER/NAME")
    from .hub import fetch

    return fetch(str(source), offline, licence)


def checkpoint_family(folder: Path) -> Literal["marigold", "transformers"]:
    """Which library's format a folder has. Raises ModelError for none, and for pipelines that predict no depth."""
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json")
        kind = index.get("_class_name")
        name = str(kind[-1] if isinstance(kind, list) and kind else kind)  # [module, class] if it brings code along
        if "Normals" in name or "Intrinsics" in name:
            what = "surface normals" if "Normals" in name else "materials and lighting"
            raise ModelError(f"{folder} is a {name}, which predicts {what}: use a Marigold depth checkpoint")
        return "marigold"
    if (folder / "config.json").is_file():
        return "transformers"
    raise ModelError(
        f"{folder} is no checkpoint: it holds neither model_index.json (Marigold) nor config.json (transformers)"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint. Raises ModelError if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} is not a complete checkpoint: {path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}): copy the checkpoint again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object: copy the checkpoint again")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that one component is loaded from: full precision where it is there, else half.

    Raises ModelError if there are none (pickles do not count), if a shard is missing or a file is cut off.
    """
    found = sorted(folder.glob("*.safetensors"))
    found = [path for path in found if not _HALF.search(path.name)] or found
    if not found:
        _raise_no_weights(folder)
    for index in folder.glob("*.safetensors.index.json"):
        missing = {str(name) for name in read_json(index).get("weight_map", {}).values()} - {p.name for p in found}
        if missing and not _HALF.search(index.name):
            raise ModelError(f"{folder} lacks {min(missing)}, named in {index.name}: get the checkpoint again")
    for path in found:
        _check_whole(path)
    return found


def _raise_no_weights(folder: Path) -> None:
    pickles = [path.name for suffix in ("*.bin", "*.pt", "*.ckpt", "*.pth") for path in folder.glob(suffix)]
    if pickles:
        raise ModelError(
            f"{folder} holds {pickles[0]}, a pickle, which can run code when loaded: save the model again with "
            "save_pretrained(FOLDER, safe_serialization=True)"
        )
    raise ModelError(f"{folder} holds no weights (*.safetensors): the download or copy is incomplete, get it again")


def _check_whole(path: Path) -> None:
    """Raises ModelError unless the file is as long as its header says; reads no weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(f"{path} is cut off or damaged ({reason}): get the checkpoint again") from error


def weight_variant(folder: Path) -> str | None:
    """ "fp16" if a component comes in half precision only, else None, the plain files."""
    return "fp16" if all(_HALF.search(path.name) for path in weight_files(folder)) else None


def short_sha256(paths: Iterable[Path]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the files' bytes, one after the other in order of name."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Holds back the progress bars that transformers draws even for a model that loads in a blink, and its reports of
    what does not fit: the caller looks at that itself, and says it in one line.
    """
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
