"""Depth of one photo.

Loads a depth model by name, asks it for the depth of a single picture and saves a coloured map: near is red, far is
blue. One picture holds no scale, so the values are relative; without a photo the first frame of the clip in this
folder is taken.

    python examples/03_depth_of_a_photo.py [PHOTO] [--output photo_depth.png] [--model compact]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from marigold3d import load_estimator, open_video
from marigold3d.config import DepthConfig, VideoConfig
from marigold3d.export.preview import colorize, far_large

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", nargs="?", default=str(HERE / "clip.mp4"))
    parser.add_argument("--output", type=Path, default=Path("photo_depth.png"))
    parser.add_argument("--model", default="compact", help="a name from `marigold3d models`")
    args = parser.parse_args()

    rgb = next(open_video(args.photo, VideoConfig()).frames()).rgb  # (H, W, 3) uint8, turned upright
    estimator = load_estimator(DepthConfig(model=args.model))
    relative = estimator.estimate(rgb[None])[0]  # values (H, W) float32 in estimator.domain
    depth = far_large(relative)  # whatever the domain: near small, far large
    Image.fromarray(colorize(depth, depth > 0)).save(args.output)

    height, width = depth.shape
    print(f"{args.photo}: {width}x{height} px, model {estimator.name}, domain {estimator.domain}")
    ratio = depth[-1, width // 2] / depth[height // 2, width // 2]
    print(f"the middle of the lower edge is {ratio:.2f} times as far as the centre, in the model's relative depth")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
