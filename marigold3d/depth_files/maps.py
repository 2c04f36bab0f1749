"""The files of one depth map: where they stand, and how they are written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..export.preview import ColorRange, paint_depth, paint_sigma
from ..export.relative_depth import (
    MEANINGS,
    ValueEncoding,
    near_is,
    write_npy,
    write_npz,
    write_png,
    write_png16,
    write_relative_exr,
)
from ..types import Domain, RelativeDepth
from .settings import Record

SUFFIXES = {"npy": ".npy", "npz": ".npz", "png16": ".png", "exr": ".exr", "preview": ".png"}
TOGETHER = ("npz", "exr")  # depth and uncertainty in one file


@dataclass(frozen=True)
class MapFiles:
    """Paths without their suffixes: of depth, of its uncertainty, and of the coloured pictures of both."""

    depth: Path
    uncertainty: Path
    depth_preview: Path
    uncertainty_preview: Path

    @classmethod
    def of_image(cls, folder: Path, stem: str) -> MapFiles:
        """OUT/STEM_depth.*, OUT/STEM_uncertainty.*, OUT/STEM_depth_preview.png, OUT/STEM_uncertainty_preview.png."""
        names = ("depth", "uncertainty", "depth_preview", "uncertainty_preview")
        return cls(*(folder / f"{stem}_{name}" for name in names))

    @classmethod
    def of_frame(cls, folder: Path, index: int) -> MapFiles:
        """In the clip's folder: NNNNNN.*, uncertainty/NNNNNN.*, preview/NNNNNN.png, uncertainty_preview/NNNNNN.png."""
        name = f"{index:06d}"
        return cls(folder / name, *(folder / f / name for f in ("uncertainty", "preview", "uncertainty_preview")))

    def of(self, form: str, *, uncertain: bool) -> list[Path]:
        """The files of a format, that of depth last: when it is there, the others are."""
        pair = (self.uncertainty_preview, self.depth_preview) if form == "preview" else (self.uncertainty, self.depth)
        bases = pair if uncertain and form not in TOGETHER else pair[1:]
        return [Path(f"{base}{SUFFIXES[form]}") for base in bases]


@dataclass(frozen=True)
class Span:
    """The numbers of a map or a clip, from `low` to `high` and to `sigma_high`, and the range of its colours."""

    low: float
    high: float
    sigma_high: float
    shown: ColorRange

    @classmethod
    def of(cls, depth: RelativeDepth) -> Span:
        """Of one map; numbers that are not finite do not count."""
        finite = depth.values[np.isfinite(depth.values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (np.inf, -np.inf)
        sigma = 0.0
        if depth.uncertainty is not None:
            sigma = float(np.max(depth.uncertainty, initial=0.0, where=np.isfinite(depth.uncertainty)))
        return cls(low, high, sigma, ColorRange.of(depth))

    @classmethod
    def of_clip(cls, frames: Iterable[Span]) -> Span:
        """Of all frames of a clip together."""
        spans = [*frames, EMPTY]
        low, high = min(s.low for s in spans), max(s.high for s in spans)
        return cls(low, high, max(s.sigma_high for s in spans), ColorRange.of_clip(s.shown for s in spans[:-1]))

    @property
    def encoding(self) -> ValueEncoding:
        """Of depth in 16-bit PNGs."""
        return ValueEncoding.for_range(self.low, self.high) if self.low <= self.high else ValueEncoding(1.0, 0.0)

    @property
    def sigma_encoding(self) -> ValueEncoding:
        """Of uncertainty in 16-bit PNGs."""
        return ValueEncoding.for_range(0.0, self.sigma_high)

    def as_record(self, domain: Domain, *, uncertain: bool) -> Record:
        """What a reader of 16-bit PNGs must know."""
        png = {"depth": "scale * value + offset", "no estimate": 0, **asdict(self.encoding)}
        record: Record = {"png16": png, "near": near_is(domain)}
        return record | ({"png16_uncertainty": asdict(self.sigma_encoding)} if uncertain else {})


EMPTY = Span(np.inf, -np.inf, 0.0, ColorRange(0.0, 1.0, 1.0))


def meaning_record(domain: Domain) -> Record:
    """What the numbers of a domain are."""
    return {"domain": domain, "meaning": MEANINGS[domain], "near": near_is(domain), "axis": "z, not ray length"}


def write_map(files: MapFiles, depth: RelativeDepth, formats: Collection[str], span: Span, colors: str) -> None:
    """Write a depth map in `formats`, 16-bit PNGs and colours by `span`."""
    for form in formats:
        *sigma, path = files.of(form, uncertain=depth.uncertainty is not None)
        if form == "npz":
            write_npz(path, depth)
        elif form == "exr":
            write_relative_exr(path, depth)
        else:
            for target, is_sigma in [*((s, True) for s in sigma), (path, False)]:
                _write_one(form, target, depth, is_sigma, span, colors)


def _write_one(form: str, path: Path, depth: RelativeDepth, is_sigma: bool, span: Span, colors: str) -> None:
    values = depth.uncertainty if is_sigma and depth.uncertainty is not None else depth.values
    if form == "npy":
        write_npy(path, values)
    elif form == "png16":
        write_png16(path, values, span.sigma_encoding if is_sigma else span.encoding)
    else:
        write_png(path, paint_sigma(values, span.shown) if is_sigma else paint_depth(depth, span.shown, colors))


def missing(files: MapFiles, formats: Iterable[str], *, uncertain: bool) -> Iterator[str]:
    """Those of `formats` that are not there yet."""
    return (form for form in formats if not all(path.is_file() for path in files.of(form, uncertain=uncertain)))
