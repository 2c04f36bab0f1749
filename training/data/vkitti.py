"""Virtual KITTI 2 (Cabon, Murray, Humenberger, arXiv 2001.10773): driving, rendered, in its official layout.

Scene*/VARIANT/frames/rgb/Camera_*/rgb_00000.jpg and …/depth/Camera_*/depth_00000.png, 16-bit centimetres of z-depth.
The archives vkitti_2.0.3_rgb.tar and vkitti_2.0.3_depth.tar may lie unpacked in one folder, or in two: rgb and depth,
or vkitti_2.0.3_rgb and vkitti_2.0.3_depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from marigold3d.errors import InputError, UsageError
from training.data.fitting import cropped, size_of
from training.data.pictures import read_depth, read_rgb, to_sample
from training.data.samples import Sample
from training.data.splits import read_split, require_files

UNIT_M = 0.01
SKY_M = 65535 * UNIT_M
RANGE_M = (1e-5, 80.0)
KITTI_BENCHMARK = (352, 1216)  # height and width that all pictures of KITTI's depth benchmark have
FRAMES = {"Scene01": 447, "Scene02": 233, "Scene06": 270, "Scene18": 339, "Scene20": 837}
# What Marigold trains on (Ke et al., arXiv 2312.02145, sec. 4.1): no fog, rain or views turned by 30 degrees; Scene01
# validates.
TRAINING_SCENES = ("Scene02", "Scene06", "Scene18", "Scene20")
VARIANTS = ("15-deg-left", "15-deg-right", "clone", "morning", "overcast", "sunset")
REMEDY = (
    "download vkitti_2.0.3_rgb.tar and vkitti_2.0.3_depth.tar from "
    "https://europe.naverlabs.com/proxy-virtual-worlds-vkitti-2/ and unpack both there, "
    "or give a split list of the files that you have"
)


class VirtualKitti:
    """Pictures (3, 352, 1216) with depth that counts from 0 to 80 m; the sky's depth is unknown.

    `split`: a list of `rgb depth` a line; without it, all frames of both cameras in `scenes` and `variants`. `crop`
    (height, width) is cut at the bottom middle, as the KITTI benchmark does; None keeps the whole picture.
    Raises InputError where files are missing.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Path | None = None,
        scenes: Sequence[str] = TRAINING_SCENES,
        variants: Sequence[str] = VARIANTS,
        crop: Sequence[int] | None = KITTI_BENCHMARK,
    ) -> None:
        self.root, self.name, self.crop = Path(root), "vkitti", size_of(crop, "crop")
        self.pairs = pairs_of(self.root, scenes, variants) if split is None else _from_split(split)
        require_files(self.root, (path for pair in self.pairs for path in pair), REMEDY)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        rgb_path, depth_path = self.pairs[index]
        depth_m = read_depth(self.root / depth_path, depth_path, UNIT_M)
        depth_m[depth_m >= SKY_M] = 0.0
        sample = to_sample(read_rgb(self.root / rgb_path, rgb_path), depth_m, RANGE_M, rgb_path)
        return sample if self.crop is None else cropped(sample, self.crop, bottom=True)


def pairs_of(root: Path, scenes: Sequence[str], variants: Sequence[str]) -> list[tuple[str, str]]:
    """Relative paths (rgb, depth) of every frame of the scenes and variants. Raises UsageError for an unknown scene."""
    unknown = [scene for scene in scenes if scene not in FRAMES]
    if unknown:
        raise UsageError(f"Virtual KITTI 2 has no {unknown[0]!r}: use {', '.join(FRAMES)}")
    rgb_top, depth_top = _tops(root)
    return [
        (
            f"{rgb_top}{scene}/{variant}/frames/rgb/Camera_{camera}/rgb_{frame:05d}.jpg",
            f"{depth_top}{scene}/{variant}/frames/depth/Camera_{camera}/depth_{frame:05d}.png",
        )
        for scene, variant, camera in product(scenes, variants, (0, 1))
        for frame in range(FRAMES[scene])
    ]


def _tops(root: Path) -> tuple[str, str]:
    """What stands before Scene* in the paths of pictures and of depth."""
    for rgb_top, depth_top in (("rgb/", "depth/"), ("vkitti_2.0.3_rgb/", "vkitti_2.0.3_depth/")):
        if (root / rgb_top).is_dir() or (root / depth_top).is_dir():
            return rgb_top, depth_top
    if root.is_dir() and not any(root.glob("Scene*")):
        raise InputError(f"{root} holds no Virtual KITTI 2: {REMEDY}")
    return "", ""


def _from_split(split: str | Path) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in read_split(split)]
