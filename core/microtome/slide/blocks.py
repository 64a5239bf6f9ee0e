"""The order in which tiles are read: block by block, so that each piece of the file is read once.

Tiles that are neighbours share compressed tiles of the file wherever the two lattices do not fall
together. Read row by row over a whole slide, a compressed tile is long forgotten when the row below
wants it; read in squares, only those on the rim of a square are wanted twice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from microtome.slide.types import TileGrid

BLOCK_SIDE = 2048
"""Of a square in pixels of the level read: 12 MiB of RGB, small enough for every thread to hold
one, large enough that its rim, where tiles are wanted twice, is a small part of it."""


def block_order(
    grid: TileGrid, *, side: int = BLOCK_SIDE, striped: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order a grid's tiles by squares of its level, each square's tiles in the grid's order.

    Args:
        grid: The tiles.
        side: Of a square, in pixels of the level read. A tile belongs to the square that its
            corner lies in.
        striped: Whether the level is stored in strips across the whole slide: then a row of tiles
            takes the place of a square.

    Returns:
        (n,) rows of the grid, and (n,) the number of each one's square: ascending.
    """
    if not len(grid):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    geometry = grid.geometry
    # Of whole tiles, counted from the first one: squares that cut no tile in two.
    across, down = (max(1, side // pitch) * pitch for pitch in geometry.pitch)
    at = grid.coords[:, :2].astype(np.float64) / geometry.level_downsample
    x, y = np.rint(at - at.min(axis=0)).astype(np.int64).T
    if striped:
        number = y // geometry.pitch[1]
    else:
        number = (y // down) * (x.max() // across + 1) + x // across
    order = np.argsort(number, kind="stable")
    return order, number[order]
