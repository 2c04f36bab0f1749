"""Which frames a clip uses and how large they are: what a file of cues has to be matched to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import Array, BoolImage, Intrinsics

NOT_USED = -1  # the position of a frame that the clip does not use


@dataclass(frozen=True, eq=False)
class ClipFrames:
    """The T frames in use.

    indices (T,): in the source; timestamps_s (T,); source_size: (width, height) px of the clip's own frames; camera:
    of the depth maps, at their size; names: file names of the images, where the clip is a folder of images;
    source_count: frames of the whole source, if known.
    """

    indices: NDArray[np.int64]
    timestamps_s: Array
    source_size: tuple[int, int]
    camera: Intrinsics
    names: Sequence[str] | None = None
    source_count: int | None = None

    def __post_init__(self) -> None:
        counts = {len(self.indices), len(self.timestamps_s), len(self.indices if self.names is None else self.names)}
        if len(counts) > 1 or not len(self.indices):
            raise InputError(f"a clip needs an index, a time and a name for every frame, got {sorted(counts)} of them")

    def __len__(self) -> int:
        return len(self.indices)

    def positions(self, frames: Iterable[float]) -> NDArray[np.int64]:
        """Positions (N,) among the used frames of source frame numbers (N,); NOT_USED for all others."""
        return np.array([self._by_index.get(frame, NOT_USED) for frame in frames], np.int64)

    def positions_of(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """Positions (N,) of frames called by a source frame number, an image's name, or a name with that number in it.

        A clip's own image names go before numbers: "7.jpg" of a folder of images need not be its eighth.
        """
        distinct = set(labels)  # a table says its few frames many times
        position = {label: self._by_name.get(Path(label).stem, NOT_USED) for label in distinct}
        if all(p == NOT_USED for p in position.values()):
            position = {label: self._by_index.get(_number(label), NOT_USED) for label in distinct}
        return np.array([position[label] for label in labels], np.int64)

    def to_maps(self, uv: Array) -> Array:
        """Pixels (N, 2) of the depth maps from pixels (N, 2) of the clip's own frames."""
        return self.rescaled(uv, *self.source_size)

    def rescaled(self, uv: Array, width: float, height: float) -> Array:
        """Pixels (N, 2) of the depth maps from pixels (N, 2) of a width x height image of the same view."""
        return uv * (self.camera.width / width, self.camera.height / height)

    def inside(self, uv: Array) -> BoolImage:
        """(N,) which pixels uv (N, 2) lie on the depth maps."""
        with np.errstate(invalid="ignore"):
            return np.asarray(((uv >= 0) & (uv < (self.camera.width, self.camera.height))).all(1))

    def range_text(self) -> str:
        """For messages: "frames 0 to 239"."""
        return f"frames {self.indices[0]} to {self.indices[-1]}"

    @cached_property
    def _by_index(self) -> dict[float, int]:
        return {int(index): position for position, index in enumerate(self.indices)}

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {Path(name).stem: position for position, name in enumerate(self.names or ())}


def _number(label: str) -> float:
    """The frame number that a label is, or the last number in its name; NaN, which is no frame, without one."""
    try:
        return float(label)
    except ValueError:
        digits = re.findall(r"\d+", Path(label).stem)
        return float(digits[-1]) if digits else float("nan")
