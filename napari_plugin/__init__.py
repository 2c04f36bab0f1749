"""marigold3d in napari: clips, runs and clouds opened and saved, a panel that reconstructs, and one that explores.

Finding the plugin imports this module, so it loads nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import napari.viewer

    from ._explore import ExplorePanel
    from ._panel import ReconstructionPanel


def launch(path: str | None) -> None:
    """Open napari with the panels docked and the clip or run folder at `path` loaded; returns when it is closed.

    Raises UsageError when napari or Qt cannot open a window, InputError when `path` cannot be read.
    """
    from ._launch import open_napari

    open_napari(path)


def dock_panels(viewer: napari.viewer.Viewer) -> tuple[ReconstructionPanel, ExplorePanel]:
    """Both panels, docked in a viewer as two tabs."""
    from ._launch import dock_panels as dock

    return dock(viewer)


__all__ = ["dock_panels", "launch"]
