"""A network's input from frames, as its checkpoint's preprocessor_config.json says.

transformers' own preprocessors do it wherever they run on Pillow. Those that exist for torchvision alone, of which
marigold3d has no need otherwise, bring all frames to one size: `FixedSize` does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError, ModelError
from .checkpoint import quiet_transformers, read_json
from .device import is_out_of_memory, load_error
from .images import fitted_size, resized, rgb_tensor

_INTERPOLATION = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@dataclass(frozen=True)
class FixedSize:
    """Frames at one size (height, width), scaled to 0..1 and normalised by channel.

    normalised_first: before the size changes, and unfiltered, as Depth Pro was trained.
    """

    size: tuple[int, int]
    resample: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalised_first: bool

    @classmethod
    def of(cls, kind: str, settings: Mapping[str, Any]) -> FixedSize:
        """From the settings of a checkpoint of model type `kind`."""
        usual = 1536 if kind == "depth_pro" else 448
        size = settings.get("size") or {"height": usual, "width": usual}
        normalised = settings.get("do_normalize", kind == "depth_pro")
        return cls(
            (int(size["height"]), int(size["width"])),
            _INTERPOLATION[settings.get("resample", 2)],
            tuple(settings.get("image_mean") or [0.5] * 3) if normalised else (0.0,) * 3,
            tuple(settings.get("image_std") or [0.5] * 3) if normalised else (1.0,) * 3,
            kind == "depth_pro",
        )

    def __call__(self, rgb: NDArray[np.uint8]) -> torch.Tensor:
        """(N, 3, *size) float32 from rgb (N, H, W, 3)."""
        image = rgb_tensor(rgb, torch.device("cpu"))
        filtered = not self.normalised_first
        sized = resized(image, self.size, antialias=filtered, resample=self.resample)  # type: ignore[arg-type]
        # Normalising is affine and resampling a weighted mean: their order does not matter.
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (sized - mean) / std


class Preprocessor:
    """Pixels (N, 3, h, w) float32 from frames, for the network of type `kind` in `folder`. Raises ModelError if the
    checkpoint's settings are missing or damaged.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        settings = read_json(folder / "preprocessor_config.json")
        self.kind = kind
        if kind in ("depth_pro", "tipsv2_dpt"):
            try:
                self.fixed: FixedSize | None = FixedSize.of(kind, settings)
            except (KeyError, TypeError, ValueError) as error:
                raise load_error(folder / "preprocessor_config.json", error) from error
        else:
            self.fixed, self.own = None, _own(folder)

    @property
    def is_resizable(self) -> bool:
        """Whether the network takes other sizes than that of its settings."""
        return self.fixed is None and (self.kind == "glpn" or bool(getattr(self.own, "keep_aspect_ratio", False)))

    def __call__(self, rgb: NDArray[np.uint8], longest_px: int = 0) -> torch.Tensor:
        """rgb (N, H, W, 3); longest_px: of the network's input, 0: as the settings say.

        Raises InputError for frames that are too small for it.
        """
        if self.fixed is not None:
            return self.fixed(rgb)
        try:
            return self._by_transformers(rgb, longest_px)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:120]
            size = f"{rgb.shape[2]}x{rgb.shape[1]}"
            raise InputError(f"a {size} frame cannot be brought to the network's size ({reason}): crop it") from error

    def margin(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that were mirrored around a frame of height x width.

        ZoeDepth takes 3 sqrt(side / 2) on each side, to keep its boundary artefacts out of the frame.
        """
        if self.kind != "zoedepth" or not self.own.do_pad:
            return 0, 0
        return int(np.sqrt(height / 2) * 3), int(np.sqrt(width / 2) * 3)

    def _by_transformers(self, rgb: NDArray[np.uint8], longest_px: int) -> torch.Tensor:
        size: dict[str, Any] = {}
        images: list[NDArray[np.uint8]] = list(rgb)
        if longest_px:
            h, w = fitted_size(rgb.shape[1], rgb.shape[2], longest_px)
            if self.kind == "glpn":  # its preprocessor keeps the size it is given
                shrunk = resized(rgb_tensor(rgb, torch.device("cpu")), (h, w), antialias=True)
                images = list((shrunk * 255.0).round().byte().permute(0, 2, 3, 1).numpy())
            else:
                size = {"size": {"height": h, "width": w}, "keep_aspect_ratio": False}
        pixels = self.own(images=images, return_tensors="pt", **size).pixel_values
        if 0 in pixels.shape:
            raise ValueError("nothing is left of it")
        return pixels  # type: ignore[no-any-return]


def _own(folder: Path) -> Any:
    """The checkpoint's preprocessor. Pillow's resampling, with or without torchvision: the same frame gives the same
    depth everywhere.
    """
    from transformers import AutoImageProcessor, __version__

    pillow = {"use_fast": False} if __version__.startswith("4.") else {"backend": "pil"}
    try:
        with quiet_transformers():
            return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **pillow)
    except ImportError as error:
        raise ModelError(f"{folder}: its preprocessor needs torchvision: pip install torchvision") from error
    except Exception as error:
        raise load_error(folder / "preprocessor_config.json", error) from error
