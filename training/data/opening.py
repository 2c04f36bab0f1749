"""Sources from plain mappings, as they stand in a YAML recipe."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from marigold3d.errors import UsageError
from training.data.samples import Source

KINDS = {
    "hypersim": ("training.data.hypersim", "Hypersim"),
    "hypersim_raw": ("training.data.hypersim", "HypersimRaw"),
    "vkitti": ("training.data.vkitti", "VirtualKitti"),
    "procedural": ("training.data.procedural", "Procedural"),
    "shards": ("training.data.shards", "Shards"),
}


def open_sources(mappings: Iterable[Mapping[str, Any]]) -> list[Source]:
    """One source for each mapping: `{kind: hypersim, root: FOLDER, split: FILE, resize: [480, 640], weight: 0.9}`.

    `kind` names the class, the other keys are its arguments. Every kind also takes `crop: [h, w]`, the middle of the
    picture (of vkitti: the bottom middle), then `resize: [h, w]`; `weight` is left to whoever mixes the sources.
    Raises UsageError for an unknown kind or key, naming the nearest, and InputError for data that are not there.
    """
    return [_open(dict(mapping)) for mapping in mappings]


def _open(settings: dict[str, Any]) -> Source:
    from training.data.fitting import Fitted

    settings.pop("weight", None)
    kind = settings.pop("kind", None)
    if kind not in KINDS:
        raise UsageError(f"data: kind={kind!r}{_nearest(str(kind), KINDS)}")
    module, name = KINDS[kind]
    source_class = getattr(import_module(module), name)
    parameters = inspect.signature(source_class).parameters
    fit = {key: settings.pop(key) for key in ("crop", "resize") if key in settings and key not in parameters}
    for key in settings:
        if key not in parameters:
            raise UsageError(
                f"data: {kind} has no key {key!r}{_nearest(key, (*parameters, 'crop', 'resize', 'weight'))}"
            )
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in settings:
            raise UsageError(f"data: {kind} needs {key}: add it to the source's mapping")
    source: Source = source_class(**settings)
    return Fitted(source, **fit) if fit else source


def _nearest(name: str, every: Iterable[str]) -> str:
    known = list(every)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else f": use one of {', '.join(known)}"
