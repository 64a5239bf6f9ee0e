"""Pictures of a whole slide as pyramidal TIFF, for viewers of slides."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from microtome.store.atomic import publish, wrap_errors

TILE = 256
"""Side of the file's tiles, and the longest side of its coarsest level."""

_BIG = 3 << 30
"""Bytes of uncompressed pixels from which offsets of 32 bits may not do."""

_QUALITY = 92
_NOTE = "microtome"

Size = tuple[int, int]


def pyramid_sizes(width: int, height: int) -> list[Size]:
    """Give the (width, height) of a picture's levels: halves, down to one that fits a tile."""
    sizes = [(width, height)]
    while max(sizes[-1]) > TILE:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def write_pyramid(
    path: Path,
    size: Size,
    draw: Callable[[Size], NDArray[np.uint8]],
    *,
    extent_um: tuple[float, float] | None,
    note: Mapping[str, Any],
) -> None:
    """Write a picture as a tiled, pyramidal TIFF, atomically.

    Every level is a directory of its own, tagged as a reduced image, with its own resolution, so
    that OpenSlide, QuPath and Bio-Formats read the file as a slide. Colours are JPEG; grey values,
    which mean something, are compressed without loss.

    Args:
        path: The final name.
        size: (width, height) of the finest level.
        draw: Gives a level of that size: (h, w, 3) uint8 RGB, or (h, w) uint8. Each covers the
            whole extent.
        extent_um: (width, height) of what is shown in µm; None where that is not known.
        note: What the picture shows, in plain values; kept as its description, for `read_note`.

    Raises:
        StoreError: If it cannot be written.
    """
    sizes = pyramid_sizes(*size)
    is_big = sum(width * height * 3 for width, height in sizes) > _BIG
    description = json.dumps({_NOTE: dict(note)})
    with (
        publish(path) as private,
        wrap_errors(path),
        tifffile.TiffWriter(private, bigtiff=is_big) as file,
    ):
        for number, each in enumerate(sizes):
            image = draw(each)
            file.write(
                image,
                tile=(TILE, TILE),
                subfiletype=1 if number else 0,
                metadata=None,
                software="microtome",
                description="" if number else description,
                **_compression(image),
                **_resolution(each, extent_um),
            )


def read_note(path: Path) -> dict[str, Any] | None:
    """Read what a picture of `write_pyramid` shows; None where there is none that says."""
    if not path.is_file():
        return None
    try:
        with tifffile.TiffFile(path) as file:
            note = json.loads(file.pages.first.description)[_NOTE]
    except (OSError, KeyError, ValueError, tifffile.TiffFileError):
        return None
    return dict(note)


def _compression(image: NDArray[np.uint8]) -> dict[str, Any]:
    if image.ndim == 2:
        return {"photometric": "minisblack", "compression": "deflate"}
    jpeg = {"compression": "jpeg", "compressionargs": {"level": _QUALITY}}
    # Full colour resolution: the border of a tile is a border of colour.
    return {"photometric": "rgb", "subsampling": (1, 1), **jpeg}


def _resolution(size: Size, extent_um: tuple[float, float] | None) -> dict[str, Any]:
    if extent_um is None:
        return {}
    x, y = (pixels / (um * 1e-4) for pixels, um in zip(size, extent_um, strict=True))
    return {"resolution": (x, y), "resolutionunit": "CENTIMETER"}
