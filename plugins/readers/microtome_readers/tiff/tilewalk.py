"""Reads boxes of one level, decoding each native tile once, whatever the boxes want of it."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from microtome.errors import SlideReadError
from microtome_readers.tiff.placement import Box
from microtome_readers.tiff.segmentcache import SegmentCache

Pixels = NDArray[np.uint8]

# What tifffile, imagecodecs and OpenCV raise on data that they cannot decode.
_DECODE_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, OSError)


class Source(Protocol):
    """The native tiles of one level; or its strips, or bands of these."""

    @property
    def fills(self) -> bool:
        """Whether `decode` puts pixels where it is told."""

    @property
    def channels(self) -> int:
        """Of a pixel: 3 or 4."""

    @property
    def segment(self) -> tuple[int, int]:
        """(width, height) of a tile; those of the last row and column may be cut off."""

    def decode(self, row: int, column: int, out: Pixels | None = None) -> Pixels:
        """Decode one tile to (height, width, channels).

        Args:
            row: Of the tile.
            column: Of the tile.
            out: Contiguous memory for a whole tile, which may be used.
        """


class _Piece(NamedTuple):
    """What one box wants of one tile. Rows are flat: a pixel is as many columns as channels."""

    target: Pixels
    """(height, width × channels): of the box."""
    box_rows: slice
    box_columns: slice
    tile_rows: slice
    tile_columns: slice

    @property
    def area(self) -> int:
        height: int = self.tile_rows.stop - self.tile_rows.start
        width: int = self.tile_columns.stop - self.tile_columns.start
        return height * width


@dataclass(frozen=True, eq=False)
class TileWalk:
    """A level to read from, by several threads.

    Attributes:
        path: Of the slide.
        index: Of the level.
        size: (width, height) of the level.
        source: Its native tiles.
        cache: Of the slide.
    """

    path: Path
    index: int
    size: tuple[int, int]
    source: Source
    cache: SegmentCache
    _local: threading.local = field(default_factory=threading.local, repr=False)

    def read(self, boxes: Sequence[Box], targets: Sequence[Pixels]) -> None:
        """Read boxes.

        A native tile that these boxes use up is decoded into the box that is it, or into memory
        that the next one is decoded into. A tile at the border of what they cover together, of
        which they only use a part, is kept: the boxes beside them will want the rest.

        Args:
            boxes: In pixels of the level, inside of it.
            targets: (height, width, channels) for each, contiguous.

        Raises:
            SlideReadError: If a tile cannot be decoded.
        """
        pieces = self._by_tile(boxes, targets)
        if not pieces:
            return
        rows, columns = zip(*pieces, strict=True)
        inner_rows = range(min(rows) + 1, max(rows))
        inner_columns = range(min(columns) + 1, max(columns))
        for (row, column), wanted in pieces.items():
            inner = row in inner_rows and column in inner_columns
            self._read_tile(row, column, wanted, inner=inner)

    def _by_tile(
        self, boxes: Sequence[Box], targets: Sequence[Pixels]
    ) -> dict[tuple[int, int], list[_Piece]]:
        """Tell what each tile is wanted for, in the order of the first box that wants it."""
        wide, high = self.source.segment
        channels = self.source.channels
        down, across = cache(_cut), cache(_cut)  # boxes of a grid share their edges
        found = defaultdict(list)
        for (x, y, w, h), target in zip(boxes, targets, strict=True):
            flat = target.reshape(h, w * channels)
            for row, box_rows, tile_rows in down(y, h, high, 1):
                for column, box_columns, tile_columns in across(x, w, wide, channels):
                    piece = _Piece(flat, box_rows, box_columns, tile_rows, tile_columns)
                    found[row, column].append(piece)
        return found

    def _read_tile(self, row: int, column: int, wanted: list[_Piece], *, inner: bool) -> None:
        """Give a tile to all boxes that want some of it."""
        key = (self.index, row, column)
        kept = self.cache.borrow(key)
        if kept is None and (inner or self._is_used_up(row, column, wanted)):
            place = self._place(wanted)
            pixels = self._decode(row, column, self._scratch() if place is None else place)
            if pixels is not place:
                _hand_out(pixels, wanted)
            return
        if kept is None:
            make = partial(self._decode, row, column)
            kept = self.cache.borrow_or_make(key, make, shape=self._shape)
        try:
            _hand_out(kept.pixels, wanted)
        finally:
            self.cache.give_back(kept)

    def _is_used_up(self, row: int, column: int, wanted: list[_Piece]) -> bool:
        """Whether boxes want all of a tile, and none of it twice, as where they overlap."""
        wide, high = self.source.segment
        width = min(wide, self.size[0] - column * wide)
        height = min(high, self.size[1] - row * high)
        return sum(piece.area for piece in wanted) == width * height * self.source.channels

    @cached_property
    def _shape(self) -> tuple[int, int, int] | None:
        """What memory the source can decode into, if any."""
        wide, high = self.source.segment
        return (high, wide, self.source.channels) if self.source.fills else None

    def _place(self, wanted: list[_Piece]) -> Pixels | None:
        """Give the pixels of the one box that is a whole tile, if that is all that is wanted."""
        piece = wanted[0]
        if self._shape is None or len(wanted) > 1 or piece.area != piece.target.size:
            return None
        fits = piece.area == math.prod(self._shape)
        return piece.target.reshape(self._shape) if fits else None

    def _scratch(self) -> Pixels | None:
        """Give this thread's own memory for a tile."""
        if self._shape is None:
            return None
        if not hasattr(self._local, "tile"):
            self._local.tile = np.empty(self._shape, np.uint8)
        tile: Pixels = self._local.tile
        return tile

    def _decode(self, row: int, column: int, out: Pixels | None = None) -> Pixels:
        try:
            return self.source.decode(row, column, out)
        except _DECODE_ERRORS as error:
            raise SlideReadError(
                f"{self.path}: tile or strip ({column}, {row}) of level {self.index} cannot be "
                f"decoded: {error}"
            ) from error


def _hand_out(pixels: Pixels, wanted: list[_Piece]) -> None:
    flat = pixels.reshape(len(pixels), -1)
    for target, box_rows, box_columns, tile_rows, tile_columns in wanted:
        target[box_rows, box_columns] = flat[tile_rows, tile_columns]


def _cut(start: int, length: int, side: int, scale: int) -> list[tuple[int, slice, slice]]:
    """Cut a range where tiles meet.

    Args:
        start: Of the range.
        length: Of the range.
        side: Of a tile.
        scale: What the slices are counted in.

    Returns:
        For each tile its index, and the part of the range and of the tile that they share.
    """
    cuts = []
    for index in range(start // side, (start + length - 1) // side + 1):
        first, last = max(start, index * side), min(start + length, (index + 1) * side)
        in_range = slice((first - start) * scale, (last - start) * scale)
        in_tile = slice((first - index * side) * scale, (last - index * side) * scale)
        cuts.append((index, in_range, in_tile))
    return cuts
