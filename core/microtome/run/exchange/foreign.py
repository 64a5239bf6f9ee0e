"""What another tool's files gave: put in order, checked against itself, and hashed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import LayoutError
from microtome.store.exchange import TiledSlide
from microtome.store.publish import FeatureSet

_BLOCK = 8 << 20
"""Bytes hashed, and rows of features copied, at a time."""


def in_order(slide_id: str, slide: TiledSlide) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Give the rows to keep, sorted by (y, x), each tile once; and what was left out."""
    coords = slide.coords
    order = np.lexsort((coords[:, 0], coords[:, 1])).astype(np.int64)
    new = np.ones(len(order), np.bool_)
    new[1:] = (coords[order][1:] != coords[order][:-1]).any(axis=1)
    keep = order[new]
    lost = len(order) - len(keep)
    if not lost:
        return keep, ()
    return keep, (f"{slide_id}: {lost} tiles that were there twice were left out",)


def check_extent(slide: TiledSlide) -> None:
    """See that the tiles begin on the slide, where its extent is known.

    Raises:
        LayoutError: If one does not: then these are another slide's, or no level-0 pixels.
    """
    extent = np.array([slide.info.width, slide.info.height])
    points = slide.coords[:, :2]
    sides = np.array(slide.geometry.size_level0)
    outside = ((points >= extent) | (points + sides <= 0)).any(axis=1)
    if extent.all() and outside.any():
        x, y = points[outside][0]
        raise LayoutError(
            f"{slide.slide_id}: a tile at ({x}, {y}) lies outside of the slide of {extent[0]} × "
            f"{extent[1]} px. These are the tiles of another slide, or not in level-0 pixels."
        )


def check_rows(slide: TiledSlide) -> None:
    """See that features are of the tiles.

    Raises:
        LayoutError: If there are more or fewer.
    """
    for name, given in slide.features.items():
        if (rows := given.source.shape[0]) != len(slide.coords):
            raise LayoutError(
                f"{slide.slide_id}: the features {name!r} have {rows} rows for "
                f"{len(slide.coords)} tiles."
            )


def blocks(features: FeatureSet) -> Iterator[tuple[int, NDArray[np.floating[Any]]]]:
    """Give features a part at a time, each with the number of its first row."""
    source, start = features.source, 0
    for block in source.chunks(max(1, _BLOCK // max(1, source.shape[1] * 4))):
        yield start, block
        start += len(block)


def digest(values: NDArray[Any]) -> str:
    """Hash an array."""
    whole = np.ascontiguousarray(values)
    return hashlib.sha256(f"{whole.dtype.str}{whole.shape}".encode() + whole.tobytes()).hexdigest()


def digest_rows(features: FeatureSet, keep: NDArray[np.int64]) -> str:
    """Hash features in the order of their coordinates, in whatever order they lie in a file."""
    found = hashlib.sha256(f"{features.source.dtype.str}{features.source.shape[1]}".encode())
    rows = [
        hashlib.sha256(row.tobytes()).digest() for _, block in blocks(features) for row in block
    ]
    found.update(b"".join(rows[row] for row in keep.tolist()))
    return found.hexdigest()


def hashes(paths: tuple[Path, ...]) -> dict[str, str]:
    """Hash files, and folders as what is in them, by name."""
    return {path.name: _hash(path) for path in paths}


def _hash(path: Path) -> str:
    try:
        if not path.is_dir():
            about = path.stat()
            return _hash_file(path, about.st_size, about.st_mtime_ns)
        found = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            found.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
            _update(found, file)
    except OSError as error:
        where = os.fsdecode(error.filename or path)
        raise LayoutError(f"{where} cannot be read: {error.strerror or error}.") from error
    return found.hexdigest()


@lru_cache(maxsize=4)  # one file may hold every slide
def _hash_file(path: Path, size: int, changed: int) -> str:
    found = hashlib.sha256()
    _update(found, path)
    return found.hexdigest()


def _update(found: hashlib._Hash, file: Path) -> None:
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            found.update(block)
