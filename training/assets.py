"""Furniture with real shapes: the models of Sweet Home 3D's catalogues, brought to one form.

    apt-get install sweethome3d-furniture     # CC0 and CC BY 3.0; any .sh3f catalogue will do
    python -m training.assets /usr/share/sweethome3d/furniture/*.sh3f --out DIR

A .sh3f file is a zip of OBJ models and a properties file that knows each one's name, category and true size. DIR gets
one safetensors file for each model and index.json. Models that cannot be read are named and left out.
"""

import argparse
import io
import json
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

IMAGE_PX = 128  # textures are kept at this size
MOST_FACES = 60_000
CLEAR = 0.4  # parts less opaque than this are glass, which cameras and light pass
HALF = ("normals", "colors")  # kept in half precision
MODEL_TO_ASSET = np.diag([1.0, -1.0, -1.0])  # OBJ: y up, front towards +z; here: y down, front towards -z


@dataclass(frozen=True)
class Entry:
    """What the catalogue says of a model; sizes in metres. `drop_on_top_m`: height at which things stand on it."""

    key: str
    name: str
    category: str
    width_m: float
    depth_m: float
    height_m: float
    elevation_m: float
    drop_on_top_m: float
    door_or_window: bool


@dataclass(frozen=True, eq=False)
class Asset:
    """A model standing on its origin: x right, y down, z towards its back, metres.

    vertices (V, 3); normals (V, 3) unit; uv (V, 2); faces (F, 3); part (F,): its material; colors (P, 3) linear RGB;
    image (P,): its texture or -1; images (T, 3, IMAGE_PX, IMAGE_PX) uint8 sRGB.
    """

    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]
    uv: NDArray[np.float32]
    faces: NDArray[np.int32]
    part: NDArray[np.int32]
    colors: NDArray[np.float32]
    image: NDArray[np.int32]
    images: NDArray[np.uint8]


class Library:
    """The models of a folder that `convert` wrote, read as they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = [Entry(**row) for row in json.loads((folder / "index.json").read_text())]

    def __len__(self) -> int:
        return len(self.entries)

    def load(self, entry: Entry) -> Asset:
        """One model; the same object while it is in use."""
        return _load(self.folder / f"{entry.key}.safetensors")


@lru_cache(maxsize=400)
def _load(path: Path) -> Asset:
    arrays: dict[str, NDArray[Any]] = load_file(path)
    for name in HALF:
        arrays[name] = arrays[name].astype(np.float32)
    return Asset(**arrays)


def convert(catalogues: list[Path], out: Path) -> list[Entry]:
    """Write every readable model of the catalogues to `out`; says on stderr which were left out."""
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    for catalogue in catalogues:
        with zipfile.ZipFile(catalogue) as archive:
            for item in items(archive):
                entry = _entry(catalogue.stem, item)
                path = out / f"{entry.key}.safetensors"
                try:
                    if not path.exists():
                        _save(read_model(archive, item, entry), path)
                    entries.append(entry)
                except Exception as error:  # any of a hundred authors' files
                    print(f"left out {entry.key} ({entry.name}): {error}", file=sys.stderr)
    (out / "index.json").write_text(json.dumps([asdict(entry) for entry in entries], indent=0))
    return entries


def items(archive: zipfile.ZipFile) -> Iterator[dict[str, str]]:
    """The catalogue's entries: `key#N=value` lines gathered by N."""
    gathered: dict[str, dict[str, str]] = {}
    for line in archive.read("PluginFurnitureCatalog.properties").decode("latin-1").splitlines():
        name, sign, value = line.partition("=")
        key, mark, number = name.strip().partition("#")
        if sign and mark and number.isdigit():
            gathered.setdefault(number, {"number": number})[key] = value.strip()
    yield from (item for item in gathered.values() if "model" in item)


def _entry(catalogue: str, item: dict[str, str]) -> Entry:
    def metres(key: str, default: float = 0.0) -> float:
        return float(item.get(key) or 100 * default) / 100

    height_m = metres("height")
    return Entry(
        key=f"{catalogue}-{int(item['number']):04d}",
        name=item.get("name", ""),
        category=item.get("category", ""),
        width_m=metres("width"),
        depth_m=metres("depth"),
        height_m=height_m,
        elevation_m=metres("elevation"),
        drop_on_top_m=metres("dropOnTopElevation", height_m),
        door_or_window=item.get("doorOrWindow") == "true",
    )


class _Beside:
    """Finds the files that a model names, beside it in the archive, whatever their case."""

    def __init__(self, archive: zipfile.ZipFile, model: str) -> None:
        self.archive, self.folder = archive, PurePosixPath(model).parent
        self.names = {name.lower(): name for name in archive.namelist()}

    def get(self, name: str) -> bytes:
        wanted = str(self.folder / PurePosixPath(name.strip().replace("\\", "/")).name).lower()
        if wanted not in self.names:
            raise FileNotFoundError(name)
        return self.archive.read(self.names[wanted])

    __getitem__ = get


def read_model(archive: zipfile.ZipFile, item: dict[str, str], entry: Entry) -> Asset:
    """The model of an entry at its true size."""
    import trimesh

    model = item["model"].lstrip("/")
    loaded = trimesh.load(
        io.BytesIO(archive.read(model)), "obj", resolver=_Beside(archive, model), process=False, group_material=True
    )
    meshes = list(loaded.geometry.values()) if isinstance(loaded, trimesh.Scene) else [loaded]
    parts = [_part(mesh) for mesh in meshes]
    if not any(len(part["faces"]) for part in parts):
        raise ValueError("no solid part")
    if sum(len(part["faces"]) for part in parts) > MOST_FACES:
        raise ValueError(f"more than {MOST_FACES} faces")
    turn = np.fromstring(item["modelRotation"], sep=" ").reshape(3, 3) if item.get("modelRotation") else np.eye(3)
    turn = MODEL_TO_ASSET @ turn
    counts = np.cumsum([0] + [len(part["vertices"]) for part in parts])
    vertices = np.concatenate([part["vertices"] for part in parts]) @ turn.T
    low, high = vertices.min(0), vertices.max(0)
    scale = np.array([entry.width_m, entry.height_m, entry.depth_m]) / np.maximum(high - low, 1e-6)
    vertices = (vertices - [(low[0] + high[0]) / 2, high[1], (low[2] + high[2]) / 2]) * scale
    normals = np.concatenate([part["normals"] for part in parts]) @ turn.T / scale
    images = [part["image"] for part in parts if part["image"] is not None]
    numbers = iter(range(len(images)))
    return Asset(
        vertices=vertices.astype(np.float32),
        normals=(normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)).astype(np.float32),
        uv=np.concatenate([part["uv"] for part in parts]).astype(np.float32),
        faces=np.concatenate([part["faces"] + n for part, n in zip(parts, counts, strict=False)]).astype(np.int32),
        part=np.concatenate([np.full(len(part["faces"]), i) for i, part in enumerate(parts)]).astype(np.int32),
        colors=np.stack([part["color"] for part in parts]).astype(np.float32),
        image=np.array([-1 if part["image"] is None else next(numbers) for part in parts], np.int32),
        images=np.stack(images) if images else np.zeros((0, 3, IMAGE_PX, IMAGE_PX), np.uint8),
    )


def _part(mesh: Any) -> dict[str, Any]:
    """One material's triangles; none, but their corners, of glass."""
    material = getattr(mesh.visual, "material", None)
    diffuse = np.asarray(getattr(material, "diffuse", (160, 160, 160)), float)[:3] / 255
    uv, image = getattr(mesh.visual, "uv", None), getattr(material, "image", None)
    return {
        "vertices": np.asarray(mesh.vertices, float),
        "normals": np.asarray(mesh.vertex_normals, float),
        "faces": np.asarray(mesh.faces)[: 0 if _opacity(material) < CLEAR else None],
        "uv": np.zeros((len(mesh.vertices), 2)) if uv is None else np.nan_to_num(np.asarray(uv, float)[:, :2]),
        "color": diffuse**2.2,
        "image": None if image is None or uv is None else _square(image),
    }


def _opacity(material: Any) -> float:
    """`d`, or one less `Tr`, of an OBJ material."""
    said = getattr(material, "kwargs", None) or {}
    if "d" in said:
        return float(np.ravel(said["d"])[-1])
    return 1.0 - float(np.ravel(said["tr"])[-1]) if "tr" in said else 1.0


def _square(image: Image.Image) -> NDArray[np.uint8]:
    """(3, IMAGE_PX, IMAGE_PX); a texture may repeat, so its shape does not matter."""
    return np.asarray(image.convert("RGB").resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BOX)).transpose(2, 0, 1).copy()


def _save(asset: Asset, path: Path) -> None:
    arrays = {k: np.ascontiguousarray(v.astype(np.float16) if k in HALF else v) for k, v in vars(asset).items()}
    partial = path.with_suffix(".partial")
    save_file(arrays, partial)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalogues", nargs="+", type=Path, help=".sh3f files")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    entries = convert(args.catalogues, args.out)
    print(f"{len(entries)} models in {args.out}")


if __name__ == "__main__":
    main()
