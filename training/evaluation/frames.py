"""A small mixed set of real frames with measured depth, on which the embedded network is judged.

Each folder below `root` is a set; those that are missing are left out. Figures are means over a set's frames, then over
sets, so that two clips do not decide alone. Nothing is ever trained on these frames.

| set | frames | holds |
|---|---|---|
| tum_frame | 1 | TUM_color.png, TUM_depth.png (m / 5000) |
| fastdepth_nyu | 1 | rgb.png, depth.npy (m) |
| slambook | all | color/NAME.png, depth/NAME.* (mm) |
| kitchen, hololens | 8, spread | clip.mp4, depth/NNNNNN.png (mm, NNNNNN the frame) |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from marigold3d.depth.protocol import DepthEstimator
from marigold3d.errors import InputError
from training.data.pictures import read_depth, read_rgb, to_sample
from training.data.samples import CorruptSample, Sample
from training.evaluation.protocol import Protocol

PROTOCOL = Protocol("real frames", (0.3, 10.0), (1e-3, np.inf))
FRAMES_A_CLIP = 8

Load = Callable[[], tuple[Tensor, Tensor]]  # rgb (3, H, W) uint8, depth (1, H, W) float32 metres


@dataclass(frozen=True, eq=False)
class Frame:
    """Where one frame comes from."""

    name: str
    load: Load


class Frames:
    """The frames below `root` as a source of samples. Raises InputError where none of the sets is there."""

    name = "frames"
    protocol = PROTOCOL

    def __init__(self, root: str | Path) -> None:
        root = Path(root).expanduser()
        sets = {name: list(listed(root / name)) for name, listed in SETS.items() if (root / name).is_dir()}
        if not any(sets.values()):
            raise InputError(f"{root} holds none of the folders {', '.join(SETS)}: give --root the folder above them")
        self._frames = [frame for frames in sets.values() for frame in frames]
        self.groups = tuple(name for name, frames in sets.items() for _ in frames)
        self.names = tuple(f"{g}/{frame.name}" for g, frame in zip(self.groups, self._frames, strict=True))

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        rgb, depth = self._frames[index].load()
        return to_sample(rgb, depth, PROTOCOL.valid_m, self.names[index])


def judge_frames(estimator: DepthEstimator, root: str | Path) -> dict[str, dict[str, float]]:
    """Figures of an estimator on the frames below `root`: {set: {"abs_rel": …, "delta1": …, …}}, and their "mean".

    For training loops: nothing is written. Raises InputError where no set is there or a frame cannot be read.
    """
    from training.evaluation.judging import figures_of, metres

    frames = Frames(root)
    figures: dict[str, list[dict[str, float]]] = {}
    for index, group in enumerate(frames.groups):
        sample = frames[index]
        figures.setdefault(group, []).append(figures_of(metres(estimator, sample, PROTOCOL)[0], sample))
    means = {group: _mean(rows) for group, rows in figures.items()}
    return {**means, "mean": _mean(list(means.values()))}


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure over those rows that have it."""
    known = {name: [row[name] for row in rows if not np.isnan(row[name])] for name in rows[0]}
    return {name: float(np.mean(values)) if values else float("nan") for name, values in known.items()}


# -- the sets ---------------------------------------------------------------------------------------------------------


def _tum(folder: Path) -> Iterator[Frame]:
    yield Frame("TUM_color", partial(_pngs, folder / "TUM_color.png", folder / "TUM_depth.png", 1 / 5000))


def _fastdepth(folder: Path) -> Iterator[Frame]:
    yield Frame("rgb", partial(_png_and_array, folder / "rgb.png", folder / "depth.npy"))


def _slambook(folder: Path) -> Iterator[Frame]:
    depths = {path.stem: path for path in sorted((folder / "depth").glob("*"))}
    for path in sorted((folder / "color").glob("*.png")):
        if path.stem not in depths:
            raise InputError(f"{folder} has no depth for {path.name}: get the folder again")
        yield Frame(path.stem, partial(_pngs, path, depths[path.stem], 1e-3))


def _clip(folder: Path) -> Iterator[Frame]:
    depths = sorted((folder / "depth").glob("*.png"))
    if not depths:
        return
    spread = np.linspace(0, len(depths) - 1, FRAMES_A_CLIP + 2).round().astype(int)[1:-1]
    wanted = tuple(int(depths[i].stem) for i in spread)
    for i, number in zip(spread, wanted, strict=True):
        yield Frame(depths[i].stem, partial(_clip_frame, folder / "clip.mp4", wanted, number, depths[i]))


SETS: Mapping[str, Callable[[Path], Iterator[Frame]]] = {
    "tum_frame": _tum,
    "fastdepth_nyu": _fastdepth,
    "slambook": _slambook,
    "kitchen": _clip,
    "hololens": _clip,
}


def _pngs(rgb: Path, depth: Path, unit_m: float) -> tuple[Tensor, Tensor]:
    return read_rgb(rgb, str(rgb)), read_depth(depth, str(depth), unit_m)


def _png_and_array(rgb: Path, depth: Path) -> tuple[Tensor, Tensor]:
    try:
        array = np.load(depth, allow_pickle=False).squeeze()[None].astype(np.float32)
    except (ValueError, EOFError, OSError) as error:
        raise CorruptSample(f"{depth}: no whole .npy file ({str(error).splitlines()[0]})") from None
    return read_rgb(rgb, str(rgb)), torch.from_numpy(array)


def _clip_frame(clip: Path, wanted: tuple[int, ...], number: int, depth: Path) -> tuple[Tensor, Tensor]:
    frames = _decoded(clip, wanted)
    if number not in frames:
        raise CorruptSample(f"{clip}: it has no frame {number}, of which there is depth")
    return frames[number], read_depth(depth, str(depth), 1e-3)


@lru_cache(maxsize=1)
def _decoded(clip: Path, wanted: tuple[int, ...]) -> dict[int, Tensor]:
    """Frames (3, H, W) of a clip by number: it is decoded once, from its start, for all of them."""
    import av

    frames: dict[int, Tensor] = {}
    try:
        with av.open(str(clip)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    frames[number] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).contiguous()
                if len(frames) == len(set(wanted)):
                    break
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise CorruptSample(f"{clip}: {error}") from None
    return frames
