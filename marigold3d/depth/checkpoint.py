"""Finding a checkpoint: a local folder, or a name on the Hugging Face hub. Weights are safetensors, never pickles."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ModelError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ["*.json", "*.txt", "*.model", "*.safetensors"]
_UNWANTED = ["*.fp16.*", "*.non_ema.*", "*.onnx*", "onnx/*"]


def checkpoint_folder(source: str | Path, offline: bool = False) -> Path:
    """Folder of the checkpoint `source`, fetched from the hub unless it is a local folder already.

    offline: look in the local hub cache only; so does the environment variable HF_HUB_OFFLINE=1.
    Raises ModelError if it is neither.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_NAME.fullmatch(str(source)):
        raise ModelError(f"model folder {source} does not exist: give a folder, a registered name or OWNER/NAME")
    return _fetched(str(source), offline)


def _fetched(name: str, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, local_files_only=offline)
    except Exception as error:  # the hub client raises its own errors, its HTTP library's and the system's
        raise ModelError(
            f"cannot get the weights of {name} ({type(error).__name__}): with a connection run `hf download {name}`, "
            "or copy its folder here and pass --model FOLDER"
        ) from error
    return Path(found)


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
    """The safetensors files of one component. Raises ModelError if there are none; pickles do not count."""
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    pickles = [path.name for suffix in ("*.bin", "*.pt", "*.ckpt", "*.pth") for path in folder.glob(suffix)]
    if pickles:
        raise ModelError(
            f"{folder} holds {pickles[0]}, a pickle, which can run code when loaded: save the model again with "
            "save_pretrained(FOLDER, safe_serialization=True)"
        )
    raise ModelError(f"{folder} holds no weights (*.safetensors): the download or copy is incomplete, get it again")


def weight_variant(folder: Path) -> str | None:
    """ "fp16" if a component comes in half precision only, else None, the plain files."""
    names = [path.name for path in weight_files(folder)]
    return "fp16" if all(".fp16." in name or ".fp16-" in name for name in names) else None


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
    """Holds back the progress bars that transformers draws even for a model that loads in a blink."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
