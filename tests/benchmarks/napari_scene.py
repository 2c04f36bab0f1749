"""How long napari takes for what people do in a scene: median over repetitions, drawing included, beside plain napari.

    xvfb-run -a -s "-screen 0 1400x1000x24" python tests/benchmarks/napari_scene.py RUN

The peer is what a script without level of detail would do: every point in one layer, replaced whole.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from marigold3d.progress import CloudPreview, FramePreview, Progress
from marigold3d.store import Run

REPEATED = 8


def timed(name: str, act: Callable[[int], object], repeated: int = REPEATED) -> float:
    """Median seconds of `act(i)` itself, and until the events it caused are handled: prints and returns the former."""
    from qtpy.QtWidgets import QApplication

    own, whole = [], []
    for i in range(repeated):
        QApplication.processEvents()
        began = time.perf_counter()
        act(i)
        own.append(time.perf_counter() - began)
        QApplication.processEvents()
        whole.append(time.perf_counter() - began)
    print(f"| {name} | {np.median(own):.3f} | {np.median(whole):.3f} |", flush=True)
    return float(np.median(own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--points", type=int, nargs="+", default=[0, 2_000_000], help="cloud enlarged to so many")
    arguments = parser.parse_args()
    run = Run.open(arguments.run)
    print("| what | s | s with drawing |\n|---|---|---|")
    for count in arguments.points:
        measure(run, count)


def measure(run: Run, count: int) -> None:
    import napari
    from marigold3d.napari_plugin._layers import add_layers, camera_of, run_layers, show_frames, show_scene
    from marigold3d.napari_plugin._preview import Preview
    from marigold3d.napari_plugin._ruler import Ruler
    from marigold3d.napari_plugin._scene import Filter, SceneView

    cloud = run.cloud()
    if count:
        cloud = enlarged(cloud, count)
        run.cloud = lambda: cloud  # type: ignore[method-assign]
    print(f"| **{len(cloud):,} points in the file** | | |")
    viewer = napari.Viewer()
    timed("open the run", lambda _: add_layers(viewer, run_layers(run, scene=True)), 1)
    show_scene(viewer)
    scenes = []
    timed("make it explorable", lambda _: scenes.append(SceneView(viewer, run)), 1)
    scene, frames = scenes[0], run.frame_indices
    timed("step in the scene", lambda i: scene.look_at(frames[i * 7 % len(frames)]))
    timed("darken what a frame does not see, once the slider rests", lambda _: scene.highlight(), 3)
    scene.highlight(False)
    timed("colour by another property", lambda i: scene.color_by(("depth", "sigma", "rgb")[i % 3]), 3)
    sigmas = np.quantile(cloud.sigma, np.linspace(1, 0.5, REPEATED))
    timed("move the sigma slider", lambda i: scene.keep(Filter(float(sigmas[i]), 1)))
    scene.keep(Filter())

    def look_closer(i: int) -> None:
        camera = camera_of(viewer)
        camera.center = tuple(cloud.points[i * len(cloud) // REPEATED][::-1].tolist())
        camera.zoom = 2000 / (0.2 * scene.extent)
        scene.refine()

    timed("move the view, once at rest", look_closer, 3)
    ruler = Ruler(viewer, scene)
    timed("click in the cloud", lambda i: ruler.mark_point(cloud.points[i * len(cloud) // 10].astype(float)))
    show_frames(viewer)
    timed("step in the frames", lambda i: viewer.dims.set_point(0, frames[i * 7 % len(frames)]))
    preview = Preview(viewer)
    rng = np.random.default_rng(0)
    depth = [rng.random((480, 640), np.float32) for _ in range(REPEATED)]
    first = [Progress("depth", 1, 200, (FramePreview(0, depth[0]),))]
    preview.update(first[0])
    timed("a depth map arrives", lambda i: preview.update(Progress("depth", i + 1, 200, (FramePreview(i, depth[i]),))))
    views = [CloudPreview(rng.random((2000, 3), np.float32), np.full((2000, 3), 9, np.uint8)) for _ in range(40)]
    preview.update(Progress("fuse", 1, 60, tuple(views[:15])))
    timed("a fused view arrives", lambda i: preview.update(Progress("fuse", i + 2, 60, (views[i],))), 4)
    preview.remove()
    viewer.layers.clear()

    colors = np.column_stack([cloud.colors / 255, np.ones(len(cloud))])
    style = {"border_width": 0, "antialiasing": 0, "size": 0.01}
    points = cloud.points[:, ::-1]
    viewer.dims.ndisplay = 3
    timed("plain napari: open the cloud", lambda _: viewer.add_points(points, face_color=colors, **style), 1)
    layer = viewer.layers[-1]
    timed("plain napari: replace the cloud", lambda i: setattr(layer, "data", points + 1e-4 * i), 2)
    viewer.close()


def enlarged(cloud, count: int):
    """The cloud with copies of its points beside them, `count` in all."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(cloud), count)
    bigger = cloud.select(rows)
    bigger.points[:] += rng.normal(0, 0.002, bigger.points.shape).astype(np.float32)
    return bigger


if __name__ == "__main__":
    main()
