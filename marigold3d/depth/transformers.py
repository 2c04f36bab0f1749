"""Depth by any Hugging Face depth network: Depth Anything V1 and V2, DPT (MiDaS), ZoeDepth, GLPN, Depth Pro, TIPS."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..errors import Marigold3DError, ModelError, UsageError
from ..types import Domain, RelativeDepth
from .checkpoint import checkpoint_folder, quiet_transformers, read_json, short_sha256, weight_files
from .device import choose_device, choose_dtype, free_cache, load_error, parameters_to, run_within_memory
from .images import check_rgb, check_side
from .network_types import network_domain
from .preprocessing import Preprocessor
from .tuning import is_compiler_error

LOG = logging.getLogger("marigold3d")

ENLARGED = "bilinear"
"""How maps come to the frame's size. transformers takes bicubic, which overshoots at edges: points in mid-air."""

LEAST_INVERSE, MOST_INVERSE = 1e-4, 1e4
"""1/m between which Depth Pro's inverse depth is kept: from a tenth of a millimetre to ten kilometres."""


class TransformersEstimator:
    """Runs a depth network once a frame.

    source: folder or hub name. domain: depth, disparity, log_depth or metric; taken from the model's type unless given,
    which a fine-tuned network (a DPT trained for metres, say) may need; Depth Pro gives metres, or as "disparity" its
    canonical inverse depth. processing_resolution: longest side of the network's input, px; None or 0: as its
    preprocessor says. compiled: by torch.compile. dtype, device, offline: as for MarigoldEstimator.

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
        compiled: bool = False,
        offline: bool = False,
        name: str | None = None,
        licence: str = "unknown",
    ) -> None:
        if processing_resolution is not None and processing_resolution < 0:
            raise UsageError(f"--processing-resolution must be 0 or more, got {processing_resolution}")
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.folder = checkpoint_folder(source, offline)
        self.domain = network_domain(self.folder, domain)
        weight_files(self.folder)
        self.kind = str(read_json(self.folder / "config.json")["model_type"])
        self.preprocessor = Preprocessor(self.folder, self.kind)
        self.name, self.source, self.licence = name or Path(source).name, str(source), licence
        self.processing_resolution = processing_resolution or 0
        if self.processing_resolution and not self.preprocessor.is_resizable:
            raise UsageError(f"{self.name} takes images of one size only: leave --processing-resolution out")
        self.model = parameters_to(_load(self.folder, self.dtype), self.device)
        self.compiled = compiled
        if compiled:
            self.model.compile()

    def estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        """Depth of a batch: rgb (N, H, W, 3) uint8 sRGB -> N maps (H, W), independent of the batch they came in.

        The batch is halved while it does not fit in memory, and repeated in float32, as are all that follow, if half
        precision overflows. Raises InputError for anything but such a batch, OutOfMemoryError if a single frame does
        not fit, ModelError if the network yields no finite numbers.
        """
        check_rgb(rgb)
        check_side(rgb)
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
        depth = self._depth(rgb)
        if self.dtype != torch.float32 and not bool(torch.isfinite(depth).all()):
            LOG.warning("%s overflows in %s: from here on it runs in float32", self.name, self.dtype)
            self.dtype = torch.float32
            self.model.float()
            free_cache()
            depth = self._depth(rgb)
        if not bool(torch.isfinite(depth).all()):
            raise ModelError(f"{self.name} yields no finite depth: its weights are damaged, get the checkpoint again")
        return [RelativeDepth(np.ascontiguousarray(values.cpu().numpy()), self.domain) for values in depth]

    def _depth(self, rgb: NDArray[np.uint8]) -> torch.Tensor:
        """(N, H, W) float32 in `domain`."""
        with torch.no_grad():
            pixels = self.preprocessor(rgb, self.processing_resolution).to(self.device, self.dtype)  # (N, 3, h, w)
            try:
                output = self.model(pixel_values=pixels)
            except Exception as error:
                if self.compiled and is_compiler_error(error):
                    raise UsageError(
                        "torch.compile failed, for want of a C++ compiler perhaps: drop --compile"
                    ) from error
                raise
            depth = output.predicted_depth.float().flatten(0, -3)  # (N, h', w')
            if self.kind == "depth_pro" and self.domain == "metric":
                depth = inverse_depth(depth, output.field_of_view.float())
            depth = self._at_frame_size(depth, rgb.shape[1], rgb.shape[2])  # (N, H, W)
            if self.kind == "depth_pro" and self.domain == "metric":
                depth = 1.0 / depth.clamp(LEAST_INVERSE, MOST_INVERSE)
        return depth

    def _at_frame_size(self, depth: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(N, height, width) from the network's (N, h, w), without the margin that its preprocessor added."""
        top, left = self.preprocessor.margin(height, width)
        size = (height + 2 * top, width + 2 * left)
        full = F.interpolate(depth[:, None], size, mode=ENLARGED)[:, 0]
        return full[:, top : top + height, left : left + width]


def inverse_depth(canonical: torch.Tensor, fov_x_deg: torch.Tensor) -> torch.Tensor:
    """1/z in 1/m (N, h, w) from Depth Pro's canonical inverse depth C (N, h, w) and field of view (N,), degrees.

    1/z = C w / f (Bochkovskii et al., arXiv 2410.02073, section 3), and w / f = 2 tan(fov / 2) at every image size.
    """
    return canonical * (2.0 * torch.tan(0.5 * torch.deg2rad(fov_x_deg))).view(-1, 1, 1)


def _load(folder: Path, dtype: torch.dtype) -> Any:
    """The network. No code from the checkpoint is run, no pickle is opened."""
    from transformers import AutoModelForDepthEstimation

    try:
        with quiet_transformers():
            model, report = AutoModelForDepthEstimation.from_pretrained(
                folder,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
                trust_remote_code=False,
                local_files_only=True,
            )
    except Marigold3DError:
        raise
    except Exception as error:
        raise load_error(folder, error) from error
    for what, keys in (("lacks weights", "missing_keys"), ("has weights of other shapes", "mismatched_keys")):
        if report.get(keys):
            first = sorted(map(str, report[keys]))[0]
            raise ModelError(f"{folder} {what} ({first[:80]}, …): get the checkpoint again")
    return model
