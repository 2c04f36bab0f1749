"""Catalogues of models: read at their true size, the right way round, with their colours; placed where they belong."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import assets, layouts, scenes, solids
from training.assets import Asset, Entry, Library
from training.builder import Builder, Place
from training.furnish import GROUPS, MOST_OVERLAP_M, Furnisher, groups_of

# A cabinet 2 x 4 x 1 model units (x, y, z) with a red front at +z, a textured top, and a pane of glass on it.
CABINET = """
mtllib cabinet.mtl
v -1 0 -0.5
v 1 0 -0.5
v 1 4 -0.5
v -1 4 -0.5
v -1 0 0.5
v 1 0 0.5
v 1 4 0.5
v -1 4 0.5
v -1 0 0.5
v 1 0 0.5
v 1 4 0.5
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl grey
f 2 1 4 3
f 1 5 8 4
f 6 2 3 7
f 1 2 6 5
usemtl red
f 5 6 7 8
usemtl wood
f 8/1 7/2 3/3 4/4
usemtl glass
f 9 10 11
"""
MATERIALS = """
newmtl grey
Kd 0.5 0.5 0.5
newmtl red
Kd 1 0 0
newmtl wood
Kd 1 1 1
map_Kd Textures\\Wood.PNG
newmtl glass
Kd 1 1 1
d 0.1
"""
PROPERTIES = """# a catalogue
id#1=test#cabinet
name#1=Cabinet
category#1=Kitchen
model#1=/models/cabinet.obj
width#1=80
depth#1=60
height#1=200
dropOnTopElevation#1=90
id#2=test#broken
name#2=Broken
category#2=Kitchen
model#2=/models/missing.obj
width#2=10
depth#2=10
height#2=10
id#3=test#turned
name#3=Turned cabinet
category#3=Kitchen
model#3=/models/cabinet.obj
modelRotation#3=0 0 1 0 1 0 -1 0 0
width#3=60
depth#3=80
height#3=200
"""


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalogue") / "Test.sh3f"
    picture = io.BytesIO()
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:4] = 255  # the upper half of the texture (v > 0.5) is white
    Image.fromarray(halves).save(picture, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", PROPERTIES)
        archive.writestr("models/cabinet.obj", CABINET)
        archive.writestr("models/cabinet.mtl", MATERIALS)
        archive.writestr("models/wood.png", picture.getvalue())
    return path


@pytest.fixture(scope="module")
def library(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    out = tmp_path_factory.mktemp("assets")
    command = [sys.executable, "-m", "training.assets", str(catalogue), "--out", str(out)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 models" in said.stdout
    assert "Test-0002 (Broken)" in said.stderr, "what cannot be read is named"
    return Library(out)


@pytest.fixture
def cabinet(library: Library) -> Asset:
    return library.load(library.entries[0])


def test_a_model_stands_on_its_origin_at_its_true_size(library: Library, cabinet: Asset) -> None:
    entry = library.entries[0]
    assert (entry.width_m, entry.depth_m, entry.height_m, entry.drop_on_top_m) == (0.8, 0.6, 2.0, 0.9)
    np.testing.assert_allclose(cabinet.vertices.min(0), (-0.4, -2.0, -0.3), atol=1e-6)
    np.testing.assert_allclose(cabinet.vertices.max(0), (0.4, 0.0, 0.3), atol=1e-6)


def side(asset: Asset, part: int) -> np.ndarray:
    return asset.vertices[asset.faces[asset.part == part]].reshape(-1, 3)


def test_the_front_looks_out_of_the_wall(cabinet: Asset) -> None:
    red = int(np.flatnonzero((cabinet.colors == (1, 0, 0)).all(1))[0])
    np.testing.assert_allclose(side(cabinet, red)[:, 2], -0.3, atol=1e-6)


def test_a_model_turned_by_its_catalogue(library: Library) -> None:
    """+z of the model goes to +x, which is right; width and depth are those after the turn."""
    turned = library.load(library.entries[1])
    red = int(np.flatnonzero((turned.colors == (1, 0, 0)).all(1))[0])
    np.testing.assert_allclose(side(turned, red)[:, 0], 0.3, atol=1e-6)
    np.testing.assert_allclose(np.ptp(turned.vertices, axis=0), (0.6, 2.0, 0.8), atol=1e-6)


def test_glass_is_left_out_and_textures_are_found(cabinet: Asset) -> None:
    assert len(np.unique(cabinet.part)) == 3
    assert len(cabinet.faces) == 12
    assert sorted(cabinet.image[np.unique(cabinet.part)].tolist()) == [-1, -1, 0]
    assert cabinet.images.shape == (1, 3, assets.IMAGE_PX, assets.IMAGE_PX)


def test_a_rendered_model_shows_its_front_and_its_depth(cabinet: Asset) -> None:
    b = Builder(np.random.default_rng(0))
    b.add(solids.ROOM, Place(0, -1.5, 0), (3.0, 1.5, 3.0), b.plain())
    furnisher = Furnisher(b, _only(cabinet))
    assert furnisher.put(ENTRY, Place(0, 0, 1.0), stretch=0.0)
    b.meshes[0].tint[:] = 1.0
    b.meshes[0].rows[:] = -1
    scene = b.build((0, 0, -1, 0), np.zeros((2, 3)), 0.0, 1.0)
    camera = layouts.look(np.array([0, -1.0, -1.0]), 0.0, 0.0)
    K = np.array([[40.0, 0, 20], [0, 40, 20], [0, 0, 1]])
    rgb, depth = scenes.cast(scene, camera, K, 40, 40)
    np.testing.assert_allclose(depth[0, 20, 20], 1.7, atol=1e-4)
    red, green, blue = rgb[:, 20, 20].tolist()
    assert red > 0.3
    assert max(green, blue) < 0.05 * red
    from_above = layouts.look(np.array([0, -2.9, 1.0]), 0.0, np.pi / 2 - 1e-3)
    rgb, depth = scenes.cast(scene, from_above, K, 40, 40)
    np.testing.assert_allclose(depth[0, 20, 20], 0.9, atol=1e-2)
    far, near = rgb[1, 15, 20], rgb[1, 25, 20]  # the wood's v grows from the front to the back
    assert far > 5 * near


ENTRY = Entry("cabinet", "Cabinet", "Kitchen", 0.8, 0.6, 2.0, 0.0, 0.9, False)


def _only(asset: Asset, entries: tuple[Entry, ...] = (ENTRY,)) -> Library:
    library = Library.__new__(Library)
    library.entries = list(entries)
    library.load = lambda entry: asset  # type: ignore[method-assign]
    return library


def test_what_stands_on_the_floor_stands_apart(cabinet: Asset) -> None:
    b = Builder(np.random.default_rng(1))
    furnisher = Furnisher(b, _only(cabinet))
    rng = np.random.default_rng(2)
    tried = [furnisher.put(ENTRY, Place(*rng.uniform(-2, 2, 1), 0, *rng.uniform(-2, 2, 1))) for _ in range(40)]
    boxes = [mesh.bounds() for mesh in b.meshes]
    assert any(tried)
    assert not all(tried)
    for i, (low, high) in enumerate(boxes):
        for other_low, other_high in boxes[:i]:
            overlap = np.minimum(high, other_high) - np.maximum(low, other_low)
            assert min(overlap[0], overlap[2]) <= MOST_OVERLAP_M


def test_furnished_shots_follow_from_their_seed(cabinet: Asset) -> None:
    kinds = ("Table", "Chair", "Sofa", "Cabinet", "Vase", "Clock on the wall")
    sizes = ((1.2, 0.8, 0.75), (0.5, 0.5, 0.9), (2.0, 0.9, 0.8), (0.8, 0.6, 2.0), (0.2, 0.2, 0.3), (0.3, 0.1, 0.3))
    entries = tuple(
        Entry(n, n, "Living room", w, d, h, 1.2 * ("wall" in n), h, False)
        for n, (w, d, h) in zip(kinds, sizes, strict=True)
    )
    library = _only(cabinet, entries)
    first, second = (layouts.random_shots(5, 2, library) for _ in range(2))
    assert len(first[0].scene.meshes) > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.T_world_camera, b.T_world_camera)
        assert [m.origin.tolist() for m in a.scene.meshes] == [m.origin.tolist() for m in b.scene.meshes]


@pytest.mark.parametrize(
    ("name", "category", "size", "elevation", "expected"),
    [
        ("Round table", "Living room", (1.0, 1.0, 0.7), 0.0, {"table", "wall"}),
        ("Table fan", "Living room", (0.3, 0.2, 0.4), 0.0, {"small", "floor"}),
        ("Chair with cushion", "Living room", (0.5, 0.5, 0.9), 0.0, {"chair"}),
        ("Upper cabinet", "Kitchen", (0.6, 0.4, 0.7), 1.4, {"hung"}),
        ("Male", "Characters", (0.6, 0.4, 1.8), 0.0, {"person"}),
        ("Cup", "Kitchen", (0.1, 0.1, 0.07), 0.0, {"small"}),
        ("Swimming pool", "Exterior", (17, 10, 4), 0.0, set()),
        ("Shipping container", "Miscellaneous", (2.4, 6.0, 2.6), 0.0, set()),
    ],
)
def test_groups(name: str, category: str, size: tuple, elevation: float, expected: set) -> None:
    width, depth, height = size
    found = groups_of(Entry("k", name, category, width, depth, height, elevation, height, False))
    assert set(found) == expected
    assert set(found) <= set(GROUPS)
