"""Whole scenes and the cameras that look at them: rooms, corridors, streets, open ground, all from one integer seed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training import furniture, solids, textures
from training.assets import Library
from training.builder import Builder, Place, Rng
from training.furnish import Furnisher
from training.scenes import Scene
from training.tracer import Placed

Array = NDArray[np.float64]
PLAIN_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Shot:
    """A scene and one camera in it: T_world_camera (4, 4); horizontal field of view in degrees."""

    scene: Scene
    T_world_camera: Array
    fov_x_deg: float
    may_be_plain: bool = True  # or else a view of one bare surface is not worth its place

    def camera_matrix(self, width: int, height: int) -> Array:
        """K (3, 3) of a picture of width x height pixels, its axis in the middle."""
        f_px = width / 2 / np.tan(np.radians(self.fov_x_deg) / 2)
        return np.array([[f_px, 0, width / 2], [0, f_px, height / 2], [0, 0, 1]])


def random_shots(seed: int, views: int = 2, library: Library | None = None) -> list[Shot]:
    """`views` shots of one random scene; with a library, most scenes are furnished with its models."""
    rng = np.random.default_rng(seed)
    b = Builder(rng)
    furnisher = Furnisher(b, library) if library is not None and rng.random() < 0.85 else None
    kind = rng.random()
    if kind < 0.38:
        scene, extent = room(b, furnisher)
    elif kind < 0.8:
        scene, extent = flat(b, furnisher)
    elif kind < 0.92:
        scene, extent = street(b, furnisher)
    else:
        scene, extent = open_ground(b, furnisher)
    return [
        Shot(scene, random_camera(rng, scene, extent), float(rng.uniform(42, 88)), rng.random() < PLAIN_SHARE)
        for _ in range(views)
    ]


def room(b: Builder, furnisher: Furnisher | None = None) -> tuple[Scene, Array]:
    """A box room with furniture along its walls and on its floor; returns the scene and (3,) half sizes for cameras."""
    rng = b.rng
    half_x, half_z = np.exp(rng.uniform(np.log(1.3), np.log(4.5), 2))
    height = rng.uniform(2.2, 3.4)
    wall = _shell(b, half_x, height, half_z)
    if rng.random() < 0.3:  # a carpet, or a runner from wall to wall
        along = half_z if rng.random() < 0.5 else rng.uniform(0.5, half_z)
        b.box(Place(rng.normal(0, 0.5), 0, 0), rng.uniform(1.0, half_x), 0.012, 2 * along, b.patterned())
    walls = [(half_x, half_z, 0.0), (half_z, half_x, np.pi / 2), (half_x, half_z, np.pi), (half_z, half_x, -np.pi / 2)]
    for half_width, distance, yaw in walls:
        furnish_wall(b, Place(0, 0, 0, yaw).at(0, 0, distance), half_width, height, wall, furnisher)
    _stand_about(b, furnisher, half_x, half_z, int(rng.integers(1, 5)))
    return _indoors(b, half_x, height, half_z)


def flat(b: Builder, furnisher: Furnisher | None = None) -> tuple[Scene, Array]:
    """Several rooms or a long hall: a large shell with walls across it, open by doors; seen through them."""
    rng = b.rng
    half_x, half_z = np.exp(rng.uniform(np.log(2.2), np.log(7.0), 2))
    height = rng.uniform(2.3, 3.6)
    wall = _shell(b, half_x, height, half_z)
    sides = [(half_x, half_z, 0.0), (half_z, half_x, np.pi / 2), (half_x, half_z, np.pi), (half_z, half_x, -np.pi / 2)]
    for half_width, distance, yaw in sides:
        furnish_wall(b, Place(0, 0, 0, yaw).at(0, 0, distance), half_width, height, wall, furnisher)
    for _ in range(int(rng.integers(1, 4))):
        across = rng.random() < 0.5
        half_width, reach = (half_x, half_z) if across else (half_z, half_x)
        middle = Place(0, 0, 0, 0.0 if across else np.pi / 2).at(0, 0, rng.uniform(-0.6, 0.6) * reach)
        partition(b, middle, half_width, height, wall if rng.random() < 0.7 else b.paint())
        if rng.random() < 0.7:
            furnish_wall(b, middle.at(0, 0, -0.1), half_width, height, wall, furnisher, share=0.5)
            back = Place(middle.x, middle.y, middle.z, middle.yaw + np.pi)
            furnish_wall(b, back.at(0, 0, -0.1), half_width, height, wall, furnisher, share=0.5)
    _stand_about(b, furnisher, half_x, half_z, int(rng.integers(2, 8)))
    return _indoors(b, half_x, height, half_z)


def partition(b: Builder, place: Place, half_width: float, height: float, wall: int) -> None:
    """A wall through `place`, across its forward direction, with a doorway or a wide opening."""
    rng = b.rng
    gap = rng.uniform(0.75, 1.1) if rng.random() < 0.6 else rng.uniform(1.1, half_width)
    lintel = rng.uniform(1.98, 2.2) if rng.random() < 0.75 else height
    thick = rng.uniform(0.08, 0.25)
    centre = rng.uniform(-1, 1) * (half_width - gap / 2 - 0.05)
    for left, right in ((-half_width, centre - gap / 2), (centre + gap / 2, half_width)):
        if right > left:
            b.box(place.at((left + right) / 2, 0, 0), right - left, height, thick, (wall,) * 3)
    if lintel < height:
        b.box(place.at(centre, lintel, 0), gap, height - lintel, thick, (wall,) * 3)
        frame = b.plain()
        for side in (-1, 1):
            b.box(place.at(centre + side * gap / 2, 0, 0), 0.06, lintel, thick + 0.03, frame)
        if rng.random() < 0.5:  # the door stands open
            leaf = place.at(centre - gap / 2, 0, -thick / 2, rng.uniform(0.3, 1.9))
            b.box(leaf.at(gap / 2, 0, 0), gap - 0.02, lintel - 0.02, 0.04, b.plain())


def _shell(b: Builder, half_x: float, height: float, half_z: float) -> int:
    """The room as such; returns the walls' material."""
    wall_families = (textures.FLAT, textures.FLAT, textures.FLAT, textures.MARBLE, textures.BRICKS, textures.STRIPES)
    wall = b.paint(wall_families, (0.1, 0.8), value=(0.2, 0.95), muted=True)
    floor = b.paint(
        (
            textures.WOOD,
            textures.WOOD,
            textures.BRICKS,
            textures.CHECKER,
            textures.MARBLE,
            textures.SPECKLE,
            textures.FLAT,
        ),
        (0.1, 0.8),
        muted=True,
    )
    ceiling = b.paint((textures.FLAT, textures.FLAT, textures.BRICKS), (0.4, 0.7), value=(0.5, 0.95), muted=True)
    # Seen from inside, the floor's normal is up: it is the room's "top" face.
    b.add(solids.ROOM, Place(0, -height / 2, 0), (half_x, height / 2, half_z), (wall, floor, ceiling))
    return wall


def _stand_about(b: Builder, furnisher: Furnisher | None, half_x: float, half_z: float, count: int) -> None:
    rng = b.rng
    for _ in range(count):
        turn = rng.uniform(0, 2 * np.pi) if rng.random() < 0.4 else rng.integers(4) * np.pi / 2 + rng.normal(0, 0.05)
        place = Place(rng.uniform(-0.8, 0.8) * half_x, 0, rng.uniform(-0.8, 0.8) * half_z, turn)
        if furnisher is not None and rng.random() < 0.85:
            furnisher.free_standing(place)
        else:
            furniture.FREE_STANDING[rng.integers(len(furniture.FREE_STANDING))](b, place)


def _indoors(b: Builder, half_x: float, height: float, half_z: float) -> tuple[Scene, Array]:
    rng = b.rng
    light = (rng.uniform(-0.8, 0.8) * half_x, -height * rng.uniform(0.7, 0.97), rng.uniform(-0.8, 0.8) * half_z, 1.0)
    if rng.random() < 0.3:  # daylight through windows
        light = (*_sun(rng), 0.0)
    scene = b.build(light, np.full((2, 3), 0.2), 0.0, rng.uniform(0.25, 0.8))
    return scene, np.array([half_x, height, half_z])


def furnish_wall(
    b: Builder,
    wall_middle: Place,
    half_width: float,
    height: float,
    wall: int,
    furnisher: Furnisher | None = None,
    share: float = 1.0,
) -> None:
    """Furniture side by side along one wall, panels where it is bare; forward of the wall's place is into the wall."""
    rng = b.rng
    middle = wall_middle.at(0, 0, -0.35)
    along = -half_width + 0.3
    while along < half_width - 0.3:
        step = rng.uniform(0.8, 1.8)
        place = middle.at(along + step / 2, 0, 0)
        along += step
        if rng.random() > share:
            continue
        if furnisher is not None and rng.random() < 0.85:
            furnisher.against_wall(place, height)
        elif rng.random() < 0.55:
            furniture.AGAINST_WALLS[rng.integers(len(furniture.AGAINST_WALLS))](b, place)
        if rng.random() < 0.5:
            panel(b, place.at(0, 0, 0.34), height)
    if rng.random() < 0.2 * share:  # a pillar or chimney makes the room other than a box
        width = rng.uniform(0.2, half_width)
        b.box(
            wall_middle.at(rng.choice([-1, 1]) * (half_width - width / 2), 0, 0),
            width,
            height,
            rng.uniform(0.4, 2.0),
            (wall,) * 3,
        )


def panel(b: Builder, place: Place, height: float) -> None:
    """A door, window, picture or whiteboard, thin on the wall."""
    rng = b.rng
    kind = rng.random()
    frame = b.plain()
    if kind < 0.25:
        b.box(
            place, rng.uniform(0.75, 1.0), 2.05, 0.06, (b.paint((textures.FLAT, textures.WOOD, textures.BRICKS)),) * 3
        )
        b.box(place.at(0.35, 1.0, -0.06), 0.12, 0.03, 0.05, frame)
        return
    width, tall = rng.uniform(0.3, 1.8), rng.uniform(0.3, 1.3)
    up = rng.uniform(0.8, 1.4)
    glow = float(kind < 0.5) * rng.uniform(0.5, 1.5)  # windows
    families = (textures.PICTURE, textures.MARBLE, textures.FLAT)
    b.box(place.at(0, up, 0), width + 0.1, tall + 0.1, 0.04, frame)
    b.box(place.at(0, up + 0.05, -0.02), width, tall, 0.03, (b.paint(families, (0.1, 0.6), glow, (0.1, 0.95)),) * 3)


def _ground(b: Builder, families: tuple[int, ...], scale_m: tuple[float, float]) -> None:
    b.add(solids.BOX, Place(0, 5.0, 0, b.rng.uniform(0, 3)), (400.0, 5.0, 400.0), (b.paint(families, scale_m),) * 3)


def street(b: Builder, furnisher: Furnisher | None = None) -> tuple[Scene, Array]:
    """A road between rows of houses, with pavements, vehicles, poles, trees and people."""
    rng = b.rng
    _ground(b, (textures.MARBLE, textures.SPECKLE, textures.FLAT), (0.3, 4.0))
    road = rng.uniform(3.0, 8.0)
    for side in (-1, 1):
        b.box(Place(side * (road + 2.0), 0, 30), 4.0, 0.14, 120, b.patterned((0.3, 1.5)))
        z = -25.0
        while z < 70:
            length = rng.uniform(5, 18)
            setback = road + rng.uniform(2.5, 5.0)
            if rng.random() < 0.85:
                house(b, Place(side * (setback + 5), 0, z + length / 2, side * np.pi / 2), length, rng.uniform(3.5, 16))
            z += length + rng.choice([0.0, 0.0, rng.uniform(1, 8)])
        for _ in range(int(rng.integers(1, 5))):
            place = Place(side * (road + rng.uniform(0.2, 1.8)), -0.14, rng.uniform(-8, 30), rng.uniform(0, 6.28))
            if furnisher is not None and rng.random() < 0.5:
                furnisher.outdoors(place)
            else:
                roadside(b, place)
        for _ in range(int(rng.integers(0, 4))):
            place = Place(side * (road - rng.uniform(1.2, 2.4)), 0, rng.uniform(-6, 30), rng.normal(0, 0.05))
            entry = furnisher.pick("vehicle") if furnisher is not None else None
            if furnisher is None or entry is None or rng.random() < 0.3 or not furnisher.put(entry, place):
                vehicle(b, place)
    return _outdoors(b), np.array([road + 2.0, 6.0, 8.0])


def house(b: Builder, place: Place, width: float, height: float) -> None:
    """A block with a façade of windows or masonry, a door, some real window recess frames."""
    rng = b.rng
    front = b.paint((textures.BRICKS, textures.CHECKER, textures.STRIPES, textures.FLAT, textures.BRICKS), (0.3, 3.0))
    b.box(place, width, height, 10.0, (front, b.paint(), front))
    dark, frame = b.plain((0.01, 0.1)), b.plain((0.2, 0.9))
    columns, rows = max(1, int(width / 3.5)), min(3, max(1, int(height / 3.0)))
    for row in range(rows):
        for column in range(columns):
            spot = place.at((column + 0.5) / columns * width - width / 2, 0.9 + 3.0 * row, -5.0)
            b.box(spot, 1.3, 1.5, 0.1, dark if rng.random() < 0.7 else frame)


def vehicle(b: Builder, place: Place) -> None:
    """Body, cabin, wheels."""
    rng = b.rng
    paint, glass = (b.paint((textures.FLAT,)),) * 3, b.plain((0.01, 0.08))
    length, height = rng.uniform(3.6, 5.0), rng.uniform(0.6, 0.9)
    b.box(place.at(0, 0.3, 0), 1.8, height, length, paint)
    b.box(place.at(0, 0.3 + height, -0.2), 1.6, rng.uniform(0.5, 1.2), length * rng.uniform(0.4, 0.9), glass)
    across = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    for sx, sz in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        b.add(solids.CYLINDER, place.at(sx * 0.85, 0.33, sz * length * 0.3), (0.33, 0.11, 0.33), glass, across)


def roadside(b: Builder, place: Place) -> None:
    """A tree, a lamp post, a person, a bin."""
    rng = b.rng
    kind = rng.random()
    if kind < 0.35:
        tree(b, place)
    elif kind < 0.6:
        b.cylinder(place, rng.uniform(0.04, 0.12), rng.uniform(2.5, 7), b.plain())
        if rng.random() < 0.5:
            b.box(place.at(0, rng.uniform(2, 3), 0), 0.6, 0.6, 0.04, b.patterned((0.1, 0.6)))
    elif kind < 0.8:
        furniture.person(b, place)
    else:
        furniture.cartons(b, place)


def tree(b: Builder, place: Place) -> None:
    """A trunk and some balls of leaves."""
    rng = b.rng
    trunk = rng.uniform(1.2, 3.0)
    b.cylinder(place, rng.uniform(0.08, 0.3), trunk + 1.0, b.plain((0.02, 0.2)))
    leaves = (b.paint((textures.SPECKLE, textures.MARBLE), (0.1, 0.5), value=(0.02, 0.3)),) * 3
    for _ in range(int(rng.integers(2, 5))):
        half = tuple(rng.uniform(0.6, 1.8, 3))
        b.ellipsoid(place.at(rng.normal(0, 0.7), trunk + rng.uniform(-0.3, 1.0), rng.normal(0, 0.7)), half, leaves)


def open_ground(b: Builder, furnisher: Furnisher | None = None) -> tuple[Scene, Array]:
    """Ground, hills, trees, loose solids, perhaps a wall or a house."""
    rng = b.rng
    _ground(b, (textures.MARBLE, textures.SPECKLE, textures.CHECKER, textures.BRICKS), (0.3, 4.0))
    spread = float(np.exp(rng.uniform(np.log(3.0), np.log(20.0))))
    for _ in range(int(rng.integers(6, 22))):
        place = Place(rng.normal(0, spread), 0, rng.normal(0, spread), rng.uniform(0, 6.28))
        kind = rng.random()
        if furnisher is not None and kind < 0.5:
            furnisher.outdoors(place)
        elif kind < 0.45:
            furniture.scatter(b, place)
        elif kind < 0.7:
            roadside(b, place)
        else:
            furniture.FREE_STANDING[rng.integers(len(furniture.FREE_STANDING))](b, place)
    for _ in range(int(rng.integers(0, 4))):
        far = Place(rng.normal(0, 60), 0, rng.choice([-1, 1]) * rng.uniform(25, 90), rng.uniform(0, 6.28))
        if rng.random() < 0.5:
            house(b, far, rng.uniform(6, 20), rng.uniform(4, 15))
        else:
            b.ellipsoid(
                far.at(0, -10, 0), (rng.uniform(15, 60), rng.uniform(12, 22), rng.uniform(15, 60)), b.patterned((1, 6))
            )
    return _outdoors(b), np.array([spread * 0.7, 6.0, spread * 0.7])


def _sun(rng: Rng) -> tuple[float, float, float]:
    """Unit direction towards the sun, 15 to 75 degrees high."""
    high, around = np.radians(rng.uniform(15, 75)), rng.uniform(0, 2 * np.pi)
    return float(np.cos(high) * np.cos(around)), float(-np.sin(high)), float(np.cos(high) * np.sin(around))


def _outdoors(b: Builder) -> Scene:
    rng = b.rng
    grey = rng.uniform(0.6, 1.0)
    blue = np.array([rng.uniform(0.15, 0.6), rng.uniform(0.35, 0.7), 0.9])
    sky = np.stack([blue if rng.random() < 0.7 else np.full(3, grey), np.full(3, grey)])
    fog = float(np.exp(rng.uniform(np.log(1e-3), np.log(0.03)))) if rng.random() < 0.5 else 0.0
    return b.build((*_sun(rng), 0.0), sky, fog, rng.uniform(0.25, 0.7))


def random_camera(rng: Rng, scene: Scene, extent: Array) -> Array:
    """A hand-held camera (4, 4) in free space, looking level, down at furniture, or at some solid."""
    for _ in range(30):
        position = np.array(
            [rng.uniform(-0.95, 0.95) * extent[0], -rng.normal(1.4, 0.3), rng.uniform(-0.95, 0.95) * extent[2]]
        )
        position[1] = -np.clip(-position[1], 0.4, extent[1] - 0.2)
        towards = _target(rng, scene) + rng.normal(0, 0.4, 3) - position
        if clearance(scene, position) > 0.25 and np.linalg.norm(towards) > 1.0:
            break
    if rng.random() < 0.75:
        yaw = np.arctan2(towards[0], towards[2])
        pitch = np.clip(np.arctan2(towards[1], np.hypot(towards[0], towards[2])), -0.3, 0.9)
    else:
        yaw, pitch = rng.uniform(0, 2 * np.pi), rng.normal(0.15, 0.2)
    return look(position, yaw, pitch, rng.normal(0, 0.05))


def _target(rng: Rng, scene: Scene) -> Array:
    """The middle of something to look at."""
    index = int(rng.integers(len(scene.centre) + 3 * len(scene.meshes)))  # models are worth more than boards
    if index < len(scene.centre):
        return np.asarray(scene.centre[index], float)
    low, high = scene.meshes[(index - len(scene.centre)) // 3].bounds()
    return np.asarray((low + high) / 2)


def clearance(scene: Scene, position: Array) -> float:
    """Distance in metres to the nearest solid's box; negative inside one."""
    local = np.einsum("pji,pj->pi", scene.rotation, position - scene.centre)
    outside = np.abs(local) - scene.half
    is_room = scene.kinds == solids.ROOM
    distance = np.where(is_room, -outside.max(1), outside.max(1))
    to_meshes = [np.maximum(low - position, position - high).max() for low, high in map(Placed.bounds, scene.meshes)]
    return float(min(distance.min(), *to_meshes, np.inf))


def look(position: Array, yaw: float, pitch: float, roll: float = 0.0) -> Array:
    """T_world_camera (4, 4): yaw about the vertical (0 = world z, positive to the right), pitch downwards, roll;
    radians.
    """
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    bank = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    T = np.eye(4)
    T[:3, :3] = turn @ nod @ bank
    T[:3, 3] = position
    return T
