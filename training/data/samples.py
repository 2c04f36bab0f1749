"""What every source of training data yields, and how it says that a file cannot be used."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from marigold3d.errors import InputError

ENDLESS = 2**62  # length of a source that has no end


class CorruptSample(InputError):
    """A file of a data set that cannot be read; the message names the file. Training skips and counts these."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture and its truth, on one device.

    rgb (3, H, W) uint8 sRGB; depth_m (1, H, W) float32 z-depth in metres, 0 where unknown; valid (1, H, W) bool: which
    depths count (inside the data set's range). `name` says which one it is.
    """

    rgb: Tensor
    depth_m: Tensor
    valid: Tensor
    name: str


class Source(Protocol):
    """A data set: `source[i]` depends on the source's settings and on i alone, so that a run can be resumed exactly.

    Raises CorruptSample for a damaged file and IndexError past the end. An endless source has a length of ENDLESS.
    """

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
