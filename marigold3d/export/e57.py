"""Clouds as E57, the exchange format of laser scanners: one scan, of positions and colours. Needs [e57].

E57 means metres: the scan's name says so when the cloud's units are arbitrary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .. import __version__
from ..atomic import atomic_path
from ..errors import OutputError
from ..types import PointCloud
from .needed import needed, require_points


def write_e57(path: str | Path, cloud: PointCloud) -> None:
    """Write points and colours in the world of the camera poses, which is the scan's pose: none.

    Normals, sigma and observations have no place in the format. OutputError when pye57 is missing or cannot write.
    """
    pye57 = needed("pye57", "E57 files", "e57")
    require_points(len(cloud))
    names = ("cartesianX", "cartesianY", "cartesianZ", "colorRed", "colorGreen", "colorBlue")
    columns = (*cloud.points.T.astype(np.float64), *cloud.colors.T)
    with atomic_path(path) as temporary:
        temporary.touch()  # what the disk forbids is said as everywhere else
        temporary.unlink()  # pye57 writes new files only
        try:
            file = pye57.E57(str(temporary), mode="w")
            try:
                file.write_scan_raw(
                    dict(zip(names, columns, strict=True)),
                    name=f"marigold3d {__version__}; units {cloud.units}; x right, y down, z forward",
                )
            finally:
                file.close()
        except pye57.libe57.E57Exception as error:
            raise OutputError(f"cannot write {path}: {str(error).splitlines()[0]}; check the disk") from error
