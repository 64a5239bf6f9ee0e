"""Looks at compressed tiles before a decoder gets them that does not tell what is missing."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from microtome.errors import SlideReadError
from microtome_readers.tiff.jpegstream import JpegChecker
from microtome_readers.tiff.placement import Box
from microtome_readers.tiff.tags import JPEG, JPEG2000

_HEAD, _TAIL = 2048, 18
"""Bytes of a tile that are looked at: its markers up to the scan, its end with padding."""

_JPEG2000_START, _JPEG2000_END = b"\xff\x4f\xff\x51", b"\xff\xd9"


class TileCheck:
    """The tiles of one file, each looked at once, before it is first decoded.

    Not all when the file is opened: that would be tens of thousands of small reads, which a cold
    disk takes minutes for. Safe for several threads.
    """

    def __init__(self, path: Path, pages: Sequence[Any]) -> None:
        """Open a file.

        Args:
            path: The file.
            pages: Its levels, tiled pages of tifffile; other compressions than JPEG and JPEG 2000
                are left to the decoder.
        """
        self._path = path
        self._file = os.open(path, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, self._file)
        self._levels = [_Level(page) for page in pages]

    def check(self, level: int, box: Box) -> None:
        """Look at the tiles that a box touches.

        Args:
            level: Its index.
            box: In pixels of the level.

        Raises:
            SlideReadError: If a tile is not whole; says which.
        """
        tiles = self._levels[level]
        for index in tiles.unseen(box):
            try:
                tiles.check(self._file, index)
            except ValueError as error:
                raise SlideReadError(
                    f"{self._path}: tile {index} of level {level} cannot be decoded: {error}"
                ) from error


class _Level:
    def __init__(self, page: Any) -> None:
        self._page = page
        self._tile = page.tilewidth, page.tilelength
        self._across = -(-page.imagewidth // page.tilewidth)
        known = page.compression not in (JPEG, *JPEG2000)
        self._seen = np.full((-(-page.imagelength // page.tilelength), self._across), known)
        self._jpeg = JpegChecker(page.jpegtables, (*self._tile, page.samplesperpixel))

    def unseen(self, box: Box) -> list[int]:
        x, y, width, height = box
        wide, high = self._tile
        top, left = y // high, x // wide
        seen = self._seen[top : -(-(y + height) // high), left : -(-(x + width) // wide)]
        if seen.all():
            return []
        return [(top + r) * self._across + left + c for r, c in np.argwhere(~seen).tolist()]

    def check(self, file: int, index: int) -> None:
        page = self._page
        offset, size = page.dataoffsets[index], page.databytecounts[index]
        if size == 0:
            raise ValueError("it is left out")
        head = os.pread(file, min(size, _HEAD), offset)
        tail = os.pread(file, min(size, _TAIL), offset + size - min(size, _TAIL))
        if page.compression == JPEG:
            # A zero, so that no marker comes about where they meet.
            self._check_jpeg(file, index, head + b"\0" + tail)
        elif head[:4] != _JPEG2000_START or not tail.rstrip(b"\0").endswith(_JPEG2000_END):
            raise ValueError("its JPEG 2000 stream is not whole")
        self._seen[divmod(index, self._across)] = True

    def _check_jpeg(self, file: int, index: int, ends: bytes) -> None:
        page = self._page
        try:
            self._jpeg.check(ends)
        except ValueError:
            # Markers may be longer than the head, when each tile carries a colour profile, and
            # padding longer than the tail.
            data = os.pread(file, page.databytecounts[index], page.dataoffsets[index])
            self._jpeg.check(data)
