"""How good alignment is on real clips, by what is known of them and by which way frames are aligned: Markdown tables.

    python tests/benchmarks/alignment_real.py [--data FOLDER] [--runs FOLDER] [--only kitchen hololens berlin] [--sweep]

Relative depth and cameras come from one `marigold3d video CLIP --no-refine --no-fuse` a clip, whose run is kept in
(and on the next call read from) --runs. Known are either the run's own points of structure from motion, or the depth
of 200 random pixels of the recording's sensor in some frames. Cues in metres first bring the poses to metres, as
`marigold3d align` does. A frame without cues of its own takes, in the ways that know no other frames, the fit of the
nearest frame that has some.

Scored are all pixels measured at 0.3 to 6 m of all frames that the sensor measured; a pixel without depth counts as
100 % off. Where the cues are in metres, no scale is fitted to the truth; otherwise one a clip, as in tests/scoring.py.
Scale: standard deviation over frames of the log median ratio to the truth. Flicker: of the finished depth, as
align.alignment.flicker has it. Seconds: of the fits alone, maps in memory. --sweep: settings of the joint solve.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import zarr

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # a script sees its own folder only, the scoring stands one above

from marigold3d.align import fit_affine, fit_frame  # noqa: E402
from marigold3d.align.alignment import flicker, solve_clip  # noqa: E402
from marigold3d.align.cue_arrays import joined  # noqa: E402
from marigold3d.align.frame import FrameAlignment  # noqa: E402
from marigold3d.align.grid import SampleGrid  # noqa: E402
from marigold3d.align.joint import JointSettings  # noqa: E402
from marigold3d.align.links import Rays, Surface, by_pose  # noqa: E402
from marigold3d.camera import unproject  # noqa: E402
from marigold3d.config import DepthConfig, VideoConfig  # noqa: E402
from marigold3d.cues import (  # noqa: E402
    ClipFrames,
    Measurement,
    georeference,
    metric_scale,
    read_cues,
    scale_from_measures,
)
from marigold3d.depth import load_estimator  # noqa: E402
from marigold3d.errors import GeometryError  # noqa: E402
from marigold3d.poses.opensfm_files import read_opensfm  # noqa: E402
from marigold3d.poses.sparse import SparseModel  # noqa: E402
from marigold3d.rigid import inverse  # noqa: E402
from marigold3d.store import Run  # noqa: E402
from marigold3d.types import DepthMap, Intrinsics, RelativeDepth, SparseCues  # noqa: E402
from marigold3d.video import open_video  # noqa: E402
from tests.scoring import FAR_M, NEAR_M, Truth, nearest  # noqa: E402

CLIPS = {"kitchen": (), "hololens": ("--intrinsics", "{}/K.txt")}  # options, {} the recording's folder
PIXELS = 200  # of the sensor, in a frame
OUTLIERS = 0.2  # of them 1.5 to 4 times too far
SEEDS = 1  # random pixels: means over so many draws, which differ by little
LENGTHS, SHORTEST_M, LONGEST_M = 20, 1.0, 2.0
POINTS_NEEDED = 20  # of structure from motion, for a frame to say how its units compare with metres
FOLDS = 5

Cues = dict[int, SparseCues]
Frames = list[FrameAlignment | None]
Way = Callable[["Recording", Cues], Frames]


# -- what is aligned --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Recording:
    """A run's relative depth, cameras and points, by posed frame, and what the sensor measured: metres, 0 unmeasured.

    indices: source frames. truth: by position. sensor_camera: of the sensor's maps.
    """

    maps: list[RelativeDepth]
    indices: np.ndarray
    camera: Intrinsics
    T_world_camera: np.ndarray
    points: Cues
    truth: dict[int, np.ndarray]
    sensor_camera: Intrinsics | None = None

    def __len__(self) -> int:
        return len(self.maps)

    @classmethod
    def of(cls, run: Run, folder: Path) -> Recording:
        arrays = run.load_arrays("cameras")
        model = SparseModel.from_arrays(run.load_arrays("points"))
        posed, T = np.flatnonzero(arrays["posed"]), arrays["T"]
        values = zarr.open_array(run.cache / "arrays.zarr" / "relative", mode="r")
        domain = load_estimator(DepthConfig(**run.manifest["settings"]["depth"])).domain
        maps = [RelativeDepth(np.asarray(values[p]), domain) for p in posed.tolist()]
        indices = np.array(run.frame_indices)
        assert len(indices) == len(posed)
        points = {i: model.cues(p, T[p])[0] for i, p in enumerate(posed.tolist())}
        truth = Truth.recording(folder, 1.0)
        seen = {i: truth.depth_m[k] for i, k in enumerate(indices.tolist()) if k in truth.depth_m}
        has_some = {i: c for i, c in points.items() if len(c)}
        return cls(maps, indices, model.camera, T[posed], has_some, seen, truth.camera)

    def in_metres(self, cues: Cues) -> Recording:
        """With the poses' scale from depth aligned to the points, in the frames that have cues in metres."""
        pairs = []
        for i, own in cues.items():
            if len(self.points.get(i, ())) >= POINTS_NEEDED:
                pairs.append((own.depth, fit_frame(self.maps[i], self.points[i]).depth_at(self.maps[i], own.uv)))
        factor = metric_scale(pairs).factor
        T = self.T_world_camera.copy()
        T[:, :3, 3] *= factor
        points = {
            i: SparseCues(c.uv, factor * c.depth, None if c.sigma is None else factor * c.sigma, c.source)
            for i, c in self.points.items()
        }
        return replace(self, T_world_camera=T, points=points)

    @cached_property
    def clip(self) -> ClipFrames:
        assert self.sensor_camera is not None
        size = self.sensor_camera.width, self.sensor_camera.height
        return ClipFrames(self.indices, self.indices.astype(float), size, self.camera)

    def depth(self, frames: Frames, position: int) -> DepthMap:
        frame, own = frames[position], self.maps[position]
        if frame is None:
            return DepthMap(np.zeros_like(own.values), np.zeros(own.values.shape, bool))
        return frame.apply(own)


def measured(truth: np.ndarray) -> np.ndarray:
    return (truth > NEAR_M) & (truth < FAR_M)


def sensor_cues(recording: Recording, every: int, outliers: float, seed: int) -> Cues:
    """Random pixels of every n-th measured frame; of the middle one alone where `every` is 0."""
    rng = np.random.default_rng(seed)
    positions = sorted(recording.truth)
    chosen = positions[every // 2 :: every] if every else [positions[len(positions) // 2]]
    cues = {}
    for i in chosen:
        z = recording.truth[i]
        height, width = recording.maps[i].values.shape
        rows, columns = np.nonzero(measured(z))
        some = rng.permutation(len(rows))[:PIXELS]
        rows, columns = rows[some], columns[some]
        depth = z[rows, columns].astype(float)
        wrong = rng.random(len(depth)) < outliers
        depth[wrong] *= rng.uniform(1.5, 4, int(wrong.sum()))
        uv = (np.stack([columns, rows], 1) + 0.5) * (width / z.shape[1], height / z.shape[0])
        cues[i] = SparseCues(uv, depth, 0.01 * depth + 0.005, "sensor")
    return cues


# -- the ways ---------------------------------------------------------------------------------------------------------


def alone(recording: Recording, cues: Cues, fit: Callable[[RelativeDepth, SparseCues], FrameAlignment]) -> Frames:
    """Each frame by its own cues, or as the nearest frame that has some."""
    own = {}
    for i, c in cues.items():
        try:
            own[i] = fit(recording.maps[i], c)
        except GeometryError:  # none of its cues lies on depth
            continue
    known = np.array(sorted(own))
    return [own[int(known[np.abs(known - i).argmin()])] for i in range(len(recording))]


def affine(relative: RelativeDepth, cues: SparseCues, robust: bool) -> FrameAlignment:
    fit = fit_affine(relative, cues, robust=robust)
    return FrameAlignment(fit, None, fit.residual_sigma)


def joint(recording: Recording, cues: Cues, settings: JointSettings = JointSettings(), points: bool = False) -> Frames:  # noqa: B008
    """`points`: with those of structure from motion beside the cues, as `marigold3d align` has them."""
    if points:
        cues = {i: joined([c[i] for c in (cues, recording.points) if i in c]) for i in {*cues, *recording.points}}
    return solve_clip(
        recording.maps,
        cues,
        camera=recording.camera,
        T_world_camera=recording.T_world_camera,
        settings=settings,
    ).frames


def ways(points_too: bool) -> dict[str, Way]:
    found: dict[str, Way] = {
        "least squares affine, each frame": partial(alone, fit=partial(affine, robust=False)),
        "robust affine, each frame": partial(alone, fit=partial(affine, robust=True)),
        "affine and field, each frame": partial(alone, fit=fit_frame),
        "joint, no field": partial(joint, settings=JointSettings(field_columns=1)),
        "joint": joint,
    }
    if points_too:
        found["joint, with the points too"] = partial(joint, points=True)
    return found


# -- the figures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    abs_rel: float
    delta1: float
    scale_spread: float
    flicker: float
    seconds: float

    def cells(self) -> list[str]:
        three = [f"{x:.4f}" for x in (self.abs_rel, self.delta1, self.scale_spread, self.flicker)]
        return [*three, f"{self.seconds:.2f}"]

    @classmethod
    def mean(cls, several: list[Figures]) -> Figures:
        return cls(*np.mean([list(f.__dict__.values()) for f in several], axis=0).tolist())


HEADER = ("AbsRel", "δ1", "scale", "flicker", "seconds")


def ratios(recording: Recording, frames: Frames) -> list[np.ndarray]:
    """Per frame with truth: aligned over true depth at its measured pixels, 0 where there is no depth."""
    found = []
    for i, z in recording.truth.items():
        depth, good = recording.depth(frames, i), measured(z)
        d = np.where(nearest(depth.valid, z.shape), nearest(depth.depth, z.shape), 0)
        found.append((d[good] / z[good]).astype(np.float32))
    return found


def errors(found: list[np.ndarray], scale: float) -> tuple[float, float]:
    """AbsRel and delta1, means over frames."""
    scaled = [np.float32(scale) * r for r in found]
    abs_rel = np.mean([np.abs(r - 1).mean() for r in scaled])
    return float(abs_rel), float(np.mean([((r > 1 / 1.25) & (r < 1.25)).mean() for r in scaled]))


def frame_scales(found: list[np.ndarray]) -> np.ndarray:
    """(F,) median ratio of each frame."""
    return np.array([np.median(r[r > 0]) for r in found if (r > 0).any()])


def flicker_of(recording: Recording, frames: Frames) -> float:
    """Mean over neighbouring frames; of the depth that is written, finest field and all."""
    height, width = recording.maps[0].values.shape
    grid = SampleGrid.of(width, height, JointSettings().samples, 1)
    rays, T_camera_world = Rays(recording.camera, grid), inverse(recording.T_world_camera)
    log_z = np.full((len(frames), len(grid)), np.nan, np.float32)
    for i, frame in enumerate(frames):
        if frame is not None:
            log_z[i] = np.log(frame.depth_at(recording.maps[i], grid.uv))

    def link(i: int, j: int, a: Surface, b: Surface, hidden: float, every: int) -> Any:
        return by_pose(a, b, T_camera_world[j] @ recording.T_world_camera[i], rays, grid, hidden, every)

    surfaces: Any = SimpleNamespace(surface=lambda i, own: Surface.of(own, grid), grid=grid, link=link)
    return float(np.nanmean(flicker(surfaces, log_z)))


def figures(recording: Recording, way: Way, cues: Cues, metric: bool) -> Figures:
    began = time.perf_counter()
    frames = way(recording, cues)
    seconds = time.perf_counter() - began
    found = ratios(recording, frames)
    scales = frame_scales(found)
    scale = 1.0 if metric else 1 / float(np.median(scales))
    return Figures(*errors(found, scale), float(np.std(np.log(scales))), flicker_of(recording, frames), seconds)


def by_lengths(recording: Recording, way: Way) -> list[str]:
    """AbsRel in metres when one known length gives the scale: median and 90 % of several; and of all at once."""
    frames = way(recording, recording.points)
    found = ratios(recording, frames)
    measures = known_lengths(recording)

    def error(some: list[Measurement]) -> float:
        factor = scale_from_measures(some, lambda i: recording.depth(frames, i), recording.clip).factor
        return errors(found, factor)[0]

    each = [error([m]) for m in measures]
    best = errors(found, 1 / float(np.median(frame_scales(found))))[0]
    return [f"{x:.4f}" for x in (np.median(each), np.quantile(each, 0.9), error(measures), best)]


def known_lengths(recording: Recording) -> list[Measurement]:
    """Between random pixels of random frames where the sensor's depth is even: as if with a tape."""
    rng, found = np.random.default_rng(0), []
    assert recording.sensor_camera is not None
    while len(found) < LENGTHS:
        i = int(rng.choice(sorted(recording.truth)))
        z = recording.truth[i].astype(float)
        around = np.stack([np.roll(z, (a, b), (0, 1)) for a in (-1, 0, 1) for b in (-1, 0, 1)])
        even = measured(z) & (around.min(0) > 0.98 * z) & (around.max(0) < 1.02 * z)
        rows, columns = np.nonzero(even)
        ends = rng.integers(len(rows), size=2)
        uv = np.stack([columns[ends], rows[ends]], 1) + 0.5
        a, b = unproject(uv, z[rows[ends], columns[ends]], recording.sensor_camera)
        length = float(np.linalg.norm(b - a))
        if SHORTEST_M <= length <= LONGEST_M:
            found.append(Measurement(int(recording.indices[i]), tuple(uv[0]), tuple(uv[1]), length))
    return found


# -- tables -----------------------------------------------------------------------------------------------------------


def table(title: str, header: Iterable[str], rows: Iterable[list[str]]) -> None:
    """Rows are printed as they come: a slow benchmark shows how far it is."""
    columns = list(header)
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def cases(recording: Recording) -> dict[str, tuple[int, float]]:
    """Title: (every n-th frame with sensor depth, share of outliers)."""
    count = len(recording.truth)
    return {
        f"{PIXELS} sensor points in each of {count} frames, metres": (1, 0.0),
        f"{PIXELS} sensor points in each of {count} frames, {OUTLIERS:.0%} outliers, metres": (1, OUTLIERS),
        f"{PIXELS} sensor points in every 5th of {count} frames, metres": (5, 0.0),
        f"{PIXELS} sensor points in one frame, metres": (0, 0.0),
        f"{PIXELS} sensor points in one frame, {OUTLIERS:.0%} outliers, metres": (0, OUTLIERS),
    }


def clip_tables(name: str, recording: Recording) -> None:
    count = int(np.mean([len(c) for c in recording.points.values()]))
    title = f"points of structure from motion, {count} a frame"
    rows = ([n, *figures(recording, w, recording.points, False).cells()] for n, w in ways(False).items())
    table(f"{name}: {title}; one scale fitted", ("way", *HEADER), rows)
    for title, (every, outliers) in cases(recording).items():
        drawn = [sensor_cues(recording, every, outliers, seed) for seed in range(SEEDS)]
        scaled = [(recording.in_metres(cues), cues) for cues in drawn]
        rows = (
            [n, *Figures.mean([figures(r, way, cues, True) for r, cues in scaled]).cells()]
            for n, way in ways(True).items()
        )
        table(f"{name}: {title}", ("way", *HEADER), rows)
    columns = (
        "way, on points of structure from motion",
        "median of single ones",
        "90 %",
        f"all {LENGTHS}",
        "scale fitted",
    )
    title = f"{name}: AbsRel by one known length of {SHORTEST_M:g} to {LONGEST_M:g} m"
    table(title, columns, ([n, *by_lengths(recording, way)] for n, way in ways(False).items()))


SWEEP: dict[str, list[Any]] = {
    "dilations": [(1,), (1, 3, 10), (1, 5, 15), (1, 10, 25), (1, 4, 10, 25), (1, 15, 40)],
    "independent": [20.0, 50.0, 100.0, 200.0, 400.0],
    "link_floor": [0.005, 0.01, 0.03],
    "cue_floor": [0.01, 0.03, 0.06],
    "scale_step": [0.1, 0.3, 1.0],
    "node_step": [0.02, 0.05, 0.15],
    "node_sigma": [0.2, 0.5],
    "node_difference": [0.1, 0.2, 0.4],
    "field_columns": [4, 6, 8],
}


def sweep_table(name: str, recording: Recording) -> None:
    """AbsRel and flicker of the joint solve, one setting changed at a time, under four kinds of cues."""
    kinds = {"points": (recording, recording.points, False)}
    for title, every in (("sensor", 1), ("sensor, every 5th", 5), ("sensor, one frame", 0)):
        cues = sensor_cues(recording, every, 0.0, 0)
        kinds[title] = recording.in_metres(cues), cues, True

    def row(change: dict[str, Any]) -> list[str]:
        way = partial(joint, settings=replace(JointSettings(), **change))
        found = [figures(r, way, cues, metric) for r, cues, metric in kinds.values()]
        label = ", ".join(f"{k} {v}" for k, v in change.items()) or "as they are"
        return [label, *(f"{f.abs_rel:.4f} / {f.flicker:.4f}" for f in found), f"{found[0].seconds:.1f}"]

    changes = [{}, *({k: v} for k, values in SWEEP.items() for v in values if v != getattr(JointSettings(), k))]
    table(f"{name}: AbsRel / flicker by settings", ("settings", *kinds, "seconds"), map(row, changes))


def berlin(data: Path) -> None:
    """Three photos with another program's model: error at points that no fit has seen; no dense truth exists."""
    folder = data / "opensfm_berlin"
    frames = list(open_video(folder / "images", VideoConfig()).frames(max_side=640))
    model = read_opensfm(folder / "reconstruction_example.json")
    names = [f"{i + 1:02d}.jpg" for i in range(len(frames))]
    order = [model.names.index(n) for n in names]
    height, width = frames[0].rgb.shape[:2]
    camera, T = model.cameras[0].scaled_to(width, height), model.T_world_camera[order]
    size = model.cameras[0].width, model.cameras[0].height
    clip = ClipFrames(np.arange(len(frames)), np.arange(len(frames)) / 1.0, size, camera, names)
    maps = [load_estimator(DepthConfig()).estimate(f.rgb[None])[0] for f in frames]
    source = read_cues(str(folder / "reconstruction_example.json"), clip)
    everything = [source.cues(i, T[i]) for i in range(len(frames))]

    def row(name: str, way: Way) -> list[str]:
        rng, found, seconds = np.random.default_rng(0), [], []
        for part in np.array_split(rng.permutation(source.count), FOLDS):
            held = np.isin(np.arange(source.count), part)
            cues = {i: c.select(~held[ids]) for i, (c, ids) in enumerate(everything)}
            began = time.perf_counter()
            aligned = way(Recording(maps, np.arange(3), camera, T, cues, {}), cues)
            seconds.append(time.perf_counter() - began)
            for i, (c, ids) in enumerate(everything):
                unseen, frame = c.select(held[ids]), aligned[i]
                z = np.zeros(len(unseen)) if frame is None else np.nan_to_num(frame.depth_at(maps[i], unseen.uv))
                found.append(z / unseen.depth)
        r = np.concatenate(found)
        figures = np.abs(r - 1).mean(), ((r > 0.8) & (r < 1.25)).mean(), np.median(np.abs(r - 1)), np.mean(seconds)
        return [name, *(f"{x:.4f}" for x in figures)]

    count = "/".join(str(len(c)) for c, _ in everything)
    title = f"opensfm_berlin: 3 photos, {count} points, a fifth of them held out in turn; error at those"
    table(title, ("way", "AbsRel", "δ1", "median", "seconds"), (row(n, w) for n, w in ways(False).items()))
    try:
        control = read_cues(str(folder / "ground_control_points.json"), clip)
        print("\nGeoreference:", georeference(control, T, camera))
    except GeometryError as error:
        print(f"\nGeoreference: {error}")


# -- runs -------------------------------------------------------------------------------------------------------------


def run_of(name: str, data: Path, runs: Path) -> Run:
    """A finished run of the clip: the one that is there, or a new one through the command line."""
    folder, run = data / name, runs / name
    if (run / "run.json").is_file() and Run.open(run).finished:
        return Run.open(run)
    options = [option.format(folder) for option in CLIPS[name]]
    command = [sys.executable, "-m", "marigold3d.cli", "video", str(folder / "clip.mp4"), *options]
    subprocess.run([*command, "--no-refine", "--no-fuse", "-q", "-o", str(run)], check=True)
    return Run.open(run)


def main() -> None:
    default = os.environ.get("MARIGOLD3D_DATA") or ROOT.parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the recordings")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="keep the runs here, and use those that are here")
    parser.add_argument("--only", nargs="+", choices=[*CLIPS, "berlin"], default=[*CLIPS, "berlin"])
    parser.add_argument("--sweep", action="store_true", help="settings of the joint solve instead")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="marigold3d-") as scratch:
        for name in args.only:
            if not (args.data / (name if name in CLIPS else "opensfm_berlin")).is_dir():
                print(f"\n{name}: no such recording; pass --data or set MARIGOLD3D_DATA")
            elif name == "berlin":
                if not args.sweep:
                    berlin(args.data)
            else:
                run = run_of(name, args.data.resolve(), (args.runs or Path(scratch)).absolute())
                recording = Recording.of(run, args.data / name)
                (sweep_table if args.sweep else clip_tables)(name, recording)


if __name__ == "__main__":
    main()
