"""The embedded estimator: a small network in the wheel, so that a machine without any checkpoint can turn a clip
into 3D.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
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
from .device import choose_device, cores_for, in_parallel, parameters_to, run_within_memory
from .images import check_rgb, resized, rgb_tensor
from .upsampling import joint_bilateral

MULTIPLE_PX = 32  # the encoder's coarsest stride


@dataclass(frozen=True)
class Look:
    """One pass of the network: at which size (longest side, px), and whether mirrored left to right."""

    longest_px: int
    mirrored: bool = False


LOOKS = (Look(288), Look(192, mirrored=True))
"""Fine edges, and the layout of the whole, which coarse pictures show it better. What the looks do not share is noise:
their mean is more accurate than either (measured in weights/MODEL_CARD.md)."""


class CompactEstimator:
    """Log z-depth up to a shift an image, deterministic; `uncertainty` is one sigma of that log depth.

    processing_resolution: longest side in pixels at which the network looks, once; 0: the mean of LOOKS. weights: of
    another training, as safetensors; those in the package unless given.
    """

    name = "compact"
    domain: Domain = "log_depth"

    def __init__(self, device: str = "auto", processing_resolution: int = 0, weights: bytes | None = None) -> None:
        self.device = choose_device(device)
        self.frames_at_once = cores_for(self.device)
        self.looks = (Look(processing_resolution),) if processing_resolution else LOOKS
        self._weights_hash, network = load_network(weights)
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
            "processing_resolution": ", ".join(
                f"{look.longest_px}{' mirrored' if look.mirrored else ''}" for look in self.looks
            ),
        }

    def _estimate_one(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        image = rgb_tensor(rgb, self.device)  # (1, 3, H, W)
        with torch.inference_mode():
            seen = [self._look(image, look) for look in self.looks]
            finest, guide = max(seen, key=lambda one: one[0].shape[-1])
            log_depth, sigma = mean_of_looks([maps for maps, _ in seen], finest.shape[-2:])
            values, uncertainty = joint_bilateral(torch.stack((log_depth, sigma)), guide[0], image[0]).cpu()
        return [RelativeDepth(_numpy(values), "log_depth", _numpy(uncertainty))]

    def _look(self, image: Tensor, look: Look) -> tuple[Tensor, Tensor]:
        """Log depth and its sigma (1, 2, h, w), and the picture (1, 3, h, w) they were found in."""
        small = resized(image, processing_size(image.shape[2], image.shape[3], look.longest_px), antialias=True)
        seen = small.flip(-1) if look.mirrored else small
        log_depth, log_scale = self._network(seen.contiguous(memory_format=torch.channels_last))
        maps = torch.cat((log_depth, math.sqrt(2.0) * log_scale.exp()), 1)  # Laplace of scale b: sigma = sqrt(2) b
        return (maps.flip(-1) if look.mirrored else maps), small


def mean_of_looks(looks: list[Tensor], size: torch.Size) -> Tensor:
    """Mean (2, *size) of log depth and sigma of several looks (1, 2, h, w), whose shifts are brought together first."""
    total = torch.zeros((2, *size), device=looks[0].device)
    for maps in looks:
        log_depth, sigma = resized(maps, tuple(size), antialias=False)[0]  # type: ignore[arg-type]
        total += torch.stack((log_depth - log_depth.median(), sigma))
    return total / len(looks)


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
