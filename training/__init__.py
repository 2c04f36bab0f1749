"""Procedural scenes and the recipe of the embedded `compact` depth network; never imported by `marigold3d`."""
