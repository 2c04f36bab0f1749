"""Makes clip_sample_3d/ from a finished run of clip.mp4: small enough to be installed, without this machine's paths.

marigold3d video examples/clip.mp4 --fuse -o runs/clip_3d
python examples/make_sample_run.py runs/clip_3d
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from marigold3d.detail import progressive_order
from marigold3d.export.ply import write_ply
from marigold3d.export.trajectories import write_tum
from marigold3d.store import Run
from marigold3d.types import Trajectory

HERE = Path(__file__).parent
MAPS = ("depth", "sigma")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path, help="folder of a finished run of clip.mp4")
    arguments.add_argument("-o", "--output", type=Path, default=HERE / "clip_sample_3d")
    arguments.add_argument("--every", type=int, default=8, help="keep the depth of every n-th frame")
    arguments.add_argument("--points", type=int, default=70_000, help="keep so many points of the cloud")
    given = arguments.parse_args()
    make_sample(Run.open(given.run), given.output, given.every, given.points)
    size = sum(file.stat().st_size for file in given.output.rglob("*") if file.is_file())
    print(f"{given.output}: {size / 2**20:.1f} MB")


def make_sample(run: Run, output: Path, every: int, points: int) -> Run:
    """A run folder at `output`, which is replaced, with every n-th frame of `run` and so many points of its cloud."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    kept = slice(None, None, every)
    for maps in MAPS:
        copy_maps(run.path / maps, output / maps, run.frame_indices[kept])
    shutil.copyfile(run.path / "camera.json", output / "camera.json")
    path, cloud = run.trajectory(), run.cloud()
    write_tum(
        output / "trajectory.txt",
        Trajectory(path.timestamps_s[kept], path.T_world_camera[kept]),
        run.manifest["units"],
    )
    if len(cloud) > points:
        cloud = cloud.select(np.sort(progressive_order(cloud.points)[:points]))
    write_ply(output / "cloud.ply", cloud)
    sample = Run(output, {})
    sample.update(**without_paths(manifest_of(run.manifest, every)))
    return sample


def copy_maps(source: Path, target: Path, indices: list[int]) -> None:
    """The maps of these source frames with what says how to read them, where the run has any."""
    if not source.is_dir():
        return
    target.mkdir()
    for file in sorted(source.iterdir()):
        if not file.stem.isdigit() or int(file.stem) in indices:
            shutil.copyfile(file, target / file.name)


def manifest_of(manifest: dict[str, Any], every: int) -> dict[str, Any]:
    """The manifest for every n-th frame; nothing that could only be resumed with the cache."""
    alignment = manifest["report"].get("alignment", {})
    frames = {name: values[::every] for name, values in alignment.get("frames", {}).items()}
    if frames:
        frames["position"] = list(range(len(frames["position"])))
        alignment = {**alignment, "frames": frames}
    report = {**manifest["report"], "alignment": alignment}
    return {**manifest, "clip": "../clip.mp4", "stages": {}, "report": report}


def without_paths(entry: Any) -> Any:
    """The entry with absolute paths cut down to the names they end in."""
    if isinstance(entry, dict):
        return {name: without_paths(value) for name, value in entry.items()}
    if isinstance(entry, list):
        return [without_paths(value) for value in entry]
    return Path(entry).name if isinstance(entry, str) and Path(entry).is_absolute() else entry


if __name__ == "__main__":
    main()
