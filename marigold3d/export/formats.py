"""The formats of `marigold3d export`: their names, what they hold and how their files are called. Imports nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """holds: what is written, in words; suffixes: what the output's name may end in, none for a folder.

    images: whether the clip's frames can be had with it.
    """

    holds: str
    suffixes: tuple[str, ...] = ()
    images: bool = False

    @property
    def is_folder(self) -> bool:
        return not self.suffixes


FORMATS: dict[str, Format] = {
    "ply": Format("cloud", (".ply",)),
    "glb": Format("cloud, y up", (".glb",)),
    "obj": Format("cloud, y up", (".obj",)),
    "las": Format("cloud", (".las",)),
    "laz": Format("cloud, compressed", (".laz",)),
    "e57": Format("cloud", (".e57",)),
    "ply-mesh": Format("mesh", (".ply",)),
    "glb-mesh": Format("mesh, y up", (".glb",)),
    "obj-mesh": Format("mesh, y up", (".obj",)),
    "tum": Format("camera path", (".txt",)),
    "npy": Format("camera path", (".npy",)),
    "nerfstudio": Format("transforms.json", (".json",), images=True),
    "colmap": Format("model as text, all points", images=True),
    "colmap-bin": Format("model, binary, all points", images=True),
    "opensfm": Format("reconstruction and tracks", images=True),
    "3dgs": Format("undistorted frames and a COLMAP model with points to begin Gaussian splatting from", images=True),
    "video": Format("depth in colours", (".mp4", ".mov", ".mkv"), images=True),
    "rerun": Format("recording for Rerun's viewer", (".rrd",), images=True),
    "viser": Format("scene for viser's client, or a page for any browser", (".viser", ".html"), images=True),
    "exr": Format("depth maps"),
    "png": Format("depth maps"),
    "npz": Format("depth maps"),
}
