"""Regions: squares of tiles, which models of several scales take as one sequence each.

A region of ``m`` × ``m`` tiles has ``T = m²``, counted row by row from its top left: tile ``t`` is
in row ``t // m`` and column ``t % m``. Regions are placed on a lattice of their own pitch and kept
whole, so along one row of regions every row of tiles has the same tiles: the rows of such a strip
lie one after the other in a slide's features, and a region is a strided view of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import GeometryError
from microtome.slide.types import TileGrid

REGION = "region"
"""The column of a grid that says which region a tile is in, int32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Regions:
    """The regions of a slide, sorted by (y, x).

    Attributes:
        index: (R, T) int32, the row of each tile.
        coords: (R, 5) int32 ``x, y, width, height, level`` of each region, as of a tile: the point
            at level 0, the size at the level that is read.
    """

    index: NDArray[np.int32]
    coords: NDArray[np.int32]

    def __len__(self) -> int:
        """Count the regions."""
        return len(self.index)


def find_regions(grid: TileGrid) -> Regions:
    """Find the regions of a grid's tiles by its column `REGION`.

    Args:
        grid: Of a tiler that places whole regions.

    Raises:
        GeometryError: If a region is not whole, or the grid does not say which tiles make one.
    """
    side = grid.region_tiles or 0
    numbers = grid.columns.get(REGION)
    if side < 1 or numbers is None:
        raise GeometryError(
            "These tiles are of no regions. Place them with tiler.region_tiles=6 for 6 × 6."
        )
    # Rows are sorted by (y, x), so within a region a stable sort leaves them row by row.
    order = np.argsort(numbers, kind="stable").astype(np.int32)
    found, counts = np.unique(numbers, return_counts=True)
    if (counts != side**2).any():
        broken = counts != side**2
        raise GeometryError(
            f"{broken.sum()} of {len(found)} regions do not have {side} × {side} tiles, the first "
            f"has {counts[broken][0]}. A region is whole or not there: give the tiler's tiles as "
            "they are."
        )
    index = order.reshape(-1, side**2)
    coords = grid.coords[index[:, 0]].astype(np.int32)
    coords[:, 2:4] *= side
    return Regions(index=index, coords=coords)


def view_regions(rows: NDArray[Any], index: NDArray[np.integer]) -> NDArray[Any] | None:
    """Look at what lies row by row for tiles as regions, without copying any of it.

    Args:
        rows: (N, …) of all tiles: features, or anything else.
        index: (R, T) of a slide's regions.

    Returns:
        (strips, regions, m, m, …), a view: ``view[i, j]`` is the j-th region of the i-th row of
        regions, its tiles in their rows and columns. None where rows of regions are not equally
        long, as of most tissue; `group_tiles` takes any.
    """
    count, tiles = index.shape
    side = math.isqrt(tiles)
    if not count:
        return rows[:0].reshape(0, 0, side, side, *rows.shape[1:])
    # From one row of tiles to the next it is as many as the strip is wide.
    across = int(index[0, side] - index[0, 0]) // side if side > 1 else count
    if across < 1 or count % across:
        return None
    shape = count // across, side, across, side
    regular = np.arange(index.size).reshape(shape).swapaxes(1, 2).reshape(index.shape)
    first = int(index[0, 0])
    if not np.array_equal(index, regular + first):
        return None
    strips = rows[first : first + index.size].reshape(*shape, *rows.shape[1:])
    return strips.swapaxes(1, 2)


def group_tiles(rows: NDArray[Any], index: NDArray[np.integer]) -> NDArray[Any]:
    """Group what lies row by row for tiles by regions.

    Args:
        rows: (N, …) of all tiles: features, or anything else.
        index: (R, T) of a slide's regions.

    Returns:
        (R, T, …): a view of ``rows`` where one region lies below the other, and otherwise a copy,
        since no strides lead from tiles sorted by (y, x) through regions side by side on two
        axes; `view_regions` does so on four.
    """
    view = view_regions(rows, index)
    grouped: NDArray[Any] = rows[index] if view is None else view
    return grouped.reshape(*index.shape, *rows.shape[1:])
