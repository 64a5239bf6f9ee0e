"""What the values of a stored set must be: numbers, whole, and of this slide's tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

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
from microtome.store.attributes import parse_fields, parse_list
from microtome.store.damage import AGAIN, ANEW, Wrong
from microtome.store.features import StoredSource
from microtome.store.identity import IDENTITY

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


def check_sources(stored: StoredSlide, key: str) -> Iterator[Wrong]:
    """Check that an array was made of the features that its slide holds now.

    Args:
        stored: The slide.
        key: ``group/name``.
    """
    made_of = parse_fields(stored.array_attributes(key)).get("features")
    if made_of and not _digests(made_of) <= _held(stored):
        yield Wrong("it was made of other features than its slide holds now", ANEW)


def check_slides(
    stored: StoredSlide, key: str, open_slide: Callable[[str], StoredSlide | None]
) -> Iterator[Wrong]:
    """Check that a patient's embedding was made of what the patient's slides hold now.

    Args:
        stored: The patient.
        key: ``group/name``.
        open_slide: Opens a slide by its id; None where there is no such slide any more.
    """
    attributes = stored.array_attributes(key)
    names = parse_list(attributes.get("slides"))
    other = []
    for name, made_of in zip(names, parse_fields(attributes).get("slides", ()), strict=False):
        if (slide := open_slide(str(name))) is None:
            continue
        with slide:
            if not _digests(made_of) <= _held(slide):
                other.append(str(name))
    if other:
        what = f"its slides {', '.join(other)} hold other features or embeddings now than it is of"
        yield Wrong(what, AGAIN)


def _held(stored: StoredSlide) -> set[str]:
    """Give the identities of a slide's feature sets and arrays."""
    found = [stored.feature_attributes(name) for name in stored.feature_names()]
    found += [stored.array_attributes(key) for key in array_names(stored)]
    return {str(attributes.get(IDENTITY)) for attributes in found}


def _digests(made_of: Any) -> set[str]:
    """Give the digests in what an identity names: one, a list or a mapping of them."""
    if isinstance(made_of, Mapping):
        made_of = list(made_of.values())
    if isinstance(made_of, list):
        return set().union(*map(_digests, made_of))
    return {made_of} if isinstance(made_of, str) else set()


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
