"""An image, its estimate, the truth and the error side by side, to look at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from marigold3d.atomic import atomic_path
from marigold3d.export.preview import SPECTRAL, colorize, depth_range
from marigold3d.types import Array, BoolImage
from training.data.samples import Sample

PANEL_PX = 480  # width of a panel, at the most
CAPTION_PX = 16
WORST_ERROR = 0.5  # |z - t| / t at the red end
INVALID_RGB = (0, 0, 0)


def path(folder: Path, name: str) -> Path:
    """Where the picture of the image `name` goes."""
    return folder / (name.replace("/", "__").rsplit(".", 1)[0] + ".png")


def write(target: Path, sample: Sample, depth_m: Array, figures: Mapping[str, float]) -> None:
    """Write the panels: depth on the truth's range, near warm and far cold; error from blue (0) to red (50 % and more);
    black where there is no truth.
    """
    rgb = sample.rgb.permute(1, 2, 0).cpu().numpy()
    truth, valid = sample.depth_m[0].cpu().numpy(), sample.valid[0].cpu().numpy()
    near_far = depth_range(truth, valid)
    everywhere = np.ones_like(valid)
    panels = {
        "image": rgb,
        "estimate": colorize(depth_m.astype(np.float32), everywhere, near_far),
        "truth": colorize(truth, valid, near_far),
        "error": error_colors(depth_m, truth, valid),
    }
    title = f"AbsRel {figures['abs_rel']:.3f}   d1 {figures['delta1']:.3f}   {near_far[0]:.2f} to {near_far[1]:.2f} m"
    captions = [f"{name}   {title}" if name == "estimate" else name for name in panels]
    step = -(-rgb.shape[1] // PANEL_PX)
    small = [panel[::step, ::step] for panel in panels.values()]
    height, width = small[0].shape[:2]
    sheet = Image.new("RGB", (len(small) * width, height + CAPTION_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (panel, caption) in enumerate(zip(small, captions, strict=True)):
        sheet.paste(Image.fromarray(np.ascontiguousarray(panel)), (place * width, CAPTION_PX))
        draw.text((place * width + 3, 2), caption, "black")
    with atomic_path(target) as temporary:
        sheet.save(temporary)


def error_colors(depth_m: Array, truth_m: Array, valid: BoolImage) -> NDArray[np.uint8]:
    """uint8 RGB (H, W, 3) of the relative error (H, W)."""
    error = np.abs(depth_m - truth_m) / np.where(valid, truth_m, 1.0)
    position = (1.0 - np.clip(error / WORST_ERROR, 0.0, 1.0)) * (len(SPECTRAL) - 1)
    channels = [np.interp(position, np.arange(len(SPECTRAL)), SPECTRAL[:, c]) for c in range(3)]
    colors = np.round(np.stack(channels, -1)).astype(np.uint8)  # (H, W, 3)
    colors[~valid] = INVALID_RGB
    return colors
