"""The embedded estimator: a small network in the wheel, so that a machine without any checkpoint can turn a clip
into 3D.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from importlib import resources

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..errors import ModelError
from ..types import Domain, RelativeDepth
from .compact_network import CompactNetwork
from .device import choose_device, in_parallel, parameters_to, run_within_memory
from .images import check_rgb, resized, rgb_tensor
from .upsampling import joint_bilateral

LONGEST_SIDE_PX = 224  # the largest size it was trained at; finer pictures lose the layout
MULTIPLE_PX = 32  # the encoder's coarsest stride


class CompactEstimator:
    """Log z-depth up to a shift an image, in one deterministic pass; `uncertainty` is one sigma of that log depth.

    processing_resolution: longest side in pixels at which the network looks; 0 takes the default.
    """

    name = "compact"
    domain: Domain = "log_depth"

    def __init__(self, device: str = "auto", processing_resolution: int = 0) -> None:
        self.device = choose_device(device)
        self.longest_side_px = processing_resolution or LONGEST_SIDE_PX
        self._weights_hash, network = load_network()
        self._network = parameters_to(network.to(memory_format=torch.channels_last), self.device)

    def estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        """rgb (N, H, W, 3) uint8 sRGB -> N maps (H, W); frame by frame, so that no frame depends on its neighbours."""
        check_rgb(rgb)

        def one(i: int) -> RelativeDepth:
            return run_within_memory(self._estimate_one, rgb[i : i + 1])[0]

        return list(in_parallel(one, len(rgb), self.device))

    def provenance(self) -> dict[str, str]:
        """What produced the numbers."""
        return {
            "model": "compact",
            "weights_sha256": self._weights_hash,
            "licence": "Apache-2.0",
            "processing_resolution": str(self.longest_side_px),
        }

    def _estimate_one(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        image = rgb_tensor(rgb, self.device)  # (1, 3, H, W)
        size = processing_size(image.shape[2], image.shape[3], self.longest_side_px)
        small = resized(image, size, antialias=True)
        with torch.inference_mode():
            log_depth, log_scale = self._network(small.contiguous(memory_format=torch.channels_last))
        sigma = math.sqrt(2.0) * log_scale.exp()  # of a Laplace distribution of scale b: sqrt(2) b
        values, uncertainty = joint_bilateral(torch.cat((log_depth, sigma), 1)[0], small[0], image[0]).cpu()
        return [RelativeDepth(_numpy(values), "log_depth", _numpy(uncertainty))]


def _numpy(image: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(image.numpy(), dtype=np.float32)


def processing_size(height: int, width: int, longest_px: int) -> tuple[int, int]:
    """(h, w) near `longest_px` on the longer side, both multiples of MULTIPLE_PX, the aspect kept to within
    rounding.
    """
    scale = longest_px / max(height, width) / MULTIPLE_PX
    return max(1, round(height * scale)) * MULTIPLE_PX, max(1, round(width * scale)) * MULTIPLE_PX


@cache
def _weight_bytes() -> bytes:
    try:
        return resources.files("marigold3d.depth").joinpath("weights/compact.safetensors").read_bytes()
    except OSError:
        raise ModelError(
            "the weights of the compact network are missing: reinstall marigold3d, or choose another --model"
        ) from None


def load_network(weights: bytes | None = None) -> tuple[str, CompactNetwork]:
    """SHA-256 of the weights and the network that holds them; by default those in the package.

    Raises ModelError if damaged.
    """
    content = _weight_bytes() if weights is None else weights
    network = CompactNetwork()
    try:
        tensors = {name: tensor.float() for name, tensor in load(content).items()}
        network.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"the weights of the compact network are damaged ({reason}): reinstall marigold3d") from None
    return hashlib.sha256(content).hexdigest(), network.eval()
