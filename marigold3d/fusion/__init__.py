"""Fusion: aligned depth maps to one coloured, oriented cloud (numpy) or a mesh (Open3D)."""

from .edges import edge_mask
from .fuse import FusionInput, FusionReport, fuse
from .normals import grid_normals
from .voxels import VoxelGrid

__all__ = ["FusionInput", "FusionReport", "VoxelGrid", "edge_mask", "fuse", "grid_normals"]
