"""What the values of a stored set must be: numbers, whole, and of this slide's tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from microtome.store.arrays import (
    BY_REGION,
    BY_SLIDE,
    BY_TILE,
    REGION_COORDS,
    REGION_INDEX,
    array_names,
    row_count,
)
from microtome.store.damage import AGAIN, Wrong
from microtome.store.features import StoredSource

if TYPE_CHECKING:
    from microtome.plugin.protocols import FeatureSource, StoredSlide

BLOCK_BYTES = 16 << 20
"""Values that are in memory at a time."""


def missing_arrays(stored: StoredSlide, identities: Mapping[str, str]) -> Iterator[Wrong]:
    """Name the arrays that a slide's record has the identity of, and that are not there."""
    known = {*BY_TILE, *BY_REGION, *BY_SLIDE}
    told = {key for key in identities if key.partition("/")[0] in known}
    for key in sorted(told.difference(array_names(stored))):
        yield Wrong(f"{key} is missing, its slide's record names it", AGAIN)


def check_array(stored: StoredSlide, key: str, *, deep: bool) -> Iterator[Wrong]:
    """Check the shape of an array, and its values.

    Args:
        stored: The slide.
        key: ``group/name``.
        deep: Whether values are read.
    """
    source = StoredSource(stored, key)
    if source.dtype.kind not in "biuf" or not source.shape:
        yield Wrong(f"it is {source.dtype} of shape {source.shape}, no array of numbers")
        return
    counts = {"tiles": len(stored.coords)}
    if REGION_INDEX in array_names(stored):
        counts["regions"] = stored.array_shape(REGION_INDEX)[0]
    rows = row_count(key, counts)
    if rows not in (None, source.shape[0]):
        of = "tiles" if key.partition("/")[0] in BY_TILE else "regions"
        yield Wrong(f"it has {source.shape[0]} rows for {rows} {of}")
    if key == REGION_INDEX and (source.dtype.kind not in "iu" or len(source.shape) != 2):
        yield Wrong(f"it is {source.dtype} of shape {source.shape}, not whole numbers (R, T)")
    elif key == REGION_COORDS and source.shape[1:] != (5,):
        yield Wrong(f"it is of shape {source.shape}, not (R, 5)")
    elif deep:
        most = counts["tiles"] if key == REGION_INDEX else None
        yield from check_values(source, most)


def check_values(source: FeatureSource, below: int | None = None) -> Iterator[Wrong]:
    """Read all values, in blocks; the first that is not what it should be is told.

    Args:
        source: What is stored.
        below: Rows of tiles that the values must name, where they do.
    """
    step = max(1, BLOCK_BYTES // max(1, math.prod(source.shape[1:]) * 8))
    start = 0
    for block in source.chunks(step):
        if len(block) != min(step, source.shape[0] - start):
            yield Wrong(f"it gives {len(block)} rows from row {start}")
            return
        values = block.reshape(len(block), -1)
        if below is not None:
            bad, what = (values < 0) | (values >= below), f"no row of {below} tiles"
        else:
            bad, what = ~np.isfinite(values), "not finite"
        rows = np.flatnonzero(bad.any(axis=1))
        if rows.size:
            row = start + int(rows[0])
            yield Wrong(f"it holds values that are {what}, the first in row {row}")
            return
        start += len(block)
