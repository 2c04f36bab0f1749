"""Placing the models of an asset library where such things stand, hang or lie."""

import re
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from training.assets import Entry, Library
from training.builder import Builder, Place
from training.tracer import Placed

INDOORS = ("Office", "Bedroom", "Living room", "Kitchen", "Bathroom", "Miscellaneous", "Lights")
MOST_OVERLAP_M = 0.02
MOST_IN_A_SCENE = 60


class Furnisher:
    """Puts models into a builder's scene; keeps those on the floor apart."""

    def __init__(self, builder: Builder, library: Library) -> None:
        self.b, self.library = builder, library
        self.taken: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []  # boxes on the floor, (x, z) corners
        # One style a scene: how often things are repainted.
        self.repaint = float(builder.rng.choice([0.0, 0.15, 0.4]))

    def group(self, name: str) -> list[Entry]:
        """Entries by where they belong: table, chair, sofa, wall, floor, small, hung, person, vehicle, outdoors."""
        return self._groups[name]

    @cached_property
    def _groups(self) -> dict[str, list[Entry]]:
        groups: dict[str, list[Entry]] = {name: [] for name in GROUPS}
        for entry in self.library.entries:
            for name in groups_of(entry):
                groups[name].append(entry)
        return groups

    def pick(self, name: str) -> Entry | None:
        """A random entry of a group."""
        entries = self.group(name)
        return entries[int(self.b.rng.integers(len(entries)))] if entries else None

    def put(self, entry: Entry, place: Place, on_floor: bool = True, stretch: float = 0.1) -> bool:
        """Stand a model on `place`; False where something stands already or the scene is full."""
        if len(self.b.meshes) >= MOST_IN_A_SCENE:
            return False
        rng = self.b.rng
        asset = self.library.load(entry)
        scale = np.exp(rng.normal(0, stretch / 2) + rng.normal(0, stretch / 2, 3))
        origin = np.array([place.x, place.y, place.z])
        rows, tint = self._colors(len(asset.colors))
        mesh = Placed(asset, place.rotation, origin, scale, rows, tint)
        if on_floor:
            low, high = (corner[[0, 2]] for corner in mesh.bounds())
            if any(
                (low < other[1] - MOST_OVERLAP_M).all() and (high > other[0] + MOST_OVERLAP_M).all()
                for other in self.taken
            ):
                return False
            self.taken.append((low, high))
        self.b.meshes.append(mesh)
        return True

    def _colors(self, parts: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Material rows and tints: the model's own colours a little off, or some or all parts painted anew."""
        rng = self.b.rng
        rows = np.full(parts, -1)
        if rng.random() < self.repaint:
            few = [self.b.paint(scale_m=(0.05, 0.6)) for _ in range(min(parts, 3))]
            share = rng.choice([0.5, 1.0])
            rows = np.where(rng.random(parts) < share, rng.choice(few, parts), -1)
        tint = np.exp(rng.normal(0, 0.25)) * np.exp(rng.normal(0, 0.08, (parts, 3)))
        return rows, tint.astype(np.float32)

    def against_wall(self, place: Place, height: float) -> None:
        """Something on the floor or hung, its back 0.35 m in front of the wall, which is forward of `place`."""
        rng = self.b.rng
        if rng.random() < 0.9 and (entry := self.pick("wall")) is not None and entry.height_m < height:
            spot = place.at(0, 0, 0.33 - entry.depth_m / 2)
            if self.put(entry, spot):
                self.on_top(spot, entry, int(rng.integers(0, 4)))
        if rng.random() < 0.4 and (entry := self.pick("hung")) is not None:
            up = min(entry.elevation_m, height - entry.height_m)
            self.put(entry, place.at(rng.normal(0, 0.2), up, 0.33 - entry.depth_m / 2), on_floor=False)

    def on_top(self, place: Place, below: Entry, count: int) -> None:
        """Small things on what stands at `place`."""
        rng = self.b.rng
        if not 0.25 < below.drop_on_top_m < 1.3:
            return
        for _ in range(count):
            if (entry := self.pick("small")) is not None:
                right, forward = rng.uniform(-0.4, 0.4, 2) * (below.width_m, below.depth_m)
                self.put(entry, place.at(right, below.drop_on_top_m, forward, rng.uniform(0, 6.28)), on_floor=False)

    def free_standing(self, place: Place) -> None:
        """A table with its chairs, a sofa before a low table, or a single thing, in the open."""
        rng = self.b.rng
        kind = rng.random()
        if kind < 0.45:
            self.table(place)
        elif kind < 0.6 and (entry := self.pick("sofa")) is not None:
            if self.put(entry, place) and rng.random() < 0.6:
                self.table(place.at(0, 0, -1.2), chairs=False)
        else:
            name = "person" if kind < 0.7 else "chair" if kind < 0.82 else "floor"
            if (entry := self.pick(name)) is not None:
                self.put(entry, place)

    def table(self, place: Place, chairs: bool = True) -> None:
        """A table, things on it, chairs of one kind around it."""
        rng = self.b.rng
        entry = self.pick("table")
        if entry is None or not self.put(entry, place):
            return
        self.on_top(place, entry, int(rng.integers(1, 9)))
        chair = self.pick("chair")
        if not chairs or chair is None or rng.random() < 0.2:
            return
        self.taken.pop()  # chairs reach under the table
        for side in (-1, 1):
            for right in np.arange(-entry.width_m / 2 + 0.35, entry.width_m / 2 - 0.2, rng.uniform(0.55, 0.8)):
                if rng.random() < 0.75:
                    away = side * (entry.depth_m / 2 + rng.uniform(0.0, 0.4))
                    turn = rng.normal(0, 0.2) + (0.0 if side > 0 else np.pi)
                    self.put(chair, place.at(right, 0, away, turn), on_floor=False, stretch=0.0)

    def outdoors(self, place: Place) -> None:
        """A plant, a bench, a person, a parked thing."""
        kind = self.b.rng.random()
        name = "person" if kind < 0.25 else "vehicle" if kind < 0.4 else "outdoors"
        if (entry := self.pick(name)) is not None:
            self.put(entry, place.at(0, entry.elevation_m if name == "outdoors" else 0.0, 0))


GROUPS = ("table", "chair", "sofa", "wall", "floor", "small", "hung", "person", "vehicle", "outdoors")


def groups_of(entry: Entry) -> list[str]:
    """The groups of an entry, from its name, category and size."""
    name, wide, tall = entry.name.lower(), max(entry.width_m, entry.depth_m), entry.height_m
    if entry.category in ("Characters", "Vehicles"):
        return ["person" if entry.category == "Characters" else "vehicle"]
    if entry.category == "Exterior":
        flat = tall < 0.2 or "pool" in name
        return [] if flat else (["outdoors", "chair"] if re.search(r"chair", name) and tall > 0.6 else ["outdoors"])
    if entry.category not in INDOORS or wide > 3.2:
        return []
    if entry.elevation_m > 0.05:
        return ["hung"] if tall > 0.1 and entry.elevation_m < 2.0 else []
    if re.search(r"\b(table|desk|island)\b", name) and 0.35 < tall < 1.1 and wide > 0.5:
        return ["table", "wall"]
    if re.search(r"chair|stool|\bseat\b|ottoman", name) and 0.35 < tall < 1.3:
        return ["chair"]
    if re.search(r"sofa|couch", name):
        return ["sofa", "wall"]
    if wide < 0.6 and 0.03 < tall < 0.6:
        return ["small", "floor"] if tall > 0.3 else ["small"]
    if tall > 0.35 and wide > 0.35:
        return ["wall", "floor"]
    return []
