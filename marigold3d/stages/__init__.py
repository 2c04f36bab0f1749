"""The stages of a run, generators of Progress: they join the modules that know the mathematics to the run folder."""

from .align import align_depth, check_known, scale_to_lengths
from .cameras import find_cameras, with_lens
from .depth import estimate_depth
from .job import Cameras, DepthStore, Job, digest, fingerprint
from .look import look_at_clip
from .odometry import walk
from .refine import refine_depth
from .scene import fuse_cloud, fusion_views, write_products

__all__ = [
    "Cameras",
    "DepthStore",
    "Job",
    "align_depth",
    "check_known",
    "digest",
    "estimate_depth",
    "find_cameras",
    "fingerprint",
    "fuse_cloud",
    "fusion_views",
    "look_at_clip",
    "refine_depth",
    "scale_to_lengths",
    "walk",
    "with_lens",
    "write_products",
]
