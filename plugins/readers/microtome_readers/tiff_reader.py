"""Reads flat and tiled TIFF, with tifffile for the tags and imagecodecs for the pixels."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from microtome.errors import SlideOpenError, SlideReadError
from microtome.slide.types import SlideInfo
from microtome_readers import TiffConfig
from microtome_readers.jpegstream import check_jpeg
from microtome_readers.placement import Box, place, read_placed
from microtome_readers.segmentcache import SegmentCache
from microtome_readers.tifftags import (
    APERIO_YCBCR,
    JPEG,
    describe_levels,
    read_tags,
    segment_size,
    whole_downsamples,
)

_PHOTOMETRIC = tifffile.PHOTOMETRIC
_ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
# What tifffile and imagecodecs raise on data that they cannot decode.
_DECODE_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, OSError)

_BAND_BYTES = 1 << 20
"""An uncompressed strip is read in bands of about this size, however large it is."""

_SEGMENT_LIMIT = 1 << 30
"""A compressed strip must be decoded as a whole: larger ones are refused."""


class TiffReader:
    """One TIFF, read tile by tile or strip by strip.

    8-bit grey, palette, RGB and RGBA, in chunky or planar order; YCbCr as JPEG. Tiles that the
    file leaves out (byte count 0) are transparent.
    """

    def __init__(self, path: Path, config: TiffConfig) -> None:
        self._path, self._config = Path(path), config
        tags = read_tags(self._path)
        pages = tags.pages
        for page in pages:
            check_pixels(page)
        sparse = any(0 in page.databytecounts for page in pages)
        self._channels = 4 if sparse or _has_alpha(pages[0]) else 3
        self._info = SlideInfo(
            path=self._path,
            reader="tiff",
            levels=describe_levels(pages),
            channels=self._channels,
            vendor=tags.vendor,
            properties=tags.properties,
            exact=whole_downsamples(pages),
        )
        self._cache = SegmentCache(config.cache_mb << 20)
        file = os.open(self._path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, file)
        self._pages = [_Page(page, file, self._channels) for page in pages]

    def __reduce__(self) -> tuple[type[TiffReader], tuple[Path, TiffConfig]]:
        return type(self), (self._path, self._config)

    @staticmethod
    def probe(path: Path) -> bool:
        """Tell from the first bytes whether a file is a TIFF or BigTIFF."""
        with path.open("rb") as file:
            return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

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
        if not self._close.alive:
            raise ValueError(f"{self._path} is closed")
        geometry = self._info.levels[level]
        region = partial(self.read_whole, level)
        for box, row in zip(boxes.tolist(), rows.tolist(), strict=True):
            out[row] = read_placed(region, place(box, geometry.downsample), geometry)

    def close(self) -> None:
        """Close the file and drop what was decoded."""
        self._close()
        self._cache.clear()

    def read_whole(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Read whole pixels: a box in pixels of its level, to (height, width, channels) uint8."""
        x, y, w, h = box
        page = self._pages[level]
        tile_w, tile_h = page.segment
        canvas = np.empty((h, w, self._channels), np.uint8)
        for row in range(y // tile_h, (y + h - 1) // tile_h + 1):
            for column in range(x // tile_w, (x + w - 1) // tile_w + 1):
                segment = self._cache.get(
                    (level, row, column), lambda key: self._decode(key[0], key[1], key[2])
                )
                left, top = column * tile_w, row * tile_h
                x0, x1 = max(x, left), min(x + w, left + tile_w)
                y0, y1 = max(y, top), min(y + h, top + tile_h)
                canvas[y0 - y : y1 - y, x0 - x : x1 - x] = segment[
                    y0 - top : y1 - top, x0 - left : x1 - left
                ]
        return canvas

    def _decode(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        try:
            return self._pages[level].decode(row, column)
        except _DECODE_ERRORS as error:
            raise SlideReadError(
                f"{self._path}: tile or strip ({column}, {row}) of level {level} cannot be "
                f"decoded: {error}"
            ) from error


@dataclass(frozen=True)
class _Page:
    """One level, segment by segment.

    Attributes:
        page: Of tifffile.
        file: Descriptor; read with ``pread``, so threads share it.
        channels: That a segment is given: 3 or 4.
    """

    page: Any
    file: int
    channels: int

    @cached_property
    def segment(self) -> tuple[int, int]:
        """(width, height) of what `decode` gives, but for the last row and column."""
        width, height = segment_size(self.page)
        if not self._banded:
            return width, height
        rows = max(1, min(height, _BAND_BYTES // (width * self.page.samplesperpixel)))
        if height < self.page.imagelength:  # no band may lie in two strips
            rows = next(n for n in range(rows, 0, -1) if height % n == 0)
        return width, rows

    @cached_property
    def _banded(self) -> bool:
        page = self.page
        plain = page.compression == 1 and page.fillorder == 1 and page.predictor == 1
        return plain and not page.is_tiled and _is_chunky(page)

    def decode(self, row: int, column: int) -> NDArray[np.uint8]:
        """Decode one segment to (height, width, channels) uint8."""
        if self._banded:
            parts = [self._read_band(row)]
        else:
            parts = [self._read_segment(index) for index in self._indices(row, column)]
        present = [part for part in parts if part is not None]
        if len(present) < len(parts):
            width, height = self.segment
            return np.zeros((height, width, self.channels), np.uint8)
        return self._coloured(np.concatenate(present, axis=2))

    def _indices(self, row: int, column: int) -> range:
        across = -(-self.page.imagewidth // self.segment[0])
        down = -(-self.page.imagelength // self.segment[1])
        first = row * across + column
        planes = 1 if _is_chunky(self.page) else self.page.samplesperpixel
        return range(first, first + planes * across * down, across * down)

    def _read_band(self, row: int) -> NDArray[np.uint8] | None:
        page, (width, height) = self.page, self.segment
        first = row * height
        rows = min(height, page.imagelength - first)
        pitch = width * page.samplesperpixel
        strip, within = divmod(first, segment_size(page)[1])
        if page.databytecounts[strip] == 0:
            return None
        missing = (within + rows) * pitch - page.databytecounts[strip]
        if missing > 0:
            raise ValueError(f"the strip is {missing} bytes short")
        data = self._read(page.dataoffsets[strip] + within * pitch, rows * pitch)
        return np.frombuffer(data, np.uint8).reshape(rows, width, page.samplesperpixel)

    def _read_segment(self, index: int) -> NDArray[np.uint8] | None:
        page = self.page
        size = page.databytecounts[index]
        if size == 0:
            return None
        data = self._read(page.dataoffsets[index], size)
        if page.compression == JPEG:
            check_jpeg(data, page.jpegtables)
        pixels, _, _ = page.decode(data, index, jpegtables=page.jpegtables)
        return np.asarray(pixels[0], np.uint8)

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self.file, size, offset)
        if len(data) != size:
            raise ValueError(f"the file ends {size - len(data)} bytes early")
        return data

    def _coloured(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        page = self.page
        alpha = pixels[..., -1:] if _has_alpha(page) else None
        if page.photometric == _PHOTOMETRIC.PALETTE:
            colours = _palette(page)[pixels[..., 0]]
        elif page.photometric == _PHOTOMETRIC.MINISWHITE:
            colours = np.repeat(255 - pixels[..., :1], 3, axis=2)
        elif page.photometric == _PHOTOMETRIC.MINISBLACK:
            colours = np.repeat(pixels[..., :1], 3, axis=2)
        elif page.compression == APERIO_YCBCR:
            colours = _from_ycbcr(pixels[..., :3])
        else:
            colours = pixels[..., :3]
        if self.channels == 3:
            return np.ascontiguousarray(colours)
        if alpha is None:
            alpha = np.full_like(colours[..., :1], 255)
        elif page.extrasamples[-1] == tifffile.EXTRASAMPLE.ASSOCALPHA:
            colours = _unpremultiplied(colours, alpha)
        return np.concatenate((colours, alpha), axis=2)


def check_pixels(page: Any) -> None:
    """Refuse pixels that have no one meaning as 8-bit RGB.

    Raises:
        SlideOpenError: Says which, and what to do.
    """
    convert = "convert it to 8-bit RGB first"
    if page.bitspersample != 8 or page.dtype != np.uint8:
        raise SlideOpenError(
            f"its pixels are {page.dtype} of {page.bitspersample} bits and how to scale them to "
            f"8 bits is not known: {convert}"
        )
    if page.compression != 1 and page.compression not in tifffile.TIFF.DECOMPRESSORS:
        name = getattr(page.compression, "name", page.compression)
        raise SlideOpenError(f"its compression {name} is not known")
    kinds = (_PHOTOMETRIC.RGB, _PHOTOMETRIC.MINISBLACK, _PHOTOMETRIC.MINISWHITE)
    jpeg = page.photometric == _PHOTOMETRIC.YCBCR and page.compression in (JPEG, APERIO_YCBCR)
    if not (page.photometric in (*kinds, _PHOTOMETRIC.PALETTE) or jpeg):
        kind = getattr(page.photometric, "name", page.photometric)
        raise SlideOpenError(f"its colours are {kind}, which is not read: {convert}")
    colours = 3 if page.photometric in (_PHOTOMETRIC.RGB, _PHOTOMETRIC.YCBCR) else 1
    if page.samplesperpixel < colours or page.imagedepth > 1:
        raise SlideOpenError(f"it has {page.samplesperpixel} samples a pixel: {convert}")
    width, height = segment_size(page)
    size = width * height * page.samplesperpixel
    if size > _SEGMENT_LIMIT and page.compression != 1:
        raise SlideOpenError(
            f"its compressed strips are {size >> 20} MiB each and can only be decoded as a "
            "whole: convert it to a tiled TIFF first"
        )


def _is_chunky(page: Any) -> bool:
    return bool(page.planarconfig == tifffile.PLANARCONFIG.CONTIG or page.samplesperpixel == 1)


def _has_alpha(page: Any) -> bool:
    return bool(page.extrasamples) and page.extrasamples[-1] in _ALPHA


def _palette(page: Any) -> NDArray[np.uint8]:
    table = np.asarray(page.colormap)
    # The standard has 16-bit entries; some writers put 8-bit ones there.
    return np.asarray(table.T // (257 if table.max() > 255 else 1), np.uint8)


def _from_ycbcr(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert full-range BT.601, as JFIF defines it."""
    values = pixels.astype(np.float32)
    y, cb, cr = values[..., 0], values[..., 1] - 128, values[..., 2] - 128
    colours = (y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb)
    rgb: NDArray[np.uint8] = np.clip(np.rint(np.stack(colours, 2)), 0, 255).astype(np.uint8)
    return rgb


def _unpremultiplied(colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = 255 / np.maximum(alpha, 1).astype(np.float64)
    scaled: NDArray[np.uint8] = np.clip(np.rint(colours * scale), 0, 255).astype(np.uint8)
    return scaled
