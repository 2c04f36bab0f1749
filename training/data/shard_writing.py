"""Writing shards: each appears whole or not at all, and the same source gives the same bytes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from marigold3d.atomic import atomic_path, writable_folder
from marigold3d.errors import InputError, OutputError, UsageError
from marigold3d.progress import Progress, Steps
from training.data.opening import open_sources
from training.data.samples import ENDLESS, CorruptSample, Sample, Source
from training.data.shards import INDEX, index_path, read_notes

MEMBERS = ("rgb.png", "depth.png", "json")
UNITS_M = (0.001, 0.01)  # the first that holds a sample's farthest depth: Hypersim's and Virtual KITTI's own
LARGEST = 65535
MOST_CORRUPT = 0.01


def write_shards(
    mapping: Mapping[str, Any], out: Path, first: int = 0, count: int | None = None, samples_per_shard: int = 1000
) -> Steps[int]:
    """Write samples `first` … of the source that `mapping` describes (see `open_sources`); how many `out` then holds.

    Shards that are there already stay. Samples that cannot be read are left out; above MOST_CORRUPT, InputError.
    Raises UsageError for numbers that do not fit the source, OutputError where `out` holds other shards.
    """
    (source,) = open_sources([mapping])
    last = _last(source, first, count, samples_per_shard)
    writable_folder(out)
    stage, corrupt = "Writing shards", 0
    for begin in range(first, last, samples_per_shard):
        yield Progress(stage, begin - first, last - first)
        shard = out / f"shard-{begin // samples_per_shard:06d}.tar"
        numbers = range(begin, min(begin + samples_per_shard, last))
        made_of = {"source": dict(mapping), "first": numbers.start, "count": len(numbers)}
        if index_path(shard).exists():
            corrupt += _corrupt_in_finished(shard, made_of)
            continue
        samples, left_out = [], 0
        with atomic_path(shard) as path:
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for number in numbers:
                    try:
                        _add(tar, f"{number:09d}", source[number])
                    except CorruptSample:
                        left_out += 1
                    yield Progress(stage, number + 1 - first, last - first)
            samples = sample_places(path)
        _write_json(index_path(shard), {"made_of": made_of, "left_out": left_out, "samples": samples})
        corrupt += left_out
    if corrupt > MOST_CORRUPT * (last - first):
        raise InputError(f"{corrupt} of {last - first} samples of {source.name} cannot be read: repair them first")
    return write_index(out)


def write_index(folder: Path) -> int:
    """Write index.json of all shards in `folder`, and where samples are in those that lack it; the samples' number.

    Raises InputError where there is no shard, or one cannot be read or is cut short.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise InputError(f"{folder} holds no .tar files")
    entries: list[dict[str, Any]] = []
    for shard in shards:
        if not index_path(shard).exists():
            _write_json(index_path(shard), {"samples": sample_places(shard)})
        samples, size = read_notes(shard)["samples"], shard.stat().st_size
        if any(offset + length > size for _, *n in samples for offset, length in zip(n[::2], n[1::2], strict=True)):
            raise InputError(f"{shard} is cut short: copy it again")
        entries.append({"file": shard.name, "bytes": size, "samples": len(samples)})
    _write_json(folder / INDEX, {"shards": entries})
    return sum(entry["samples"] for entry in entries)


def sample_places(shard: Path) -> list[list[Any]]:
    """Of each sample in a tar file: key, then offset and size of each of MEMBERS. Raises InputError for other forms."""
    found: dict[str, dict[str, list[int]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.rpartition("/")[2].partition(".")
                if extension in MEMBERS:
                    found.setdefault(key, {})[extension] = [member.offset_data, member.size]
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{shard} cannot be read as a tar file: {error}") from error
    for key, members in found.items():
        if len(members) != len(MEMBERS):
            raise InputError(f"{shard}: sample {key} has only {', '.join(members)}: it needs {', '.join(MEMBERS)}")
    return [[key, *(n for name in MEMBERS for n in members[name])] for key, members in found.items()]


def packed(sample: Sample) -> dict[str, bytes]:
    """The members of a sample; depth is rounded to the unit, and 0 where it does not count."""
    depth_m = torch.where(sample.valid, sample.depth_m, 0.0)[0].double().cpu().numpy()
    unit_m = next((unit for unit in UNITS_M if np.rint(depth_m.max() / unit) <= LARGEST), None)
    if unit_m is None:
        raise UsageError(f"{sample.name}: depth up to {depth_m.max():.0f} m is beyond 16 bits of {UNITS_M[-1]} m")
    depth = np.rint(depth_m / unit_m)
    depth = np.where(depth_m > 0, depth.clip(1, LARGEST), 0).astype(np.uint16)  # what counts stays so
    notes = json.dumps({"name": sample.name, "unit_m": unit_m}).encode()
    return dict(zip(MEMBERS, (_png(sample.rgb.permute(1, 2, 0).cpu().numpy()), _png(depth), notes), strict=True))


def _last(source: Source, first: int, count: int | None, samples_per_shard: int) -> int:
    if samples_per_shard < 1:
        raise UsageError(f"samples_per_shard={samples_per_shard}: give 1 or more")
    if first % samples_per_shard or not 0 <= first < len(source):
        raise UsageError(
            f"first={first} must be a multiple of samples_per_shard ({samples_per_shard}) below {len(source)}"
        )
    if count is None and len(source) >= ENDLESS:
        raise UsageError(f"{source.name} has no end: say how many samples with --count")
    return len(source) if count is None else min(len(source), first + count)


def _corrupt_in_finished(shard: Path, made_of: Mapping[str, Any]) -> int:
    said = read_notes(shard)
    if said.get("made_of") != json.loads(json.dumps(made_of)):
        raise OutputError(f"{shard} was made of something else: choose another folder with --out")
    return int(said["left_out"])


def _add(tar: tarfile.TarFile, key: str, sample: Sample) -> None:
    for extension, data in packed(sample).items():
        member = tarfile.TarInfo(f"{key}.{extension}")
        member.size, member.mode = len(data), 0o644
        tar.addfile(member, io.BytesIO(data))


def _png(values: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
