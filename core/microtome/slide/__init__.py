"""Slides, masks and tiles: values and pure functions on them, and the grid tiler.

The configuration of the grid lives here because this module is what the entry point names: it
is imported by every listing, so it brings neither numpy nor any code that tiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from microtome.plugin import TilerSpec, hookimpl, option, runtime

DEFAULT_SIZE = 256
DEFAULT_MAGNIFICATION = 20.0
"""What tiles are where neither the user nor an encoder's card says."""


class TissueRule(Enum):
    """How a tile is judged by the tissue mask."""

    fraction = "fraction"
    four_point = "four_point_of_contours"


class Edge(Enum):
    """What becomes of tiles that overhang the slide's right and bottom edges."""

    drop = "drop"
    pad = "pad"


class Lattice(Enum):
    """Where strides and sizes are whole pixels: at the level that is read, or at level 0."""

    level = "level"
    slide = "slide"


class Resample(Enum):
    """How a region is brought to the tile's size; the values are the recipes' names in files."""

    bilinear = "pil-bilinear"
    area = "area"


@dataclass
class GridConfig:
    """Options of the grid tiler.

    ``magnification``, ``mpp`` and ``level`` exclude each other. The default of ``min_tissue``
    treats a straight tissue edge along a tile's side as the field's four-point rule does.
    """

    name: str = runtime(
        "", help="Folder of this tiling below the output; auto names it by its geometry."
    )
    size: int | None = option(
        None, help="Tile side in pixels at the target; the encoders' cards say, else 256."
    )
    step: int | None = option(
        None, help="Stride in pixels at the target; the size if not given, smaller to overlap."
    )
    magnification: float | None = option(
        None, help="Nominal target, 20 for 20x; the encoders' cards say, else 20."
    )
    mpp: float | None = option(None, help="Physical target in µm per pixel, instead.")
    level: int | None = option(
        None,
        help="Level of the slide, 0 being the finest, whose pixels tiles are made of as they are "
        "stored, instead.",
    )
    min_tissue: float = option(
        0.25, help="Least share of a tile's area that is tissue, 0..1, for rule=fraction."
    )
    rule: TissueRule = option(
        TissueRule.fraction,
        help="fraction keeps tiles with min_tissue, four_point those with one of four probes in.",
    )
    edge: Edge = option(
        Edge.drop, help="drop leaves out tiles that overhang the slide, pad fills them up."
    )
    origin: list[int] = option(
        [0, 0], help="Top left corner of the first tile, x and y in level-0 pixels."
    )
    max_upsample: float = option(
        1.05, help="How much coarser than the target the level that is read may be."
    )
    level_tolerance: float = option(
        0.0,
        help="A level whose downsample differs from the target's by less than this is the one "
        "read: 0.01 for levels that are not exactly 2 or 4 times smaller.",
    )
    lattice: Lattice = option(
        Lattice.level,
        help="level has strides of whole pixels of the level that is read, slide of level 0; "
        "tiles may then lie between pixels of a coarser level.",
    )
    min_hole_px: float = option(
        16.0, help="Least area of a hole in mask pixels, for rule=four_point."
    )
    max_holes: int | None = option(
        10,
        help="How many holes of a slide count for rule=four_point, the largest; null for all.",
    )
    min_region_fraction: float = option(
        0.0,
        help="Least area that a contour encloses, as a share of the mask, for rule=four_point.",
    )
    resample: Resample = option(
        Resample.bilinear, help="bilinear is Pillow's antialiased filter, area the exact mean."
    )
    region_tiles: int | None = option(
        None,
        help="Tiles along a region's side, 2 or more: tissue is judged by whole regions, and all "
        "tiles of a region are kept.",
    )
    region_size: int | None = runtime(
        None, help="A region's side in pixels at the target: size × region_tiles, as it is."
    )


@hookimpl
def microtome_tilers() -> Iterable[TilerSpec]:
    """Register the grid tiler."""
    yield TilerSpec(
        name="grid",
        target="microtome.slide.tiling:GridTiler",
        summary="Square tiles on one lattice per slide, kept by the tissue under them",
        config=GridConfig,
    )
