"""The slides that are measured on: given ones, or mosaics of synthetic tissue made once.

A mosaic is put together tile by tile while it is written, so a slide of 40,000 x 30,000 pixels
needs little memory and about a minute. Blocks are shrunk for the coarser levels: they divide every
level's grid, so each level is the shrunk level 0 exactly, but for the compression.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.testing.synthetic import MASK_DOWNSAMPLE, make_plain_image

BLOCK = 256
"""Side of the mosaic's pieces at level 0; every level's downsample divides it."""

MPP = 0.25
MAGNIFICATION = 40
QUALITY = 80
TISSUE = 0.3
"""Share of the blocks that are tissue."""


@dataclass(frozen=True)
class MosaicRecipe:
    """What a slide is to be.

    Attributes:
        size: (width, height) of level 0.
        levels: Downsample of each level.
        tile: Side of its JPEG tiles.
    """

    size: tuple[int, int]
    levels: tuple[int, ...] = (1, 4, 16)
    tile: int = 256


FULL: Mapping[str, MosaicRecipe] = {
    "S": MosaicRecipe((8_000, 6_000)),
    "M": MosaicRecipe((40_000, 30_000)),
    "M2": MosaicRecipe((40_000, 30_000), levels=(1, 2, 4, 8, 16)),
    "M240": MosaicRecipe((40_000, 30_000), tile=240),
}
QUICK: Mapping[str, MosaicRecipe] = {
    "S": MosaicRecipe((2_000, 1_500)),
    "M": MosaicRecipe((4_000, 3_000)),
    "M2": MosaicRecipe((4_000, 3_000), levels=(1, 2, 4, 8, 16)),
    "M240": MosaicRecipe((4_000, 3_000), tile=240),
}


@dataclass
class Slides:
    """Gives slides by name, making those that nobody gave.

    Attributes:
        given: Ready files by name.
        cache: Where made ones are kept.
        recipes: How to make them.
    """

    given: Mapping[str, Path]
    cache: Path
    recipes: Mapping[str, MosaicRecipe]
    used: dict[str, str] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Give a slide's path; makes the slide first if it is not there yet."""
        path = self.given.get(name) or self._made(name)
        self.used[name] = path.name if name in self.given else f"mosaic {self.recipes[name]}"
        return path

    def _made(self, name: str) -> Path:
        recipe = self.recipes[name]
        width, height = recipe.size
        label = "-".join(map(str, recipe.levels))
        path = self.cache / f"{name}_{width}x{height}_{label}_{recipe.tile}px.svs"
        if not path.exists():
            print(f"making {path}, once", flush=True)
            self.cache.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            make_mosaic(partial, recipe)
            partial.replace(path)
        return path


def make_mosaic(path: Path, recipe: MosaicRecipe) -> None:
    """Write an Aperio-style JPEG pyramid with about a third of it tissue."""
    import tifffile

    mosaic = _Mosaic(recipe, _cut_blocks(path))
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, downsample in enumerate(recipe.levels):
            height, width = mosaic.shape(downsample)
            tiff.write(
                mosaic.tiles(downsample),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(recipe.tile, recipe.tile),
                subfiletype=0 if number == 0 else 1,
                description=_description(recipe, (width, height)),
                **_page(downsample),
            )
            if number == 0:  # Aperio's order: level 0, the thumbnail, the other levels
                _write_thumbnail(tiff, mosaic)


class _Mosaic:
    """Tissue where smooth noise is high, glass elsewhere; the same for the same recipe."""

    def __init__(self, recipe: MosaicRecipe, blocks: _Blocks) -> None:
        self.recipe = recipe
        self._blocks = blocks

    @cached_property
    def _chosen(self) -> NDArray[np.int64]:
        """Choose the block of every place, (rows, columns)."""
        rng = np.random.default_rng(0)
        columns, rows = (-(-side // BLOCK) for side in self.recipe.size)
        noise = _smooth(rng, columns, rows)
        tissue = noise > np.quantile(noise, 1 - TISSUE)
        among_tissue = rng.integers(self._blocks.glass, len(self._blocks.pixels), tissue.shape)
        return np.where(tissue, among_tissue, rng.integers(0, self._blocks.glass, tissue.shape))

    def shape(self, downsample: int) -> tuple[int, int]:
        """Give (height, width) of a level."""
        width, height = self.recipe.size
        return -(-height // downsample), -(-width // downsample)

    def region(self, top: int, left: int, side: int, downsample: int) -> NDArray[np.uint8]:
        """Give a square of a level; grey where it leaves the mosaic."""
        out = np.full((side, side, 3), 235, np.uint8)
        step = BLOCK // downsample
        blocks = self._blocks.shrunk(downsample)
        rows, columns = self._chosen.shape
        for row in range(top // step, min(-(-(top + side) // step), rows)):
            for column in range(left // step, min(-(-(left + side) // step), columns)):
                block = blocks[self._chosen[row, column]]
                y, x = row * step - top, column * step - left
                target = out[max(y, 0) : y + step, max(x, 0) : x + step]
                source = block[max(-y, 0) :, max(-x, 0) :]
                target[:] = source[: target.shape[0], : target.shape[1]]
        return out

    def tiles(self, downsample: int) -> Iterator[NDArray[np.uint8]]:
        """Give a level's tiles, row by row."""
        height, width = self.shape(downsample)
        side = self.recipe.tile
        for top in range(0, height, side):
            for left in range(0, width, side):
                yield self.region(top, left, side, downsample)


@dataclass(eq=False)
class _Blocks:
    """The pieces of a mosaic.

    Attributes:
        pixels: (BLOCK, BLOCK, 3) each, glass first.
        glass: How many of them are glass.
    """

    pixels: list[NDArray[np.uint8]]
    glass: int
    _shrunk: dict[int, list[NDArray[np.uint8]]] = field(default_factory=dict)

    def shrunk(self, downsample: int) -> list[NDArray[np.uint8]]:
        """Give every block, by the mean of its pixels, for a level."""
        import cv2

        side = BLOCK // downsample
        if downsample not in self._shrunk:
            self._shrunk[downsample] = [
                np.asarray(cv2.resize(block, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
                for block in self.pixels
            ]
        return self._shrunk[downsample]


def _cut_blocks(near: Path) -> _Blocks:
    """Cut glass and tissue out of a synthetic image, each block also upside down."""
    image_path = near.with_suffix(".png")
    source = make_plain_image(image_path, size=(3072, 2048), tissue=0.6, mpp=MPP)
    image_path.unlink()
    glass: list[NDArray[np.uint8]] = []
    tissue: list[NDArray[np.uint8]] = []
    for top in range(0, source.image.shape[0] - BLOCK + 1, BLOCK // 2):
        for left in range(0, source.image.shape[1] - BLOCK + 1, BLOCK // 2):
            truth = source.tissue[_at_mask(top), _at_mask(left)]
            if truth.all() or not truth.any():
                block = source.image[top : top + BLOCK, left : left + BLOCK]
                (tissue if truth.all() else glass).extend([block, block[::-1, ::-1]])
    return _Blocks([*glass, *tissue], len(glass))


def _at_mask(start: int) -> slice:
    return slice(start // MASK_DOWNSAMPLE, (start + BLOCK) // MASK_DOWNSAMPLE)


def _smooth(rng: np.random.Generator, columns: int, rows: int) -> NDArray[np.float32]:
    """Give noise with a few bumps across, low on the rim."""
    import cv2

    noise = np.zeros((rows, columns), np.float32)
    for bumps, height in ((6, 1.0), (14, 0.35)):
        grid = rng.standard_normal((bumps, bumps), dtype=np.float32)
        noise += height * cv2.resize(grid, (columns, rows), interpolation=cv2.INTER_CUBIC)
    x, y = np.linspace(0, 1, columns), np.linspace(0, 1, rows)[:, None]
    rim = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    return np.asarray(noise - 50 * np.clip(0.06 - rim, 0, None), np.float32)


def _write_thumbnail(tiff: Any, mosaic: _Mosaic) -> None:
    import cv2

    width, height = mosaic.recipe.size
    side = max(-(-width // 16), -(-height // 16))
    whole = mosaic.region(0, 0, side, 16)[: -(-height // 16), : -(-width // 16)]
    image = cv2.resize(whole, (1024, max(1, 1024 * height // width)))
    tiff.write(
        image,
        rowsperstrip=16,
        description=f"Aperio Image Library v12.0.15 \r\n{width}x{height} -> "
        f"{image.shape[1]}x{image.shape[0]} - |",
        **_page(16),
    )


def _page(downsample: int) -> dict[str, Any]:
    per_cm = 1e4 / (MPP * downsample)
    return {
        "photometric": "rgb",  # tifffile converts to YCbCr, and tags the page so
        "compression": "jpeg",
        "compressionargs": {"level": QUALITY},
        "subsampling": (2, 2),
        "resolution": (per_cm, per_cm),
        "resolutionunit": "CENTIMETER",
        "metadata": None,
        "software": "microtome",
    }


def _description(recipe: MosaicRecipe, size: tuple[int, int]) -> str:
    (width, height), tile = recipe.size, recipe.tile
    smaller = "" if size == recipe.size else f" -> {size[0]}x{size[1]}"
    return (
        f"Aperio Image Library v12.0.15 \r\n{width}x{height} [0,0 {width}x{height}] "
        f"({tile}x{tile}){smaller} JPEG/RGB Q={QUALITY}|AppMag = {MAGNIFICATION}|MPP = {MPP}"
    )
