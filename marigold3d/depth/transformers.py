"""Depth by any Hugging Face depth network: Depth Anything V1 and V2, DPT (MiDaS), ZoeDepth, GLPN and their kin."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..errors import ModelError, UsageError
from ..types import Domain, RelativeDepth
from .checkpoint import checkpoint_folder, quiet_transformers, read_json, short_sha256, weight_files
from .device import choose_device, choose_dtype, load_error, parameters_to, run_within_memory
from .images import check_rgb, fitted_size

_DOMAINS: dict[str, Domain] = {
    "depth_anything": "disparity",
    "dpt": "disparity",
    "depth_pro": "disparity",  # before the field of view turns it into depth: 1/z up to a factor
    "zoedepth": "metric",
    "glpn": "metric",
}
"""What a model type predicts, unless its configuration or the caller says otherwise."""


class TransformersEstimator:
    """Runs a depth network once a frame. Its numbers are passed on as they are; `domain` says what they mean.

    source: folder or hub name. domain: depth, disparity, log_depth or metric; taken from the model's type unless given,
    which a fine-tuned network (a DPT trained for metres, say) may need. processing_resolution: longest side of the
    network's input, px; None or 0: as its preprocessor says. dtype, device, offline: as for MarigoldEstimator.

    Raises ModelError for missing or damaged weights or an unknown type, UsageError for impossible settings.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        domain: Domain | None = None,
        processing_resolution: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
        name: str | None = None,
        licence: str = "unknown",
    ) -> None:
        if processing_resolution is not None and processing_resolution < 0:
            raise UsageError(f"--processing-resolution must be 0 or more, got {processing_resolution}")
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.folder = checkpoint_folder(source, offline)
        self.domain = _domain(self.folder, domain)
        self.model, self.processor = _load(self.folder, self.dtype)
        parameters_to(self.model, self.device)
        self.name, self.source, self.licence = name or Path(source).name, str(source), licence
        self.processing_resolution = processing_resolution or 0
        if self.processing_resolution and not getattr(self.processor, "keep_aspect_ratio", False):
            raise UsageError(f"{self.name} takes images of one size only: leave --processing-resolution out")

    def estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        """Depth of a batch: rgb (N, H, W, 3) uint8 sRGB -> N maps (H, W), independent of the batch they came in.

        The batch is halved while it does not fit in memory. Raises InputError for anything but such a batch,
        OutOfMemoryError if a single frame does not fit, ModelError if the network yields no finite numbers.
        """
        check_rgb(rgb)
        return run_within_memory(self._estimate, rgb)

    def provenance(self) -> dict[str, str]:
        """Checkpoint, hash of its weights and settings."""
        return {
            "name": self.name,
            "family": "transformers",
            "source": self.source,
            "licence": self.licence,
            "weights_sha256": short_sha256([self.folder / "config.json", *weight_files(self.folder)]),
            "domain": self.domain,
            "processing_resolution": str(self.processing_resolution or "the preprocessor's"),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
        }

    def _estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        height, width = rgb.shape[1:3]
        with torch.no_grad():
            pixels = self._pixels(rgb).to(self.device, self.dtype)  # (N, 3, h, w)
            depth = self.model(pixel_values=pixels).predicted_depth.float()  # (N, h', w')
            depth = self._at_frame_size(depth.flatten(0, -3), height, width)  # (N, H, W)
        if not bool(torch.isfinite(depth).all()):
            precision = str(self.dtype).removeprefix("torch.")
            raise ModelError(f"{self.name} yields no finite depth in {precision}: use float32, or get it again")
        return [RelativeDepth(np.ascontiguousarray(values.cpu().numpy()), self.domain) for values in depth]

    def _pixels(self, rgb: NDArray[np.uint8]) -> torch.Tensor:
        """(N, 3, h, w) as the checkpoint's own preprocessor makes it."""
        size: dict[str, Any] = {}
        if self.processing_resolution:
            h, w = fitted_size(rgb.shape[1], rgb.shape[2], self.processing_resolution)
            size = {"size": {"height": h, "width": w}, "keep_aspect_ratio": False}
        return self.processor(images=list(rgb), return_tensors="pt", **size).pixel_values

    def _at_frame_size(self, depth: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(N, height, width) from the network's (N, h, w), without the margin that its preprocessor added."""
        top, left = self._margin(height, width)
        size = (height + 2 * top, width + 2 * left)
        # Bilinear, where transformers takes bicubic: an overshoot at a depth edge would be a point in mid-air.
        full = F.interpolate(depth[:, None], size, mode="bilinear")[:, 0]
        return full[:, top : top + height, left : left + width]

    def _margin(self, height: int, width: int) -> tuple[int, int]:
        """ZoeDepth mirrors 3 sqrt(side / 2) pixels around the frame, to keep its boundary artefacts out of it."""
        if self.model.config.model_type != "zoedepth" or not self.processor.do_pad:
            return 0, 0
        return int(np.sqrt(height / 2) * 3), int(np.sqrt(width / 2) * 3)


def _domain(folder: Path, given: Domain | None) -> Domain:
    """What the network in `folder` predicts. Raises ModelError where neither its configuration nor the caller says."""
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if given is not None and given not in get_args(Domain):
        raise UsageError(f"unknown domain {given!r}: use one of {', '.join(get_args(Domain))}")
    if given is None and kind not in _DOMAINS:
        raise ModelError(f"{folder} is of type {kind!r}, whose output is unknown: use one of {', '.join(_DOMAINS)}")
    if given is None and config.get("depth_estimation_type") == "metric":
        return "metric"
    return given or _DOMAINS[kind]


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The network and its preprocessor. No code from the checkpoint is run, no pickle is opened."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation, __version__

    weight_files(folder)
    read_json(folder / "preprocessor_config.json")
    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    # Pillow's resampling, with or without torchvision: the same frame gives the same depth everywhere.
    pillow = {"use_fast": False} if __version__.startswith("4.") else {"backend": "pil"}
    try:
        with quiet_transformers():
            processor = AutoImageProcessor.from_pretrained(folder, **pillow, **safe)
            model, report = AutoModelForDepthEstimation.from_pretrained(
                folder, use_safetensors=True, dtype=dtype, output_loading_info=True, **safe
            )
    except Exception as error:
        raise load_error(folder, error) from error
    if report["missing_keys"]:
        raise ModelError(f"{folder} lacks weights ({sorted(report['missing_keys'])[0]}, …): get the checkpoint again")
    return model, processor
