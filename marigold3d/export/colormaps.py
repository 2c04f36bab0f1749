"""Colours for a quantity in 0..1, by matplotlib's names, without matplotlib."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

LEVELS = 1024  # of a lookup table: finer than a picture's 256 shades a channel

# ColorBrewer's 11-class Spectral (Apache-2.0), matplotlib's own maps (CC0) and turbo (Apache-2.0), evenly sampled.
_STOPS = {
    "Spectral": "9e0142 d53e4f f46d43 fdae61 fee08b ffffbf e6f598 abdda4 66c2a5 3288bd 5e4fa2",
    "viridis": "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c "
    "1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725",
    "magma": "000004 0a0822 1d1147 36106b 51127c 6a1c81 832681 9c2e7f b73779 "
    "d0416f e75263 f56b5c fc8961 fea772 fec488 fde2a3 fcfdbf",
    "inferno": "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 "
    "d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4",
    "plasma": "0d0887 310597 4c02a1 6600a7 7e03a8 9511a1 aa2395 bc3587 cc4778 "
    "da5a6a e66c5c f0804e f89540 fdac33 fdc527 f8df25 f0f921",
    "turbo": "30123b 4040a2 466be3 4294ff 28bceb 18ddc2 32f298 6dfe62 a4fc3c "
    "cdec34 eecf3a fdac34 fb7e21 eb500e d02f05 a91601 7a0403",
    "gray": "000000 ffffff",
}
COLORMAPS = tuple(_STOPS)
"""Names of the colour maps; with `_r` behind it, a map runs the other way."""


def color_stops(name: str) -> NDArray[np.float64]:
    """(N, 3) colours, 0 to 255, evenly spaced along the colour map of this name."""
    return np.array([list(bytes.fromhex(stop)) for stop in _STOPS[name].split()], np.float64)


@cache
def colormap(name: str) -> NDArray[np.uint8]:
    """(LEVELS, 3) uint8 sRGB of the values 0 to 1. UsageError for an unknown name."""
    base = name.removesuffix("_r")
    if base not in _STOPS:
        raise UsageError(f"unknown colour map {name!r}: use {', '.join(COLORMAPS)}, or one of them with _r behind it")
    stops = color_stops(base)
    place = np.linspace(0, len(stops) - 1, LEVELS)
    channels = [np.interp(place, np.arange(len(stops)), stops[:, c]) for c in range(3)]
    table = np.round(np.stack(channels, -1)).astype(np.uint8)
    table = table if name == base else table[::-1].copy()
    table.flags.writeable = False  # it is shared
    return table
