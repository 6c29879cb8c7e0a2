"""Colour files of 16 bits a channel, of which PIL decodes the upper eight: dark, where the camera has 10 or 12."""

from __future__ import annotations

import sys
from typing import IO, Any

import numpy as np
from PIL import Image

PLANES = 284  # tag of a TIFF file, 2: each channel by itself
BITS = 258  # tag of a TIFF file: bits of each channel
# PIL's name of an order of bytes -> of the one by which it decodes the lower byte of each value in place of the upper.
LOWER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def is_deep_colour(file: Image.Image) -> bool:
    """Whether a PNG or TIFF file, opened and not yet loaded, has colours of 16 bits a channel."""
    deep = [_raw_mode(tile).partition(";16")[1] for tile in getattr(file, "tile", ())]
    return (
        file.format in ("PNG", "TIFF") and file.mode in ("RGB", "RGBA", "RGBX") and any(deep) and not _in_planes(file)
    )


def has_deep_planes(file: Image.Image) -> bool:
    """Whether an opened TIFF file has colours of 16 bits in separate planes, which PIL misreads where nothing packs them."""
    tags = getattr(file, "tag_v2", {})
    bits = tags.get(BITS, ())
    return _in_planes(file) and len(bits) > 1 and max(bits) > 8


def _in_planes(file: Image.Image) -> bool:
    return bool(getattr(file, "tag_v2", {}).get(PLANES) == 2)


def deep_colours(source: str | IO[bytes]) -> np.ndarray:
    """All bits of the colours of a file, uint16 [H, W, 3], as they are stored, decoded byte by byte."""
    bytes_of = []
    for lower in (False, True):
        file: Any
        with Image.open(source, formats=("PNG", "TIFF")) as file:
            if lower:
                file.tile = [_of_lower_byte(tile) for tile in file.tile]
            file.load()  # NumPy would hide what is wrong
            bytes_of.append(np.asarray(file)[..., :3].astype(np.uint16))
    return bytes_of[0] << 8 | bytes_of[1]


def _raw_mode(tile: Any) -> str:
    """How the bytes of a part of a file are packed, `RGB;16B` for example."""
    how = tile[3]
    return str(how[0] if isinstance(how, tuple) and how else how)


def _of_lower_byte(tile: Any) -> Any:
    name = _raw_mode(tile)
    swapped = name[:-1] + LOWER[name[-1]]
    how = (swapped, *tile[3][1:]) if isinstance(tile[3], tuple) else swapped
    return tile._replace(args=how) if hasattr(tile, "_replace") else (*tile[:3], how)  # a plain tuple before PIL 11.2
