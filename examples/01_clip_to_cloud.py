"""A clip becomes a point cloud.

Runs the whole pipeline from Python on the clip in this folder, then reads the products back from the run folder:
camera, path, depth maps and cloud as numpy arrays.

    python examples/01_clip_to_cloud.py [CLIP] [--output FOLDER] [--max-frames 30] [--max-side 320] [--no-refine]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from marigold3d import RunConfig, reconstruct
from marigold3d.config import RefineConfig, VideoConfig
from marigold3d.store import Run

HERE = Path(__file__).resolve().parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", nargs="?", default=str(HERE / "clip.mp4"))
    parser.add_argument("--output", type=Path, default=Path("runs/01_clip_to_cloud"), help="run folder")
    parser.add_argument("--max-frames", type=int, help="stop after so many frames")
    parser.add_argument("--max-side", type=int, default=640, help="longest side of the depth maps, px")
    parser.add_argument("--no-refine", action="store_true", help="do not sharpen depth by matching views: faster")
    return parser.parse_args()


def describe(run: Run) -> None:
    """Read every product of a run and say what is in it."""
    units = run.manifest["units"]
    camera = run.camera()  # of the depth maps
    path = run.trajectory()  # T_world_camera (N, 4, 4)
    depth = run.depth(run.frame_indices[0])  # depth (H, W) float32 z, valid (H, W) bool
    cloud = run.cloud()  # points (N, 3) float32, colors (N, 3) uint8, normals, sigma, observations, frame_index
    steps = np.linalg.norm(np.diff(path.centres, axis=0), axis=1)
    print(f"camera   {camera.width}x{camera.height} px, field of view {camera.fov_x_deg:.1f} degrees")
    print(f"path     {len(path)} poses, {steps.sum():.3f} long; lengths are in units '{units}'")
    print(f"depth    {len(run.frame_indices)} maps; the first: {depth.depth[depth.valid].min():.3f} to", end=" ")
    print(f"{depth.depth[depth.valid].max():.3f}, {depth.valid.mean():.0%} valid")
    print(f"cloud    {len(cloud)} points, median sigma {np.nanmedian(cloud.sigma):.4f}")
    sure = cloud.select(cloud.observations >= 4)
    print(f"         {len(sure)} of them seen by four frames or more")
    print(f"look     marigold3d view {run.path}")


def main() -> None:
    args = arguments()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    settings = RunConfig(
        video=VideoConfig(max_frames=args.max_frames, max_side=args.max_side),
        refine=RefineConfig(enabled=not args.no_refine),
    )
    run = reconstruct(args.clip, args.output, settings, overwrite=True)
    describe(run)
    for line in run.manifest["report"]["warnings"]:
        print(f"warning  {line}")


if __name__ == "__main__":
    main()
