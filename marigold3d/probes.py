"""Trying a library in a process of its own: what aborts there cannot take this one along, and it prints nothing."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

TIMEOUT_S = 120

# Shared library -> the Debian and Ubuntu package that holds it.
PACKAGE_OF = {
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libX11.so.6": "libx11-6",
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libgomp.so.1": "libgomp1",
    "libvulkan.so.1": "libvulkan1 mesa-vulkan-drivers",
    "libdbus-1.so.3": "libdbus-1-3",
    "libfontconfig.so.1": "libfontconfig1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libX11-xcb.so.1": "libx11-xcb1",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
}

# Each prints one line on success.
PROBES = {
    "torch": """
import torch
name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
mps = torch.backends.mps.is_available()
assert float(torch.ones(8, 8).mm(torch.ones(8, 8)).sum()) == 512
cpu = f"on cpu, {torch.get_num_threads()} threads"
print(torch.__version__, f"on cuda ({name})" if name else "on mps" if mps else cpu)
""",
    "pycolmap": """
import pycolmap
print(pycolmap.__version__)
""",
    "open3d": """
import open3d
print(open3d.__version__)
""",
    "tsdf": """
import numpy as np, open3d as o3d
f32 = o3d.core.float32
grid = o3d.t.geometry.VoxelBlockGrid(("tsdf", "weight", "color"), (f32,) * 3, ((1,), (1,), (3,)), 0.02, 16, 1000)
K = o3d.core.Tensor(np.array([[60.0, 0, 40], [0, 60, 30], [0, 0, 1]]))
pose = o3d.core.Tensor(np.eye(4))
depth = o3d.t.geometry.Image(o3d.core.Tensor(np.full((60, 80, 1), 2.01, np.float32)))
color = o3d.t.geometry.Image(o3d.core.Tensor(np.full((60, 80, 3), 0.5, np.float32)))
blocks = grid.compute_unique_block_coordinates(depth, K, pose, 1.0, 4.0)
grid.integrate(blocks, depth, color, K, pose, 1.0, 4.0)
count = len(grid.extract_point_cloud(0.5).point.positions)
assert count > 100, f"a plane became {count} points: this build of Open3D is broken"
print(f"a plane became {count} points")
""",
    "qt": """
import sys
from qtpy.QtWidgets import QApplication
import qtpy
application = QApplication([])
before = sys.getrefcount(None)
for _ in range(500):
    application.processEvents()
# PySide6 6.12.0 with Python 3.11 takes a reference to None at every call: after some minutes Python aborts.
broken = f"{qtpy.API_NAME} {qtpy.QT_VERSION} is broken with this Python: napari would abort after some minutes"
assert before - sys.getrefcount(None) < 250, broken
print(qtpy.API_NAME, qtpy.QT_VERSION, "on", application.platformName())
""",
}


@dataclass(frozen=True)
class Probe:
    """Outcome: `line` is what it printed, or the error that says most."""

    ok: bool
    line: str

    def remedy(self, otherwise: str) -> str:
        """The package whose library the error misses, else `otherwise`."""
        package = package_for_error(self.line)
        return install_line([package]) if package else otherwise


def run_probe(name: str, environment: Mapping[str, str] = MappingProxyType({})) -> Probe:
    """Run PROBES[name] with this interpreter, under additional environment variables."""
    try:
        command, env = [sys.executable, "-c", PROBES[name]], {**os.environ, **environment}
        done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Probe(False, f"no answer within {TIMEOUT_S} s")
    if done.returncode == 0:
        return Probe(True, (done.stdout.strip() or "ok").splitlines()[-1])
    lines = [line for line in re.sub(r"\x1b\[[\d;]*m", "", done.stderr).splitlines() if line.strip()]
    telling = [line for line in lines if ".so" in line or "Error" in line] or lines
    return Probe(False, telling[-1].strip() if telling else f"it was killed (exit status {done.returncode})")


def missing_libraries(names: Iterable[str]) -> list[str]:
    """Those shared libraries that the loader does not find."""
    return [name for name in names if not _loads(name)]


def package_for_error(message: str) -> str | None:
    """Debian package of the shared library that a loader's message misses."""
    return next(
        (PACKAGE_OF[name] for name in re.findall(r"lib[\w.+-]+\.so[.\d]*", message) if name in PACKAGE_OF), None
    )


def install_line(packages: Iterable[str]) -> str:
    """The command that installs Debian packages, or what to look for on another system."""
    names = " ".join(dict.fromkeys(packages))
    if shutil.which("apt-get") or not sys.platform.startswith("linux"):
        return f"apt-get install -y --no-install-recommends {names}"
    return f"install what Debian calls {names} with this system's package manager"


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
