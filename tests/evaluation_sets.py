"""Small data sets in the layouts of the five test sets, and of the real frames, written to a folder or a tar."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Depth = NDArray[np.float64]
SIZES = {"nyu": (480, 640), "kitti": (375, 1242), "eth3d": (24, 40), "scannet": (24, 32), "diode": (24, 32)}


def slope(kind: str, index: int) -> Depth:
    """(H, W) metres: a plane that recedes up and to the right, another one for every index."""
    height, width = SIZES[kind]
    y, x = np.mgrid[:height, :width]
    return 2.0 + 0.5 * index + 3.0 * (height - y) / height + 1.5 * x / width


def picture(depth: Depth) -> NDArray[np.uint8]:
    """(H, W, 3): depth as grey, with a little texture."""
    grey = np.clip(depth * 25.0, 0, 250) + np.arange(depth.shape[1]) % 5
    return np.repeat(grey.astype(np.uint8)[..., None], 3, 2)


def write_set(kind: str, root: Path, count: int, depth_of: Callable[[str, int], Depth] = slope) -> Path:
    """The data set below `root`; returns its split list, which lies beside `root`."""
    rows = [_WRITERS[kind](root, index, depth_of(kind, index)) for index in range(count)]
    split = root.parent / f"{root.name}.txt"
    split.write_text("\n".join(rows))  # as the official lists: no line end at the end
    return split


def pack(root: Path) -> Path:
    """The folder as a tar with members ./path, as the official ones are."""
    target = root.with_suffix(".tar")
    with tarfile.open(target, "w") as tar:
        tar.add(root, arcname=".")
    return target


def save(path: Path, image: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _png(root: Path, name: str, depth: Depth, units_a_metre: float) -> str:
    save(root / name, np.round(depth * units_a_metre).astype(np.uint16))
    return name


def _nyu(root: Path, i: int, depth: Depth) -> str:
    folder = "test/kitchen_0004"
    save(root / f"{folder}/rgb_{i:04d}.png", picture(depth))
    _png(root, f"{folder}/depth_{i:04d}.png", depth, 1000)
    return f"{folder}/rgb_{i:04d}.png {folder}/depth_{i:04d}.png {folder}/filled_{i:04d}.png"


def _kitti(root: Path, i: int, depth: Depth) -> str:
    drive = "2011_09_26/2011_09_26_drive_0002_sync"
    rgb, truth = f"{drive}/image_02/data/{i:010d}.png", f"{drive}/proj_depth/groundtruth/image_02/{i:010d}.png"
    save(root / rgb, picture(depth))
    return f"{rgb} {_png(root, truth, depth, 256)} 721.5377"


def _eth3d(root: Path, i: int, depth: Depth) -> str:
    rgb, truth = f"rgb/courtyard/DSC_{i:04d}.JPG", f"depth/courtyard/DSC_{i:04d}.JPG"
    save(root / rgb, picture(depth))
    (root / truth).parent.mkdir(parents=True, exist_ok=True)
    depth.astype("<f4").tofile(root / truth)
    return f"{rgb} {truth}"


def _scannet(root: Path, i: int, depth: Depth) -> str:
    rgb, truth = f"scene0000_00/color/{i:06d}.jpg", f"scene0000_00/depth/{i:06d}.png"
    save(root / rgb, picture(depth))
    return f"{rgb} {_png(root, truth, depth, 1000)}"


def _diode(root: Path, i: int, depth: Depth) -> str:
    stem = f"indoors/scene_00019/scan_00183/00019_00183_indoors_{i:03d}"
    save(root / f"{stem}.png", picture(depth))
    np.save(root / f"{stem}_depth.npy", depth.astype(np.float32)[..., None])
    mask = np.ones(depth.shape, np.float32)
    mask[:4] = 0.0
    np.save(root / f"{stem}_depth_mask.npy", mask)
    return f"{stem}.png {stem}_depth.npy {stem}_depth_mask.npy"


_WRITERS: dict[str, Callable[[Path, int, Depth], str]] = {
    "nyu": _nyu,
    "kitti": _kitti,
    "eth3d": _eth3d,
    "scannet": _scannet,
    "diode": _diode,
}


def write_frames(root: Path) -> Path:
    """Every kind of real frames: tum_frame, fastdepth_nyu, slambook (2 frames), kitchen (12 depths, 8 of them used)."""
    depth = slope("scannet", 0)
    save(root / "tum_frame/TUM_color.png", picture(depth))
    _png(root / "tum_frame", "TUM_depth.png", depth, 5000)
    save(root / "fastdepth_nyu/rgb.png", picture(depth))
    np.save(root / "fastdepth_nyu/depth.npy", depth.astype(np.float32)[None])
    for name in ("1", "2"):
        save(root / f"slambook/color/{name}.png", picture(depth))
        _png(root / "slambook", f"depth/{name}.png", depth, 1000)
    write_clip(root / "kitchen/clip.mp4", frames=24)
    for number in range(0, 24, 2):
        _png(root / "kitchen", f"depth/{number:06d}.png", depth, 1000)
    return root


def write_clip(path: Path, frames: int) -> None:
    """A clip of 32 x 24 px whose frame k is grey of level 8 k."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for k in range(frames):
            image = np.full((24, 32, 3), 8 * k, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
