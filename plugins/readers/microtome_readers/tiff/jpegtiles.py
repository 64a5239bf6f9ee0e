"""Decodes the JPEG tiles of a TIFF straight from their bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from imagecodecs import jpeg8_decode
from numpy.typing import NDArray

from microtome.slide.clock import timed
from microtome_readers.tiff.jpegstream import JpegChecker, standalone

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class TileTable:
    """Where the tiles of a level are, and how to decode them.

    Attributes:
        size: (width, height) of the level in pixels.
        tile: (width, height) of a tile.
        offsets: (n,) of each tile in the file, row by row.
        counts: (n,) bytes of each tile; 0 where it is left out.
        tables: What the streams have in common, as TIFF's JPEGTables holds it.
        ycbcr: Whether the page says that its colours are YCbCr; RGB otherwise. The page is
            believed, not the stream: so Aperio's RGB tiles want it, and so does OpenSlide.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    tables: bytes | None
    ycbcr: bool


class JpegTiles:
    """The tiles of one level."""

    fills = True

    def __init__(self, file: int, table: TileTable, channels: int) -> None:
        """Take a level.

        Args:
            file: Descriptor; read with ``pread``, so threads share it. A mapped file is 6 % slower
                here, and kills the process where the file shrinks.
            table: Where its tiles are.
            channels: 3, or 4 where tiles may be left out, which are transparent.
        """
        self._file, self._table = file, table
        self.channels = channels
        self._across = -(-table.size[0] // table.tile[0])
        self._checker = JpegChecker(table.tables, (*table.tile, 3))
        self._colours = "YCBCR" if table.ycbcr else "RGB"

    @property
    def segment(self) -> tuple[int, int]:
        """(width, height) of a decoded tile."""
        return self._table.tile

    def halved(self) -> HalfJpegTiles:
        """Give the same tiles at half their size."""
        return HalfJpegTiles(self._file, self._table, self.channels)

    def decode(self, row: int, column: int, out: Pixels | None = None) -> Pixels:
        """Decode one tile, as `Source` says."""
        index = row * self._across + column
        size = int(self._table.counts[index])
        if size == 0:
            width, height = self.segment
            return np.zeros((height, width, self.channels), np.uint8)
        with timed("read"):
            data = os.pread(self._file, size, int(self._table.offsets[index]))
        if len(data) != size:
            raise ValueError(f"the file ends {size - len(data)} bytes early")
        header = self._checker.check(data)
        if self.channels == 3:
            return self._pixels(data, header.data, out)
        return _opaque(self._pixels(data, header.data, None))

    def _pixels(self, data: bytes, header: bytes, out: Pixels | None) -> Pixels:
        pixels: Pixels = jpeg8_decode(
            data,
            tables=self._table.tables,
            colorspace=self._colours,
            outcolorspace="RGB",
            out=out,
        )
        return pixels


class HalfJpegTiles(JpegTiles):
    """The same at half their size, each pixel the mean of four as far as JPEG's blocks have it.

    The inverse transform of an 8 × 8 block is cut to 4 × 4: measured on tissue, that is up to 32
    grey levels off the mean of the decoded pixels, 0.6 on average.
    """

    def __init__(self, file: int, table: TileTable, channels: int) -> None:
        super().__init__(file, table, channels)
        self._complete = lru_cache(8)(
            lambda header: standalone(header, table.tables, ycbcr=table.ycbcr)
        )

    @property
    def segment(self) -> tuple[int, int]:
        """(width, height) of a decoded tile."""
        width, height = self._table.tile
        return width // 2, height // 2

    def _pixels(self, data: bytes, header: bytes, out: Pixels | None) -> Pixels:
        import cv2

        stream = self._complete(header) + data[len(header) :]
        flags = cv2.IMREAD_REDUCED_COLOR_2 | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(stream, np.uint8), flags)
        if pixels is None:
            raise ValueError("its JPEG stream cannot be decoded at half its size")
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=out), np.uint8)


def _opaque(pixels: Pixels) -> Pixels:
    import cv2

    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA), np.uint8)
