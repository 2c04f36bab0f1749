"""marigold3d in napari: readers for clips, run folders and clouds, and the panel that reconstructs a clip.

Finding the plugin imports this module, so it loads nothing.
"""

from __future__ import annotations


def launch(path: str | None) -> None:
    """Open napari with the panel docked and the clip or run folder at `path` loaded; returns when it is closed.

    Raises UsageError when napari or Qt cannot open a window, InputError when `path` cannot be read.
    """
    from ._launch import open_napari

    open_napari(path)


__all__ = ["launch"]
