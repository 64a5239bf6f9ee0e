"""Pyramids of JPEG tiles in every layout that scanners and converters write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from imagecodecs import jpeg8_encode

APERIO = "Aperio Image Library v12\r\n{w}x{h} [0,0 {w}x{h}] JPEG/RGB Q=80|AppMag = 20|MPP = 0.4990"


@dataclass(frozen=True)
class Recipe:
    """What a slide is to be.

    Attributes:
        size: (width, height) of level 0.
        sizes: Of the other levels; the usual ones if None.
        tile: Side of the tiles.
        ycbcr: Colours of the JPEG streams: YCbCr or RGB.
        subsampling: Of YCbCr: ``"420"``, ``"422"`` or ``"444"``.
        shared: Whether tables are kept once for a level, and streams have no markers of their own
            (JFIF, Adobe) that tell their colours.
        aperio: Whether it is Aperio's; a plain TIFF otherwise.
        bigtiff: Whether it is a BigTIFF.
        byteorder: ``"<"`` or ``">"``.
        quality: Of JPEG.
        padding: Written behind each stream, as part of its tile.
    """

    size: tuple[int, int] = (700, 500)
    sizes: Sequence[tuple[int, int]] | None = None
    tile: int = 256
    ycbcr: bool = True
    subsampling: str = "420"
    shared: bool = False
    aperio: bool = True
    bigtiff: bool = False
    byteorder: str = "<"
    quality: int = 80
    padding: bytes = b""

    @property
    def all_sizes(self) -> list[tuple[int, int]]:
        width, height = self.size
        return [self.size, *(self.sizes if self.sizes is not None else [(width // 4, height // 4)])]


def picture(width: int, height: int) -> np.ndarray:
    """Paint blobs of all colours with some noise: no two regions are alike."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def write(path: Path, recipe: Recipe = Recipe(), **tags: object) -> Path:
    """Write a slide.

    Args:
        path: Of the file.
        recipe: What it is to be.
        **tags: Of tifffile's ``write``, of every level.
    """
    base = picture(*recipe.size)
    options = {"bigtiff": recipe.bigtiff, "byteorder": recipe.byteorder}
    with tifffile.TiffWriter(path, **options) as tiff:
        for index, size in enumerate(recipe.all_sizes):
            image = cv2.resize(base, size, interpolation=cv2.INTER_AREA) if index else base
            _write_level(tiff, image, recipe, subfiletype=min(index, 1), **tags)
            if index == 0 and recipe.aperio:  # the thumbnail
                tiff.write(image[::4, ::4], photometric="rgb", metadata=None, rowsperstrip=16)
    return path


def tiles(image: np.ndarray, recipe: Recipe) -> tuple[list[bytes], bytes | None]:
    """Encode a level's tiles, and give what they have in common."""
    side = recipe.tile
    down, across = (-(-extent // side) * side for extent in image.shape[:2])
    padded = np.pad(
        image, ((0, down - image.shape[0]), (0, across - image.shape[1]), (0, 0)), mode="edge"
    )
    streams = [
        jpeg8_encode(
            np.ascontiguousarray(padded[y : y + side, x : x + side]),
            level=recipe.quality,
            colorspace="RGB",
            outcolorspace="YCBCR" if recipe.ycbcr else "RGB",
            subsampling=recipe.subsampling if recipe.ycbcr else None,
        )
        for y in range(0, down, side)
        for x in range(0, across, side)
    ]
    if not recipe.shared:
        return streams, None
    split = [_split(stream) for stream in streams]
    return [stream for stream, _ in split], split[0][1]


def _write_level(
    tiff: tifffile.TiffWriter, image: np.ndarray, recipe: Recipe, **tags: object
) -> None:
    width, height = recipe.size
    streams, tables = tiles(image, recipe)
    description = APERIO.format(w=width, h=height) if recipe.aperio else ""
    options = {
        "shape": image.shape,
        "dtype": np.uint8,
        "tile": (recipe.tile, recipe.tile),
        "compression": "jpeg",
        "photometric": "rgb",
        "compressionargs": {"outcolorspace": "ycbcr" if recipe.ycbcr else "rgb"},
        "jpegtables": tables,
        "metadata": None,
        "description": description,
    }
    tiff.write((stream + recipe.padding for stream in streams), **(options | tags))


def _split(stream: bytes) -> tuple[bytes, bytes]:
    """Take tables and application markers out of a stream."""
    kept, tables, at = b"\xff\xd8", b"\xff\xd8", 2
    while stream[at + 1] != 0xDA:
        size = 2 + int.from_bytes(stream[at + 2 : at + 4])
        segment, at = stream[at : at + size], at + size
        if segment[1] in (0xC4, 0xDB):
            tables += segment
        elif not 0xE0 <= segment[1] < 0xF0:
            kept += segment
    return kept + stream[at:], tables + b"\xff\xd9"
