"""Marigold's five test sets, in their official layouts, as sources of samples.

| set | split list | depth | truth counts |
|---|---|---|---|
| nyu | rgb depth filled | PNG, mm | 0.001 to 10 m, Eigen's crop: rows 45 to 470, columns 41 to 600 |
| kitti | rgb depth focal | PNG, m / 256 | 0.00001 to 80 m, inside Eigen's or Garg's rectangle of the 352 x 1216 crop |
| eth3d | rgb depth | raw float32 m, 4032 x 6048, inf unmeasured | above 0.00001 m |
| scannet | rgb depth | PNG, mm | 0.001 to 10 m |
| diode | rgb depth mask | .npy, m | where the mask says so |

Layouts, ranges and crops are those of the data set classes of prs-eth/Marigold and of arXiv 2312.02145, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from marigold3d.errors import InputError, UsageError
from training.data.pictures import read_depth, read_rgb
from training.data.samples import CorruptSample, Sample
from training.data.splits import read_split
from training.evaluation.archive import Files, open_files
from training.evaluation.protocol import Protocol

KittiMask = Literal["eigen", "garg", "none"]

PROTOCOLS: Mapping[str, Protocol] = {
    "nyu": Protocol("NYUv2", (1e-3, 10.0), (1e-3, 10.0), 0, None, 654, "filename_list_test.txt"),
    "kitti": Protocol("KITTI", (1e-5, 80.0), (1e-5, 80.0), 0, None, 652, "eigen_test_files_with_gt.txt"),
    "eth3d": Protocol("ETH3D", (1e-5, np.inf), (1e-5, np.inf), 756, 1024, 454, "eth3d_filename_list.txt"),
    "scannet": Protocol("ScanNet", (1e-3, 10.0), (1e-3, 10.0), 0, None, 800, "scannet_val_sampled_list_800_1.txt"),
    "diode": Protocol("DIODE", (0.6, 350.0), (0.6, 350.0), 640, None, 771, "diode_val_all_filename_list.txt"),
}
LISTS = "the lists are in data_split/ of github.com/prs-eth/Marigold"
NYU_WINDOW = (slice(45, 471), slice(41, 601))  # rows, columns
KITTI_CROP = (352, 1216)  # rows from the bottom, columns in the middle: the KITTI benchmark's
KITTI_MASKS: Mapping[str, tuple[float, float, float, float]] = {  # first and last row, column, as shares of the crop
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),  # Eigen et al. 2014
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),  # Garg et al. 2016
}


@dataclass(frozen=True)
class Layout:
    """How to read a data set: `fields` of a row are files; `read` turns them into a sample."""

    fields: int
    read: Callable[[Files, Sequence[str], KittiMask], Sample]


class DataSet:
    """A source of samples with its protocol. `groups[i]` names the set that sample i belongs to, `names[i]` itself.

    Raises InputError where the split cannot be read, or files of it are missing.
    """

    def __init__(
        self, kind: str, root: str | Path, split: str | Path | None = None, kitti_mask: KittiMask = "eigen"
    ) -> None:
        self.name, self.protocol, self.layout = kind, PROTOCOLS[kind], LAYOUTS[kind]
        if kitti_mask not in ("eigen", "garg", "none"):
            raise UsageError(f"--kitti-mask {kitti_mask}: use eigen, garg or none")
        self.files, self.kitti_mask = open_files(root), kitti_mask
        self.rows = read_split(split or official_split(root, self.protocol))
        short = next((row for row in self.rows if len(row) < self.layout.fields), None)
        if short is not None:
            raise InputError(
                f"the split has a row of {len(short)} paths, {kind} needs {self.layout.fields}: {short[0]}"
            )
        self.files.require(
            (path for row in self.rows for path in row[: self.layout.fields]),
            "the data set is incomplete or another one: get it again, or give --split the list that belongs to it",
        )
        self.names = tuple(row[0] for row in self.rows)
        self.groups = (kind,) * len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self.layout.read(self.files, self.rows[index], self.kitti_mask)


def official_split(root: str | Path, protocol: Protocol) -> Path:
    """The official list, where it lies in the data set's folder or beside its tar. Raises UsageError if it does not."""
    root = Path(root).expanduser()
    folder = root if root.is_dir() else root.parent
    path = folder / str(protocol.split)
    if not path.is_file():
        raise UsageError(f"no --split, and no {protocol.split} in {folder}: {LISTS}")
    return path


def _nyu(files: Files, row: Sequence[str], _: KittiMask) -> Sample:
    rgb, depth = _pair(files, row, 1e-3)
    return _sample(rgb, depth, _inside(depth, "nyu") & _window(depth, *NYU_WINDOW), row[0])


def _scannet(files: Files, row: Sequence[str], _: KittiMask) -> Sample:
    rgb, depth = _pair(files, row, 1e-3)
    return _sample(rgb, depth, _inside(depth, "scannet"), row[0])


def _kitti(files: Files, row: Sequence[str], mask: KittiMask) -> Sample:
    rgb, depth = (_benchmark_crop(image, row[0]) for image in _pair(files, row, 1 / 256))
    valid = _inside(depth, "kitti")
    if mask != "none":
        top, bottom, left, right = KITTI_MASKS[mask]
        height, width = depth.shape[-2:]
        rows, columns = slice(int(top * height), int(bottom * height)), slice(int(left * width), int(right * width))
        valid = valid & _window(depth, rows, columns)
    return _sample(rgb, depth, valid, row[0])


def _eth3d(files: Files, row: Sequence[str], _: KittiMask) -> Sample:
    rgb = read_rgb(files.open(row[0]), row[0])
    height, width = rgb.shape[-2:]
    content = files.open(row[1]).read()
    if len(content) != 4 * height * width:
        raise CorruptSample(f"{row[1]}: {len(content)} bytes, {width}x{height} float32 are {4 * height * width}")
    depth = torch.from_numpy(np.frombuffer(content, "<f4").astype(np.float32).reshape(1, height, width))
    depth = torch.where(torch.isfinite(depth), depth, 0.0)
    return _sample(rgb, depth, _inside(depth, "eth3d"), row[0])


def _diode(files: Files, row: Sequence[str], _: KittiMask) -> Sample:
    rgb = read_rgb(files.open(row[0]), row[0])
    depth = torch.from_numpy(_array(files.open(row[1]), row[1]).astype(np.float32))
    valid = torch.from_numpy(_array(files.open(row[2]), row[2]).astype(bool))
    if valid.shape != depth.shape:
        raise CorruptSample(f"{row[2]}: the mask is {tuple(valid.shape)}, the depth {tuple(depth.shape)}")
    return _sample(rgb, depth, valid & torch.isfinite(depth) & (depth > 0), row[0])


LAYOUTS: Mapping[str, Layout] = {
    "nyu": Layout(2, _nyu),
    "kitti": Layout(2, _kitti),
    "eth3d": Layout(2, _eth3d),
    "scannet": Layout(2, _scannet),
    "diode": Layout(3, _diode),
}


def _pair(files: Files, row: Sequence[str], unit_m: float) -> tuple[Tensor, Tensor]:
    rgb, depth = row[:2]
    return read_rgb(files.open(rgb), rgb), read_depth(files.open(depth), depth, unit_m)


def _inside(depth: Tensor, kind: str) -> Tensor:
    near, far = PROTOCOLS[kind].valid_m
    return (depth > near) & (depth < far)


def _window(depth: Tensor, rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros_like(depth, dtype=torch.bool)
    mask[..., rows, columns] = True
    return mask


def _benchmark_crop(image: Tensor, name: str) -> Tensor:
    height, width = image.shape[-2:]
    rows, columns = KITTI_CROP
    if height < rows or width < columns:
        raise CorruptSample(f"{name}: {width}x{height} px, the KITTI benchmark's crop needs {columns}x{rows}")
    left = (width - columns) // 2
    return image[..., height - rows :, left : left + columns]


def _array(file: BinaryIO, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """(1, H, W) from a .npy of (H, W) or (H, W, 1)."""
    try:
        array: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = np.load(file, allow_pickle=False).squeeze()[None]
    except (ValueError, EOFError, OSError) as error:
        raise CorruptSample(f"{name}: no whole .npy file ({str(error).splitlines()[0]})") from None
    if array.ndim != 3:
        raise CorruptSample(f"{name}: an array {array.shape[1:]} where (H, W) was expected")
    return array


def _sample(rgb: Tensor, depth: Tensor, valid: Tensor, name: str) -> Sample:
    if rgb.shape[-2:] != depth.shape[-2:]:
        (h, w), (depth_h, depth_w) = rgb.shape[-2:], depth.shape[-2:]
        raise CorruptSample(f"{name}: the picture is {w}x{h}, its depth {depth_w}x{depth_h}")
    return Sample(rgb, depth, valid, name)
