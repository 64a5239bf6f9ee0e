"""Regions in a store: which rows make one, and features by region out of features by tile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import StoreError
from microtome.slide.regions import Regions, group_tiles
from microtome.store.arrays import REGION_COORDS, REGION_INDEX, array_names

if TYPE_CHECKING:
    from microtome.plugin.protocols import FeatureSource, StoredSlide

REGION_TILES = "region_tiles"
"""Attribute of a slide: tiles along the side of a region."""

FEATURES_BY_REGION = "region_features"
"""The group of features by region, (R, T, D) each."""


def read_regions(stored: StoredSlide) -> Regions:
    """Read which regions a stored slide has.

    Raises:
        StoreError: If it was not tiled by regions.
    """
    keys = REGION_INDEX, REGION_COORDS
    if not {*keys} <= {*array_names(stored, "regions")}:
        raise StoreError(
            f"{stored.attributes.get('slide_id', 'The slide')} holds no regions. Tile it by them: "
            "tiler.region_tiles=6 for 6 × 6 tiles."
        )
    index, coords = (np.asarray(stored.array(key), np.int32) for key in keys)
    return Regions(index=index, coords=coords)


def region_features(
    stored: StoredSlide, name: str, regions: slice = slice(None)
) -> NDArray[np.floating[Any]]:
    """Read an encoder's features by region.

    ::

        with microtome.open_result("out/patches/a.h5") as stored:
            by_region = microtome.region_features(stored, "uni_v1")

    No features by region need be stored: those of the tiles are grouped. `view_regions` and
    `group_tiles` of `microtome.slide.regions` do the same with features in memory.

    Args:
        stored: From `open_result`, tiled with ``tiler.region_tiles``.
        name: Of the feature set.
        regions: Which regions; features of others are not read.

    Returns:
        (R, T, D), tiles row by row.

    Raises:
        StoreError: If the slide was not tiled by regions or has no such features.
    """
    index = read_regions(stored).index[regions]
    first, stop = (int(index.min()), int(index.max()) + 1) if index.size else (0, 0)
    return group_tiles(stored.features(name, slice(first, stop)), index - first)


class RegionSource:
    """A `FeatureSource` of features by region, over those by tile.

    Reads tiles once and in their order, and holds those of one row of regions.
    """

    def __init__(self, tiles: FeatureSource, index: NDArray[np.int32]) -> None:
        """Group a source.

        Args:
            tiles: (N, …), row by row.
            index: (R, T) of whole regions, sorted by (y, x).
        """
        self._tiles, self._index = tiles, index
        self.shape: tuple[int, ...] = (*index.shape, *tiles.shape[1:])
        self.dtype = tiles.dtype

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Give the array from the top, at most ``rows`` regions at a time."""
        index, done, first = self._index, 0, 0
        held = np.empty((0, *self.shape[2:]), self.dtype)
        for chunk in self._tiles.chunks(rows * self.shape[1]):
            held = np.concatenate([held, chunk])
            # Last tiles ascend, as regions do: what ends before the next row is whole.
            ready = int(np.searchsorted(index[:, -1], first + len(held)))
            for start in range(done, ready, rows):
                yield held[index[start : min(start + rows, ready)] - first]
            done = ready
            needed = int(index[done, 0]) if done < len(index) else first + len(held)
            held, first = held[needed - first :], needed
