"""Reads TIFF: plain JPEG pyramids directly, the others through tifffile."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from microtome.slide.types import Level, SlideInfo
from microtome_readers import TiffConfig
from microtome_readers.tiff.jpegtiles import JpegTiles
from microtome_readers.tiff.layouts import find_known
from microtome_readers.tiff.placement import Box, place, reach, settle, whole_boxes
from microtome_readers.tiff.segmentcache import SegmentCache
from microtome_readers.tiff.tilewalk import Source, TileWalk

_NEAR = 2**0.5
"""A level of at most this ratio to a halved one makes it needless."""


class Contents(Protocol):
    """What a TIFF holds, however that was found out."""

    @property
    def vendor(self) -> str | None:
        """As OpenSlide names it, where known."""

    @property
    def properties(self) -> dict[str, str]:
        """Its metadata under OpenSlide's names."""

    @property
    def channels(self) -> int:
        """4 where there is alpha or tiles are left out, or else 3."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Finest first."""

    def sources(self, file: int) -> list[Source]:
        """Give the native tiles of each level, read from a descriptor."""


class TiffReader:
    """One TIFF, read tile by tile or strip by strip.

    8-bit grey, palette, RGB and RGBA, in chunky or planar order; YCbCr as JPEG. Tiles that the
    file leaves out (byte count 0) are transparent.
    """

    def __init__(self, path: Path, config: TiffConfig) -> None:
        self._path, self._config = Path(path), config
        contents = _open(self._path)
        file = os.open(self._path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, file)
        pairs = list(zip(contents.levels, contents.sources(file), strict=True))
        halves = list(_halves(pairs)) if config.half_size else []
        pairs = sorted(pairs + halves, key=lambda pair: pair[0].downsample)
        self._info = SlideInfo(
            path=self._path,
            reader="tiff",
            levels=tuple(level for level, _ in pairs),
            channels=contents.channels,
            vendor=contents.vendor,
            properties=contents.properties,
            # Between pixels OpenSlide and its stand-ins interpolate, each with its own rounding.
            exact=not halves and _are_whole(contents.levels),
        )
        self._cache = SegmentCache(config.cache_mb << 20)
        self._walks = [
            TileWalk(self._path, index, (level.width, level.height), source, self._cache)
            for index, (level, source) in enumerate(pairs)
        ]

    def __reduce__(self) -> tuple[type[TiffReader], tuple[Path, TiffConfig]]:
        return type(self), (self._path, self._config)

    @staticmethod
    def probe(path: Path) -> bool:
        """Tell from the first bytes whether a file is a TIFF or BigTIFF."""
        with path.open("rb") as file:
            return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

    @staticmethod
    def vouch(path: Path) -> str:
        """Say why the pixels of a file are OpenSlide's, decoded faster; nothing in any doubt."""
        try:
            known = find_known(path)
        except (OSError, ValueError):
            return ""
        between = "" if _are_whole(known.levels) else ", but between whole pixels rounded otherwise"
        return (
            f"{known.layout} of plain JPEG tiles, decoded directly to the pixels that OpenSlide "
            f"gives{between}"
        )

    @property
    def info(self) -> SlideInfo:
        """What the file says of itself."""
        return self._info

    def read_tiles(
        self,
        level: int,
        boxes: NDArray[np.int64],
        out: NDArray[np.uint8],
        rows: NDArray[np.int64],
    ) -> None:
        """Fill some rows of a buffer with regions of one level, as `Reader` says."""
        geometry = self._info.levels[level]
        whole = whole_boxes(boxes, geometry.downsample)
        if whole is not None and out.flags.c_contiguous:
            self._read(level, whole.tolist(), [out[row] for row in rows])
            return
        placements = [place(box, geometry.downsample) for box in boxes.tolist()]
        wanted = [reach(placement, geometry) for placement in placements]
        canvases = [self._canvas(box) for box in wanted]
        self._read(level, wanted, canvases)
        for row, canvas, placement in zip(rows, canvases, placements, strict=True):
            out[row] = settle(canvas, placement)

    def read_whole(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Read whole pixels: a box in pixels of its level, to (height, width, channels) uint8."""
        canvas = self._canvas(box)
        self._read(level, [box], [canvas])
        return canvas

    def close(self) -> None:
        """Close the file and drop what was decoded."""
        self._close()
        self._cache.clear()

    def _read(self, level: int, boxes: Sequence[Box], targets: Sequence[NDArray[np.uint8]]) -> None:
        if not self._close.alive:
            raise ValueError(f"{self._path} is closed")
        self._walks[level].read(boxes, targets)

    def _canvas(self, box: Box) -> NDArray[np.uint8]:
        return np.empty((box[3], box[2], self._info.channels), np.uint8)


def _open(path: Path) -> Contents:
    try:
        return find_known(path)
    except (OSError, ValueError):
        # A fifth of a second to import, which the files on the list need not wait for.
        from microtome_readers.tiff.pages import read_contents

        return read_contents(path)


def _are_whole(levels: Sequence[Level]) -> bool:
    """Whether every pixel of every level starts at a whole level-0 pixel."""
    return all(level.downsample.is_integer() for level in levels)


def _halves(pairs: Sequence[tuple[Level, Source]]) -> Iterator[tuple[Level, Source]]:
    """Give a level of half the size for each of JPEG tiles, unless there is one about as coarse."""
    for level, source in pairs:
        downsample = level.downsample * 2
        near = any(1 / _NEAR < other.downsample / downsample < _NEAR for other, _ in pairs)
        if near or not isinstance(source, JpegTiles) or min(level.width, level.height) < 2:
            continue
        half = source.halved()
        yield (
            Level(
                width=level.width // 2,
                height=level.height // 2,
                downsample=downsample,
                tile=half.segment,
            ),
            half,
        )
