"""Whether a file can hold what it claims to: memory and time are bounded by its bytes."""

from __future__ import annotations

import math
from pathlib import Path

from microtome.errors import SlideOpenError

TILE_LIMIT = 1 << 27
"""Pixels of a tile that is decoded as a whole: 11,585 a side."""

DIRECTORY_LIMIT = 1024
"""Directories of a TIFF at most: a slide has a dozen."""

STRIP_LIMIT = 1 << 18
"""Strips of a level: each is read and decoded by itself."""

TAG_BYTES = 1 << 26
"""Bytes that all tags of a TIFF may claim together, however small it is."""

_UNASKED = 1 << 28
"""Pixels of a level that any file may claim: 16,384 a side."""

_PER_BYTE = 1000
"""Pixels for each byte of a file: blank glass as JPEG has 150, an image of tissue 10."""

_SEGMENT_UNASKED = 1 << 28
_SEGMENT_RATIO = 300
"""The same of a strip's bytes: twice what JPEG makes of blank glass."""


def check_claim(path: Path, width: int, height: int) -> None:
    """Refuse a level that one file cannot hold.

    Args:
        path: The file, which holds the whole slide.
        width: Of the level in pixels.
        height: Of the level in pixels.

    Raises:
        SlideOpenError: If it claims far more pixels than it has bytes for.
    """
    size = path.stat().st_size
    if width * height > max(_UNASKED, _PER_BYTE * size):
        raise SlideOpenError(f"it claims {width} × {height} pixels, but has only {size} bytes")


def check_tile(width: int, height: int) -> None:
    """Refuse tiles that are too large to be decoded as a whole.

    Raises:
        SlideOpenError: If they are.
    """
    if width * height > TILE_LIMIT:
        raise SlideOpenError(
            f"it claims tiles of {width} × {height} pixels, each to be decoded as a whole: convert "
            "it to a TIFF of smaller tiles first"
        )


def check_expansion(shape: tuple[int, ...], stored: int) -> None:
    """Refuse a compressed segment of a few bytes that would fill the memory.

    Args:
        shape: Of its pixels, decoded.
        stored: Its bytes.

    Raises:
        ValueError: If it would.
    """
    size = math.prod(shape)
    if size > max(_SEGMENT_UNASKED, _SEGMENT_RATIO * stored):
        raise ValueError(f"its {stored} bytes claim to be {size >> 20} MiB of pixels")
