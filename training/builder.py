"""Collecting solids into a scene: places, palettes and materials."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training import solids, textures
from training.scenes import Scene
from training.tracer import Placed

Rng = np.random.Generator
Faces = tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """Where an assembly stands: its origin in the world (y down, metres) and its turn about the vertical, radians."""

    x: float
    y: float
    z: float
    yaw: float = 0.0

    @property
    def rotation(self) -> NDArray[np.float64]:
        """(3, 3) R_world_place."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])

    def at(self, right: float, up: float, forward: float, turn: float = 0.0) -> "Place":
        """A place given in this one's axes, up against the world's y."""
        x, y, z = np.array([self.x, self.y, self.z]) + self.rotation @ (right, -up, forward)
        return Place(float(x), float(y), float(z), self.yaw + turn)


class Builder:
    """Gathers solids and materials; `build` freezes them into a `Scene`."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        self.kinds: list[int] = []
        self.centres: list[NDArray[np.float64]] = []
        self.halves: list[tuple[float, float, float]] = []
        self.rotations: list[NDArray[np.float64]] = []
        self.faces: list[Faces] = []
        self.materials: list[NDArray[np.float32]] = []
        self.meshes: list[Placed] = []

    def add(
        self,
        kind: int,
        place: Place,
        half: tuple[float, float, float],
        faces: Faces,
        tilt: NDArray[np.float64] | None = None,
    ) -> None:
        """A solid whose CENTRE is at `place`; half sizes along its own right, vertical and forward axes."""
        self.kinds.append(kind)
        self.centres.append(np.array([place.x, place.y, place.z]))
        self.halves.append(half)
        self.rotations.append(place.rotation if tilt is None else place.rotation @ tilt)
        self.faces.append(faces)

    def box(
        self,
        place: Place,
        width: float,
        height: float,
        depth: float,
        faces: Faces,
        tilt: NDArray[np.float64] | None = None,
    ) -> None:
        """A box standing ON `place`; full sizes."""
        self.add(solids.BOX, place.at(0, height / 2, 0), (width / 2, height / 2, depth / 2), faces, tilt)

    def cylinder(self, place: Place, radius: float, height: float, faces: Faces) -> None:
        """An upright cylinder standing on `place`."""
        self.add(solids.CYLINDER, place.at(0, height / 2, 0), (radius, height / 2, radius), faces)

    def ellipsoid(self, place: Place, half: tuple[float, float, float], faces: Faces) -> None:
        """An ellipsoid standing on `place`."""
        self.add(solids.ELLIPSOID, place.at(0, half[1], 0), half, faces)

    def keep(self, row: NDArray[np.float32]) -> int:
        """Store a material; returns its index."""
        self.materials.append(row)
        return len(self.materials) - 1

    def paint(
        self,
        families: tuple[int, ...] | None = None,
        scale_m: tuple[float, float] = (0.05, 0.8),
        glow: float = 0.0,
        value: tuple[float, float] = (0.05, 0.85),
        muted: bool = False,
    ) -> int:
        """A random material; `value` bounds its brightness, `muted` keeps most of the strong colours away."""
        rng = self.rng
        every = (
            textures.FLAT,
            textures.FLAT,
            textures.FLAT,
            textures.CHECKER,
            textures.STRIPES,
            textures.BRICKS,
            textures.MARBLE,
            textures.MARBLE,
            textures.WOOD,
            textures.SPECKLE,
            textures.PICTURE,
        )
        first = color(rng, value)
        if muted and rng.random() < 0.85:
            first = first.mean() + (first - first.mean()) * rng.uniform(0.0, 0.4)
        # Neighbouring tones are as common as contrasts.
        near, least, most = (0.9, 0.75, 1.3) if muted else (0.6, 0.5, 1.6)
        second = np.clip(first * rng.uniform(least, most), 0, 1) if rng.random() < near else color(rng, value)
        return self.keep(
            textures.material(
                int(rng.choice(families or every)),
                first,
                second,
                scale_m=float(np.exp(rng.uniform(*np.log(scale_m)))),
                joint=float(rng.uniform(0.02, 0.12)),
                offset=(float(rng.random()), float(rng.random())),
                grain=float(rng.choice([0.05, 0.1, 0.3] if muted else [0.1, 0.3, 0.8]) * rng.random()),
                grain_scale_m=float(np.exp(rng.uniform(-1.5, 1.5))),
                gloss=float(rng.random() * rng.choice([0.0, 0.5, 0.5, 1.0], p=[0.6, 0.2, 0.12, 0.08])),
                angle_rad=float(rng.choice([0.0, 0.0, np.pi / 2, rng.uniform(0, np.pi)])),
                glow=glow,
            )
        )

    def plain(self, value: tuple[float, float] = (0.03, 0.85)) -> Faces:
        """One quiet material on all faces: furniture is seldom patterned."""
        quiet = (textures.FLAT, textures.FLAT, textures.WOOD, textures.MARBLE)
        return (self.paint(quiet, value=value),) * 3

    def patterned(self, scale_m: tuple[float, float] = (0.05, 0.8)) -> Faces:
        """One random material on all faces."""
        return (self.paint(scale_m=scale_m),) * 3

    def build(
        self, light: tuple[float, float, float, float], sky: NDArray[np.float64], fog_per_m: float, ambient: float
    ) -> Scene:
        """Freeze."""
        return Scene(
            np.array(self.kinds),
            np.array(self.centres, np.float32),
            np.array(self.halves, np.float32),
            np.array(self.rotations, np.float32),
            np.array(self.faces),
            np.array(self.materials, np.float32),
            np.array(light, np.float32),
            np.asarray(sky, np.float32),
            fog_per_m,
            ambient,
            tuple(self.meshes),
        )


def color(rng: Rng, value: tuple[float, float] = (0.05, 0.85)) -> NDArray[np.float64]:
    """Linear RGB of everyday things: mostly whites, greys, browns, sometimes saturated."""
    brightness = rng.uniform(*np.sqrt(value)) ** 2
    kind = rng.random()
    if kind < 0.5:
        tint = 1.0 + 0.12 * rng.standard_normal() * np.array([1.0, 0.2, -1.0])
    elif kind < 0.8:
        tint = np.array([1.0, rng.uniform(0.5, 0.8), rng.uniform(0.2, 0.5)])
    else:
        tint = rng.uniform(0.05, 1.0, 3)
    return np.clip(brightness * tint / np.max(tint), 0.0, 1.0)
