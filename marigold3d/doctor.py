"""Is this machine ready? Every check names its remedy; what only viewers need is a warning, not a failure."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from .probes import PACKAGE_OF, install_line, missing_libraries, run_probe

MIN_PYTHON = (3, 11)
MIN_FREE_GB = 2.0  # a minute of video at 640 px leaves about 1 GB in the run folder
REQUIRED_PACKAGES = ("numpy", "scipy", "torch", "diffusers", "transformers", "safetensors", "av", "pillow", "pycolmap")
WEIGHTS = Path(__file__).parent / "depth" / "weights"
QT_PACKAGE = "PySide6_Essentials!=6.12.0"  # that release aborts Python 3.11 after some minutes
QT_BINDINGS = ("PySide6", "PyQt6")
QT_LIBRARIES = tuple(
    name for name, package in PACKAGE_OF.items() if package.startswith(("libxcb", "libxkb", "libx11-"))
)


@dataclass(frozen=True)
class Check:
    """One finding; an ok one has no `remedy`. `required`: turning a clip into a cloud needs it, not only a viewer."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True


def run_checks() -> list[Check]:
    """All findings, in the order in which to mend them. Takes some seconds: libraries are tried in other processes."""
    checks: list[Callable[[], Check]] = [
        *(check_python, check_packages, check_torch, check_weights, check_poses, check_disk, check_hub),
        *(check_open3d, check_tsdf, check_gl, check_vulkan, check_display, check_qt, check_plugin),
    ]
    return [check() for check in checks]


def exit_code(checks: list[Check]) -> int:
    """0 when the main job works, else 1."""
    return int(any(c.required and not c.ok for c in checks))


def format_report(checks: list[Check]) -> str:
    """A line a check, each remedy on a line below, and the verdict."""
    width = max(len(c.name) for c in checks)
    lines = []
    for check in checks:
        lines.append(f"{_mark(check):4}  {check.name:{width}}  {check.detail}")
        if check.remedy:
            lines.append(f"{'':4}  {'':{width}}  -> {check.remedy}")
    failed, warned = (sum(_mark(c) == mark for c in checks) for mark in ("FAIL", "warn"))
    parts = "part is" if warned == 1 else "parts are"
    verdict = "ready" if not failed else f"not ready: {failed} to mend"
    return "\n".join([*lines, "", f"{verdict}{f'; {warned} optional {parts} missing' if warned else ''}"])


def as_json(checks: list[Check]) -> dict[str, Any]:
    """The report as one JSON-ready object."""
    return {"ready": exit_code(checks) == 0, "checks": [{**asdict(c), "status": _mark(c).lower()} for c in checks]}


def check_python() -> Check:
    ok = sys.version_info >= MIN_PYTHON
    remedy = "" if ok else f"install Python {'.'.join(map(str, MIN_PYTHON))} or newer"
    return Check("Python", ok, f"{platform.python_version()} on {platform.platform(terse=True)}", remedy)


def check_packages() -> Check:
    versions = {name: _version(name) for name in REQUIRED_PACKAGES}
    missing = [name for name, version in versions.items() if version is None]
    detail = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    return Check("packages", not missing, detail, f"pip install {' '.join(missing)}" if missing else "")


def check_torch() -> Check:
    probe = run_probe("torch")
    return Check("torch", probe.ok, probe.line, "" if probe.ok else probe.remedy("pip install --force-reinstall torch"))


def check_weights() -> Check:
    """The embedded default model: the weights that the wheel carries."""
    files = sorted(WEIGHTS.glob("*.safetensors"))
    detail = ", ".join(f"{f.name} ({f.stat().st_size / 1e6:.1f} MB)" for f in files) or "none in the package"
    remedy = "" if files else "pip install --force-reinstall marigold3d, or name a model with --model"
    return Check("embedded model", bool(files), detail, remedy)


def check_poses() -> Check:
    probe = run_probe("pycolmap")
    return Check("pycolmap", probe.ok, probe.line, "" if probe.ok else probe.remedy("pip install pycolmap"))


def check_disk() -> Check:
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    remedy = "" if free_gb >= MIN_FREE_GB else "free some space, or write elsewhere with -o"
    return Check("disk", free_gb >= MIN_FREE_GB, f"{free_gb:.1f} GB free in the current folder", remedy, required=False)


def check_hub() -> Check:
    """Where larger models from the Hugging Face hub are kept."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    models = sorted(cache.glob("models--*"))
    detail = (
        f"{cache}: {len(models)} model{'s' * (len(models) > 1)}"
        if models
        else f"{cache}: empty (only --model from the hub needs it)"
    )
    existing = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    ok = os.access(existing, os.W_OK)
    return Check("hub cache", ok, detail, "" if ok else "set HF_HOME to a folder you may write to", required=False)


def check_open3d() -> Check:
    probe = run_probe("open3d")
    remedy = "" if probe.ok else probe.remedy("pip install open3d-cpu")
    return Check("Open3D", probe.ok, probe.line, remedy, required=False)


def check_tsdf() -> Check:
    """Meshes are integrated by Open3D: some of its builds return an empty volume without an error."""
    probe = run_probe("tsdf")
    remedy = "" if probe.ok else probe.remedy("pip install --force-reinstall open3d-cpu")
    return Check("Open3D TSDF", probe.ok, probe.line, remedy, required=False)


def check_gl() -> Check:
    return _libraries("OpenGL", ("libGL.so.1", "libEGL.so.1"), "the Open3D window and napari need it")


def check_vulkan() -> Check:
    return _libraries("Vulkan", ("libvulkan.so.1",), "only Open3D's newer renderer needs it")


def check_display() -> Check:
    if not sys.platform.startswith("linux"):
        return Check("display", True, platform.system(), required=False)
    display = os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY")
    if display:
        return Check("display", True, display, required=False)
    remedy = f"for windows without a screen: {install_line(['xvfb', 'xauth'])}, then xvfb-run -a marigold3d ..."
    return Check("display", False, "none: pictures can be written, windows cannot be opened", remedy, required=False)


def check_qt() -> Check:
    """Whether Qt can open a window. A missing xcb library makes it abort, so it is tried in another process."""
    if not any(util.find_spec(binding) for binding in QT_BINDINGS):
        return Check("Qt", False, "no Qt binding is installed", f"pip install '{QT_PACKAGE}'", required=False)
    linux = sys.platform.startswith("linux")
    missing = missing_libraries(QT_LIBRARIES) if linux else []
    if missing:
        line = install_line([PACKAGE_OF[name] for name in missing])
        return Check("Qt", False, f"cannot open windows: {', '.join(missing)} missing", line, required=False)
    probe = run_probe("qt", {} if check_display().ok else {"QT_QPA_PLATFORM": "offscreen"})
    remedy = "" if probe.ok else probe.remedy(f"pip install --force-reinstall '{QT_PACKAGE}'")
    return Check("Qt", probe.ok, probe.line, remedy, required=False)


def check_plugin() -> Check:
    """napari, and whether it will find the plugin."""
    version = _version("napari")
    if version is None:
        return Check(
            "napari", False, "not installed", f"pip install 'marigold3d[napari]' '{QT_PACKAGE}'", required=False
        )
    found = any(entry.name == "marigold3d" for entry in metadata.entry_points(group="napari.manifest"))
    detail = f"{version}, plugin {'found' if found else 'not found'}"
    return Check(
        "napari", found, detail, "" if found else "pip install marigold3d (from a checkout: pip install .)", False
    )


def _mark(check: Check) -> str:
    return "ok" if check.ok else "FAIL" if check.required else "warn"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _libraries(name: str, libraries: tuple[str, ...], purpose: str) -> Check:
    if not sys.platform.startswith("linux"):
        return Check(name, True, "part of the system", required=False)
    missing = missing_libraries(libraries)
    if not missing:
        return Check(name, True, ", ".join(libraries), required=False)
    line = install_line([PACKAGE_OF[library] for library in missing])
    return Check(name, False, f"{', '.join(missing)} missing; {purpose}", line, required=False)
