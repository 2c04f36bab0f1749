"""Assemblies of solids that stand on a `Place`, facing its -forward side (their back is at +forward, towards the
wall).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from training import solids, textures
from training.builder import Builder, Place, Rng


def clutter(b: Builder, place: Place, width: float, depth: float, count: int) -> None:
    """Small things standing on a surface of width x depth metres around `place`."""
    rng = b.rng
    for _ in range(count):
        spot = place.at(rng.uniform(-0.5, 0.5) * width, 0, rng.uniform(-0.5, 0.5) * depth, rng.uniform(0, 6.28))
        size = np.exp(rng.uniform(np.log(0.03), np.log(0.16), 3))
        kind = rng.random()
        if kind < 0.6:
            b.box(spot, 2 * size[0], 2 * size[1] * rng.choice([0.3, 1.0]), 2 * size[2], b.patterned((0.02, 0.2)))
        elif kind < 0.85:
            b.cylinder(spot, 0.6 * size[0], 2 * size[1], b.patterned((0.02, 0.2)))
        else:
            b.ellipsoid(spot, (size[0], size[0], size[0]), b.patterned((0.02, 0.2)))


def table(b: Builder, place: Place) -> None:
    """Four legs or two side panels, a top, things on it."""
    rng = b.rng
    width, depth = rng.uniform(0.7, 2.2), rng.uniform(0.5, 1.0)
    height = rng.choice([0.45, 0.74, 0.74, 0.9]) + rng.uniform(-0.05, 0.05)
    leg, top = b.plain(), (b.paint(scale_m=(0.1, 0.6)),) * 3
    if rng.random() < 0.7:
        for sx, sz in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            b.box(place.at(sx * (width / 2 - 0.04), 0, sz * (depth / 2 - 0.04)), 0.05, height, 0.05, leg)
    else:
        for sx in (-1, 1):
            b.box(place.at(sx * (width / 2 - 0.05), 0, 0), 0.04, height, depth * 0.9, leg)
    b.box(place.at(0, height, 0), width, rng.uniform(0.02, 0.06), depth, top)
    surface = place.at(0, height + 0.04, 0)
    clutter(b, surface, width, depth, int(rng.integers(2, 8)))
    if rng.random() < 0.6:
        monitor(b, surface.at(rng.uniform(-0.3, 0.3) * width, 0, 0.2 * depth, rng.normal(0, 0.3)))


def monitor(b: Builder, place: Place) -> None:
    """A thin dark panel on a foot, a keyboard in front."""
    rng = b.rng
    width = rng.uniform(0.4, 0.7)
    dark = b.plain((0.01, 0.06))
    screen = b.keep(textures.material(textures.PICTURE, np.full(3, 0.01), rng.random(3), 0.2, glow=float(rng.random())))
    b.box(place, 0.2, 0.02, 0.15, dark)
    b.box(place.at(0, 0, 0.03), 0.06, 0.2, 0.03, dark)
    b.box(place.at(0, 0.12, 0), width, width * 0.6, 0.04, (screen if rng.random() < 0.6 else dark[0], dark[0], dark[0]))
    b.box(place.at(0, 0, -0.25), 0.42, 0.025, 0.14, (b.paint((textures.BRICKS,), (0.02, 0.03)),) * 3)


def chair(b: Builder, place: Place) -> None:
    """A seat and a back on legs or on one column."""
    rng = b.rng
    seat = rng.uniform(0.42, 0.5)
    faces, legs = b.plain(), b.plain((0.01, 0.5))
    if rng.random() < 0.6:
        for sx, sz in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            b.box(place.at(sx * 0.2, 0, sz * 0.2), 0.04, seat, 0.04, legs)
    else:
        b.cylinder(place, 0.28, 0.06, legs)
        b.cylinder(place, 0.035, seat, legs)
    b.box(place.at(0, seat, 0), 0.46, 0.07, 0.46, faces)
    b.box(place.at(0, seat + rng.uniform(0.0, 0.2), 0.22), 0.44, rng.uniform(0.3, 0.6), 0.05, faces)


def shelf(b: Builder, place: Place) -> None:
    """Boards between side panels, rows of books and things."""
    rng = b.rng
    width, depth, height = rng.uniform(0.6, 1.6), rng.uniform(0.25, 0.4), rng.uniform(0.8, 2.2)
    faces = b.plain()
    for sx in (-1, 1):
        b.box(place.at(sx * width / 2, 0, 0), 0.03, height, depth, faces)
    b.box(place.at(0, 0, depth / 2), width, height, 0.02, faces)
    levels = int(height / rng.uniform(0.3, 0.45))
    for level in range(levels + 1):
        board = place.at(0, level * (height - 0.03) / levels, 0)
        b.box(board, width, 0.03, depth, faces)
        if level < levels and rng.random() < 0.7:
            share = rng.uniform(0.3, 0.95)
            books = (b.paint((textures.STRIPES, textures.PICTURE, textures.MARBLE), (0.05, 0.2)),) * 3
            spines = b.keep(textures.material(textures.BARS, rng.random(3) * 0.2, rng.random(3), rng.uniform(0.2, 0.5)))
            b.box(
                board.at((share - 1) / 2 * width * rng.choice([-1, 1]), 0.03, 0.03),
                width * share,
                rng.uniform(0.15, 0.27),
                depth * rng.uniform(0.5, 0.8),
                (spines, *books[1:]),
            )
        elif level < levels:
            clutter(b, board.at(0, 0.03, 0), width * 0.8, depth * 0.5, 2)


def counter(b: Builder, place: Place) -> None:
    """A kitchen run: base cabinets under a slab, wall cabinets above, things on the slab."""
    rng = b.rng
    width, depth = rng.uniform(1.2, 3.0), 0.6
    doors = (b.paint((textures.BRICKS, textures.FLAT), (0.4, 0.6)),) * 3
    b.box(place.at(0, 0.0, 0.05), width, 0.86, depth - 0.08, doors)
    b.box(place.at(0, 0.86, 0), width, 0.04, depth, b.plain())
    for right in np.arange(-width / 2 + 0.3, width / 2, 0.6):
        b.box(place.at(right, 0.72, -depth / 2 + 0.06), 0.12, 0.02, 0.03, b.plain((0.3, 0.9)))
    if rng.random() < 0.7:
        b.box(place.at(0, rng.uniform(1.35, 1.5), 0.12), width, 0.7, 0.34, doors if rng.random() < 0.6 else b.plain())
    if rng.random() < 0.4:
        b.box(place.at(width / 2 + 0.32, 0, 0), 0.62, rng.uniform(1.4, 2.0), 0.62, b.plain((0.3, 0.9)))
    clutter(b, place.at(0, 0.9, 0), width * 0.9, depth * 0.6, int(rng.integers(3, 10)))


def cabinet(b: Builder, place: Place) -> None:
    """A closed block: wardrobe, drawers, refrigerator, machine."""
    rng = b.rng
    width, height, depth = rng.uniform(0.4, 1.5), rng.uniform(0.5, 2.1), rng.uniform(0.35, 0.7)
    front = b.paint((textures.BRICKS, textures.FLAT, textures.WOOD), (0.25, 0.7))
    b.box(place, width, height, depth, (front, b.paint(), front))
    if height < 1.3:
        clutter(b, place.at(0, height, 0), width * 0.8, depth * 0.7, int(rng.integers(0, 5)))


def sofa(b: Builder, place: Place) -> None:
    """Base, back, arms, cushions; or a bed when low and deep."""
    rng = b.rng
    faces = b.patterned((0.1, 0.5)) if rng.random() < 0.4 else b.plain()
    width, depth = rng.uniform(0.9, 2.2), rng.uniform(0.8, 1.1)
    b.box(place, width, 0.42, depth, faces)
    b.box(place.at(0, 0.3, depth / 2 - 0.1), width, rng.uniform(0.4, 0.6), 0.22, faces)
    for sx in (-1, 1):
        b.box(place.at(sx * width / 2, 0, 0), 0.2, 0.62, depth, faces)
    for _ in range(int(rng.integers(0, 4))):
        b.ellipsoid(place.at(rng.uniform(-0.4, 0.4) * width, 0.38, 0.15), (0.22, 0.17, 0.12), b.patterned())


def bed(b: Builder, place: Place) -> None:
    """Mattress, headboard, pillows."""
    rng = b.rng
    width = rng.uniform(0.9, 1.8)
    b.box(place, width, rng.uniform(0.35, 0.6), 2.0, (b.paint(), b.paint(scale_m=(0.1, 0.6)), 0))
    b.box(place.at(0, 0, 1.0), width, rng.uniform(0.7, 1.2), 0.06, b.plain())
    for right in (-0.25, 0.25):
        b.ellipsoid(place.at(right * width, 0.45, 0.75), (0.3, 0.1, 0.2), b.plain((0.3, 0.9)))


def plant(b: Builder, place: Place) -> None:
    """A pot and a ball of leaves, or a floor lamp of the same build."""
    rng = b.rng
    height = rng.uniform(0.3, 1.3)
    green = (b.paint((textures.SPECKLE, textures.MARBLE), (0.02, 0.1), value=(0.02, 0.3)),) * 3
    b.cylinder(place, rng.uniform(0.1, 0.22), 0.3, b.plain())
    b.cylinder(place, 0.03, height + 0.2, b.plain())
    for _ in range(int(rng.integers(1, 4))):
        half = (rng.uniform(0.12, 0.35), rng.uniform(0.12, 0.35), rng.uniform(0.12, 0.35))
        b.ellipsoid(place.at(rng.normal(0, 0.12), height + rng.uniform(-0.1, 0.3), rng.normal(0, 0.12)), half, green)


def leaves(b: Builder, place: Place) -> None:
    """A pot of long leaves: thin tilted blades, dark and bright against each other."""
    rng = b.rng
    tones = [(b.paint((textures.FLAT, textures.MARBLE), (0.02, 0.2), value=(0.01, 0.25)),) * 3 for _ in range(3)]
    b.cylinder(place, rng.uniform(0.12, 0.25), rng.uniform(0.2, 0.6), b.plain())
    height, spread = rng.uniform(0.5, 1.5), rng.uniform(0.15, 0.5)
    for _ in range(int(rng.integers(10, 26))):
        blade = (rng.uniform(0.015, 0.05), rng.uniform(0.15, 0.4), 0.004)
        at = place.at(rng.normal(0, spread), rng.uniform(0.4, 1.0) * height + 0.2, rng.normal(0, spread))
        b.add(solids.BOX, at, blade, tones[int(rng.integers(3))], random_rotation(rng))


def dining(b: Builder, place: Place) -> None:
    """A large table, square or round, chairs around it, things on it."""
    rng = b.rng
    width, depth = rng.uniform(1.2, 3.0), rng.uniform(0.8, 1.3)
    wood, height = (b.paint((textures.WOOD, textures.FLAT, textures.WOOD, textures.MARBLE), (0.1, 0.6)),) * 3, 0.74
    if rng.random() < 0.25:
        width = depth
        b.cylinder(place, 0.05, height, wood)
        b.cylinder(place.at(0, height, 0), width / 2, 0.03, wood)
    else:
        for sx, sz in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            b.box(place.at(sx * (width / 2 - 0.06), 0, sz * (depth / 2 - 0.06)), 0.07, height, 0.07, wood)
        b.box(place.at(0, height, 0), width, 0.04, depth, wood)
    clutter(b, place.at(0, height + 0.04, 0), 0.85 * width, 0.85 * depth, int(rng.integers(2, 9)))
    alike = int(rng.integers(2**31))  # chairs of one set are of one kind
    for right in np.arange(-width / 2 + 0.35, width / 2 - 0.2, rng.uniform(0.55, 0.8)):
        for side in (-1, 1):
            if rng.random() < 0.75:
                turn = rng.normal(0, 0.15) + (0.0 if side > 0 else np.pi)
                b.rng = np.random.default_rng(alike)
                chair(b, place.at(right, 0, side * (depth / 2 + rng.uniform(-0.1, 0.25)), turn))
                b.rng = rng


def wall_board(b: Builder, place: Place) -> None:
    """A single board on the wall with things on it."""
    rng = b.rng
    width, up = rng.uniform(0.6, 2.0), rng.uniform(0.9, 1.6)
    b.box(place.at(0, up, 0.2), width, 0.03, 0.25, b.plain())
    clutter(b, place.at(0, up + 0.03, 0.2), 0.9 * width, 0.15, int(rng.integers(3, 8)))


def radiator(b: Builder, place: Place) -> None:
    """Upright ribs under a window, or a curtain when tall."""
    rng = b.rng
    curtain = rng.random() < 0.5
    height, step, faces = (2.1, 0.12, b.patterned()) if curtain else (0.6, 0.08, b.plain((0.4, 0.95)))
    for right in np.arange(-0.5, 0.5, step):
        b.cylinder(place.at(right, 0.1, 0.28), 0.4 * step, height, faces)


def person(b: Builder, place: Place) -> None:
    """Legs, trunk, arms, head."""
    rng = b.rng
    scale = rng.uniform(0.8, 1.1)
    trousers, shirt, skin = b.plain(), b.patterned((0.05, 0.3)), b.plain((0.2, 0.6))
    for sx in (-1, 1):
        b.cylinder(place.at(0.1 * sx, 0, rng.normal(0, 0.06)), 0.08 * scale, 0.85 * scale, trousers)
        b.cylinder(place.at(0.25 * sx, 0.8 * scale, rng.normal(0, 0.06)), 0.05 * scale, 0.6 * scale, shirt)
    b.ellipsoid(place.at(0, 0.75 * scale, 0), (0.22 * scale, 0.36 * scale, 0.15 * scale), shirt)
    b.ellipsoid(place.at(0, 1.42 * scale, 0), (0.09 * scale, 0.13 * scale, 0.11 * scale), skin)


def cartons(b: Builder, place: Place) -> None:
    """A stack of boxes."""
    rng = b.rng
    up = 0.0
    for _ in range(int(rng.integers(1, 4))):
        width, height, depth = rng.uniform(0.25, 0.7, 3)
        b.box(
            place.at(rng.normal(0, 0.05), up, rng.normal(0, 0.05), rng.normal(0, 0.3)),
            width,
            height,
            depth,
            b.patterned(),
        )
        up += height


def scatter(b: Builder, place: Place) -> None:
    """One thing of any shape and pose: what no list of furniture foresees."""
    rng = b.rng
    width, height, depth = np.exp(rng.uniform(np.log(0.05), np.log(0.6), 3)).tolist()
    kind = int(rng.integers(0, 3))
    tilt = random_rotation(rng) if rng.random() < 0.5 else None
    b.add(kind, place.at(0, rng.uniform(0.0, 1.0), 0), (width, height, depth), b.patterned(), tilt)


def random_rotation(rng: Rng) -> NDArray[np.float64]:
    """A uniform 3x3 rotation."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = np.asarray(q * np.sign(np.diag(r)))
    return q if np.linalg.det(q) > 0 else -q


Assembly = Callable[[Builder, Place], None]
AGAINST_WALLS: tuple[Assembly, ...] = (
    *(table, table, shelf, shelf, counter, counter, cabinet, cabinet, sofa, sofa, bed, wall_board, wall_board),
    *(radiator, leaves),
)
FREE_STANDING: tuple[Assembly, ...] = (
    *(dining, dining, dining, table, chair, chair, plant, leaves, person, cartons, scatter, sofa),
)
