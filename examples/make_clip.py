"""Render `clip.mp4`, a hand-held walk through a furnished room, and its exact truth beside it, in `clip_truth/`.

The scene is built from the solids that also train the embedded network. Truth: camera.json (pinhole, pixels),
trajectory.txt (TUM: timestamp, camera position in metres, quaternion x y z w; camera to world) and depth/NNNNNN.png (z
in millimetres, every 8th frame).

    python examples/make_clip.py [FOLDER]
"""

import json
import sys
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation
from torch.nn import functional

from training import furniture, scenes, solids, textures
from training.builder import Builder, Faces, Place
from training.layouts import look

WIDTH, HEIGHT, FOV_X_DEG = 480, 360, 66.0
SEED = 3  # of the colours and the small things
FRAMES, FPS, DEPTH_EVERY = 96, 24, 8
HALF_X, HALF_Z, CEILING = 2.7, 2.9, 2.6
F_PX = WIDTH / 2 / np.tan(np.radians(FOV_X_DEG) / 2)


def surface(
    b: Builder, family: int, a: tuple[float, ...], c: tuple[float, ...], scale_m: float, **more: float
) -> Faces:
    """One material on all faces, colours in sRGB 0..1."""
    linear = [np.asarray(color) ** 2.2 for color in (a, c)]
    return (
        b.keep(textures.material(family, *linear, scale_m=scale_m, **{"grain": 0.5, "grain_scale_m": 0.6, **more})),
    ) * 3


def living_room() -> scenes.Scene:
    """Shelves, a table with things on it, a sofa, a counter;
    every surface has texture that a feature tracker can hold on to.
    """
    b = Builder(np.random.default_rng(SEED))
    plaster = surface(b, textures.SPECKLE, (0.88, 0.85, 0.78), (0.80, 0.76, 0.68), 0.5, grain=0.3)
    brick = surface(b, textures.BRICKS, (0.62, 0.36, 0.28), (0.80, 0.76, 0.70), 0.22, joint=0.07)
    boards = surface(b, textures.WOOD, (0.60, 0.42, 0.26), (0.44, 0.29, 0.17), 0.24, gloss=0.1)
    oak = surface(b, textures.WOOD, (0.72, 0.54, 0.34), (0.60, 0.43, 0.26), 0.4)
    cloth = surface(b, textures.CHECKER, (0.25, 0.38, 0.45), (0.32, 0.46, 0.52), 0.12)
    rug = surface(b, textures.MARBLE, (0.24, 0.36, 0.46), (0.86, 0.78, 0.62), 0.25)
    hem = surface(b, textures.CHECKER, (0.15, 0.18, 0.32), (0.88, 0.80, 0.62), 0.07)
    b.add(solids.ROOM, Place(0, -CEILING / 2, 0), (HALF_X, CEILING / 2, HALF_Z), (plaster[0], boards[0], plaster[0]))
    b.box(Place(0, 0, HALF_Z), 2 * HALF_X, CEILING, 0.1, brick)
    b.box(Place(-0.1, 0, 0.5), 2.8, 0.010, 2.1, hem)
    b.box(Place(-0.1, 0, 0.5), 2.5, 0.014, 1.8, rug)
    dining(b, Place(0.15, 0, 0.75, 0.25), oak)
    settee(b, Place(-HALF_X + 0.5, 0, 0.7, -np.pi / 2), cloth)
    furniture.shelf(b, Place(-1.0, 0, HALF_Z - 0.25))
    furniture.shelf(b, Place(0.35, 0, HALF_Z - 0.25))
    furniture.counter(b, Place(HALF_X - 0.34, 0, 0.6, np.pi / 2))
    furniture.plant(b, Place(-2.2, 0, 2.3))
    furniture.chair(b, Place(0.9, 0, 1.5, 0.6))
    furniture.chair(b, Place(-0.85, 0, 0.25, 1.9))
    for x, up, hue in ((1.55, 1.35, (0.2, 0.4, 0.7)), (2.15, 1.5, (0.7, 0.5, 0.2)), (-1.95, 1.45, (0.3, 0.6, 0.4))):
        picture = surface(b, textures.PICTURE, (0.1, 0.1, 0.12), (*hue[:2], 0.9 * hue[2] + 0.1), 0.15)
        b.box(Place(x, -up, HALF_Z - 0.06), 0.5, 0.62, 0.03, oak)
        b.box(Place(x, -up - 0.04, HALF_Z - 0.08), 0.42, 0.54, 0.03, picture)
    return b.build((-0.4, -2.35, -0.6, 1.0), np.full((2, 3), 0.2), 0.0, 0.45)


def dining(b: Builder, place: Place, wood: Faces) -> None:
    """A table, and on it books, a bowl of fruit, a mug, a carton."""
    for sx, sz in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        b.box(place.at(0.55 * sx, 0, 0.33 * sz), 0.06, 0.72, 0.06, wood)
    b.box(place.at(0, 0.72, 0), 1.3, 0.04, 0.8, wood)
    top = place.at(0, 0.76, 0)
    for up, turn, a, c in ((0.0, 0.2, (0.7, 0.2, 0.2), (0.9, 0.8, 0.6)), (0.04, 0.6, (0.2, 0.3, 0.6), (0.8, 0.8, 0.8))):
        b.box(top.at(-0.35, up, -0.1, turn), 0.26, 0.04, 0.19, surface(b, textures.PICTURE, a, c, 0.06))
    b.cylinder(
        top.at(0.08, 0, 0.08), 0.14, 0.07, surface(b, textures.STRIPES, (0.85, 0.85, 0.8), (0.25, 0.35, 0.6), 0.06)
    )
    for x, z, color in ((0.02, 0.05, (0.85, 0.3, 0.15)), (0.13, 0.1, (0.9, 0.65, 0.1)), (0.09, 0.0, (0.55, 0.7, 0.2))):
        b.ellipsoid(top.at(x, 0.06, z), (0.045,) * 3, surface(b, textures.MARBLE, color, (0.9, 0.8, 0.4), 0.05))
    b.cylinder(top.at(0.4, 0, -0.2), 0.045, 0.1, surface(b, textures.CHECKER, (0.9, 0.88, 0.8), (0.6, 0.25, 0.2), 0.04))
    b.box(
        top.at(0.42, 0, 0.2, 0.5),
        0.22,
        0.26,
        0.16,
        surface(b, textures.BRICKS, (0.75, 0.58, 0.38), (0.5, 0.36, 0.2), 0.12),
    )


def settee(b: Builder, place: Place, cloth: Faces) -> None:
    """A sofa with cushions, its back at +forward."""
    b.box(place, 2.0, 0.42, 0.9, cloth)
    b.box(place.at(0, 0.3, 0.36), 2.0, 0.55, 0.2, cloth)
    for right, color in ((-0.6, (0.85, 0.6, 0.2)), (0.1, (0.7, 0.25, 0.25)), (0.65, (0.9, 0.85, 0.7))):
        b.ellipsoid(
            place.at(right, 0.4, 0.1), (0.24, 0.2, 0.12), surface(b, textures.STRIPES, color, (0.95, 0.9, 0.8), 0.07)
        )


def hand_held_path() -> NDArray[np.float64]:
    """(FRAMES, 4, 4) camera to world: an arc of some 2 m past the table, with the sway of a walking person."""
    share = np.linspace(0, 1, FRAMES)
    eased = share * share * (3 - 2 * share)
    sway = np.stack(
        [np.sin(2 * np.pi * (rate * share + phase)) for rate, phase in ((3.1, 0.0), (5.3, 0.3), (4.2, 0.7))], 1
    )
    poses = []
    for s, (a, b, c) in zip(eased, sway, strict=True):
        position = np.array([-1.15 + 2.0 * s + 0.012 * a, -1.5 - 0.1 * s + 0.015 * b, -2.35 + 0.55 * s + 0.01 * c])
        towards = np.array([-0.05, -0.85, 1.3]) - position
        yaw = np.arctan2(towards[0], towards[2]) * 0.85 + 0.006 * b
        pitch = np.arctan2(towards[1], np.hypot(towards[0], towards[2])) + 0.006 * a
        poses.append(look(position, yaw, pitch, 0.01 * c))
    return np.stack(poses)


def photograph(scene: scenes.Scene, pose: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(H, W, 3) sRGB: four rays a pixel, averaged as light, with a little sensor noise."""
    K = np.array([[2 * F_PX, 0, WIDTH], [0, 2 * F_PX, HEIGHT], [0, 0, 1]])
    linear, _ = scenes.cast(scene, pose, K, 2 * WIDTH, 2 * HEIGHT)
    rgb = scenes.develop(functional.avg_pool2d(linear[None], 2)[0], exposure=1.85)
    noise = 0.004 * torch.randn(rgb.shape, generator=torch.Generator().manual_seed(int(1e6 * abs(pose[0, 3]))))
    return ((rgb + noise).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def write_truth(folder: Path, scene: scenes.Scene, poses: NDArray[np.float64]) -> None:
    """camera.json, trajectory.txt, depth/NNNNNN.png."""
    (folder / "depth").mkdir(parents=True, exist_ok=True)
    camera = {"fx": F_PX, "fy": F_PX, "cx": WIDTH / 2, "cy": HEIGHT / 2, "width": WIDTH, "height": HEIGHT}
    (folder / "camera.json").write_text(json.dumps(camera, indent=1) + "\n")
    quaternions = Rotation.from_matrix(poses[:, :3, :3]).as_quat()
    rows = np.column_stack((np.arange(FRAMES) / FPS, poses[:, :3, 3], quaternions))
    np.savetxt(
        folder / "trajectory.txt", rows, fmt="%.7f", header="timestamp tx ty tz qx qy qz qw (camera to world, metres)"
    )
    K = np.array([[F_PX, 0, WIDTH / 2], [0, F_PX, HEIGHT / 2], [0, 0, 1]])
    for index in range(0, FRAMES, DEPTH_EVERY):
        _, depth = scenes.cast(scene, poses[index], K, WIDTH, HEIGHT)
        millimetres = (depth[0] * 1000).round().numpy().astype(np.uint16)
        Image.fromarray(millimetres).save(folder / "depth" / f"{index:06d}.png", optimize=True)


def main(folder: Path = Path(__file__).parent) -> None:
    """Render the clip and its truth into `folder`."""
    scene, poses = living_room(), hand_held_path()
    write_truth(folder / "clip_truth", scene, poses)
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for pose in poses:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(photograph(scene, pose))))
        container.mux(stream.encode())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
