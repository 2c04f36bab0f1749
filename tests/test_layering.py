"""The order of the modules, read from their imports: none imports what stands above it, and start-up stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "marigold3d"

LAYERS = (  # a module or package imports only what stands before it
    *(
        "errors",
        "types",
        "progress",
        "lazy",
        "atomic",
        "disk",
        "config",
        "rigid",
        "camera",
        "splat",
        "viewpoint",
        "detail",
    ),
    *("frames", "lens", "images", "video", "video_array", "scan"),
    *("depth", "align", "flow", "poses", "multiview", "fusion", "export", "cloud_colors", "cues", "lengths"),
    *(
        "store",
        "exclusions",
        "picking",
        "rescale",
        "view",
        "probes",
        "doctor",
        "stages",
        "pipeline",
        "realign",
        "finished",
        "edits",
        "meshing",
        "export_scene",
        "export_frames",
        "export_run",
        "depth_files",
        "terminal",
        "batch",
        "cli",
    ),
)

CONFINED = {  # third party: where it may be imported, at module level or inside a function
    "torch": ("depth/", "align/guided.py", "multiview/"),
    "diffusers": ("depth/",),
    "transformers": ("depth/",),
    "av": ("video.py", "video_array.py"),
    "cv2": ("flow.py", "lens.py", "poses/registration.py"),
    "pycolmap": ("poses/", "lens.py"),
    "open3d": ("poses/odometry.py", "fusion/", "view.py"),
    "numcodecs": ("store.py",),
    "zarr": ("store.py",),
    "matplotlib": ("align/plot.py",),
    "napari": (),
    "magicgui": (),
    "accelerate": ("depth/",),
    "napari_plugin": (),
    "training": (),
}
MAY_TEST_ANYTHING = ("doctor.py", "probes.py")  # they report whether a library works, so they import it lazily
HEAVY = ("torch", "open3d", "av", "cv2", "pycolmap", "diffusers", "transformers", "scipy", "zarr", "napari")
START_UP_BUDGET_S = 0.3


def module_files() -> list[Path]:
    return sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def layer_of(file: Path) -> str:
    """The name in LAYERS that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name from the root, at module level) of everything that `file` imports, relative imports resolved."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    lazy = {id(inner) for node in ast.walk(tree) if isinstance(node, FUNCTIONS) for inner in ast.walk(node)}
    package = ("marigold3d", *file.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            stem = ".".join(filter(None, [parent, node.module]))
            yield from ((f"{stem}.{alias.name}", id(node) not in lazy) for alias in node.names)


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@pytest.mark.parametrize("file", module_files(), ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(file: Path) -> None:
    layer = layer_of(file)
    assert layer in LAYERS, f"{layer} has no place in LAYERS yet"
    for name, _ in imported(file):
        parts = name.split(".")
        if parts[0] == "marigold3d" and parts[1] in LAYERS and parts[1] != layer:
            assert LAYERS.index(parts[1]) < LAYERS.index(layer), f"{file.name} imports {name}, which stands above it"
        assert parts[:2] != ["marigold3d", "napari_plugin"], f"{file.name} imports the plugin"


@pytest.mark.parametrize("file", module_files(), ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_third_party_stays_in_its_modules(file: Path) -> None:
    place = file.relative_to(PACKAGE).as_posix()
    for name, at_module_level in imported(file):
        root = name.split(".")[0]
        if place in MAY_TEST_ANYTHING and not at_module_level and root not in ("napari_plugin", "training"):
            continue
        if root in CONFINED:
            assert place.startswith(CONFINED[root] or ("nowhere",)), f"{place} imports {name}"


def test_layers_are_unique_and_cover_no_ghosts() -> None:
    assert len(set(LAYERS)) == len(LAYERS)
    assert {"errors", "types", "video", "export"} <= {layer_of(file) for file in module_files()}


def start(statement: str) -> tuple[float, set[str], str]:
    """(user seconds, top-level modules loaded, what it printed) of a fresh interpreter that runs `statement`."""
    code = f"{statement}\nimport os, sys\nprint('|', os.times().user, *{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    printed, _, report = done.stdout.rpartition("|")
    seconds, *modules = report.split()
    return float(seconds), set(modules), printed


def check_light(statement: str) -> str:
    """Run `statement` and assert that it loads nothing heavy, within the budget; returns what it printed."""
    bare_s = min(start("pass")[0] for _ in range(3))
    runs = [start(statement) for _ in range(3)]
    assert not runs[0][1] & set(HEAVY)
    assert min(seconds for seconds, *_ in runs) - bare_s < START_UP_BUDGET_S
    return runs[0][2]


def test_import_is_light() -> None:
    check_light("import marigold3d")


HELP = """
import sys
from marigold3d.cli import main
sys.argv = ["marigold3d", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


@pytest.mark.skipif(not (PACKAGE / "cli").is_dir(), reason="the command line is not there")
def test_help_is_light() -> None:
    assert "Usage" in check_light(HELP)


def test_the_walk_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "poses").mkdir()
    file = tmp_path / "poses" / "new.py"
    file.write_text("import av.video\nfrom .. import video\nfrom ..store import Run\ndef f():\n    from .x import y\n")
    assert sorted(imported(file)) == [
        ("av.video", True),
        ("marigold3d.poses.x.y", False),
        ("marigold3d.store.Run", True),
        ("marigold3d.video", True),
    ]
