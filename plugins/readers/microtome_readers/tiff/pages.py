"""Any TIFF through tifffile, which knows every compression and how tiles and strips are told."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from microtome.errors import SlideOpenError
from microtome.slide.clock import timed
from microtome.slide.types import Level
from microtome_readers.tiff.jpegstream import JpegChecker
from microtome_readers.tiff.jpegtiles import JpegTiles, TileTable
from microtome_readers.tiff.plausible import check_expansion
from microtome_readers.tiff.tags import (
    APERIO_YCBCR,
    JPEG,
    describe_levels,
    read_tags,
    segment_size,
)
from microtome_readers.tiff.tilewalk import Source

_PHOTOMETRIC = tifffile.PHOTOMETRIC
_ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)

_BAND_BYTES = 1 << 20
"""An uncompressed strip is read in bands of about this size, however large it is."""

_JPEG2000_START = b"\xff\x4f\xff\x51"

_SEGMENT_LIMIT = 1 << 30
"""A compressed strip must be decoded as a whole: larger ones are refused."""


@dataclass(frozen=True)
class TiffContents:
    """What a TIFF holds.

    Attributes:
        pages: One tifffile page a level, finest first.
        channels: 4 where there is alpha or tiles are left out, or else 3.
        vendor: As OpenSlide names it, where known.
        properties: Its metadata under OpenSlide's names.
    """

    pages: list[Any]
    channels: int
    vendor: str | None
    properties: dict[str, str]

    @property
    def levels(self) -> tuple[Level, ...]:
        """Finest first."""
        return describe_levels(self.pages)

    def sources(self, file: int) -> list[Source]:
        """Give the tiles or strips of each level."""
        return [self._source(page, file) for page in self.pages]

    def _source(self, page: Any, file: int) -> Source:
        table = _jpeg_table(page)
        if table is None:
            return TiffPage(page, file, self.channels)
        return JpegTiles(file, table, self.channels)


def read_contents(path: Path) -> TiffContents:
    """Read what a TIFF says of itself.

    Raises:
        SlideOpenError: If its pixels cannot be read; says why.
    """
    tags = read_tags(path)
    pages = tags.pages
    for page in pages:
        check_pixels(page)
    sparse = any(0 in page.databytecounts for page in pages)
    channels = 4 if sparse or _has_alpha(pages[0]) else 3
    return TiffContents(pages, channels, tags.vendor, tags.properties)


def _jpeg_table(page: Any) -> TileTable | None:
    """Say where a page's tiles are, where they are JPEG of three colours."""
    colours = (_PHOTOMETRIC.RGB, _PHOTOMETRIC.YCBCR)
    if not (page.is_tiled and page.compression == JPEG and page.photometric in colours):
        return None
    if page.samplesperpixel != 3 or not _is_chunky(page):
        return None
    return TileTable(
        size=(page.imagewidth, page.imagelength),
        tile=segment_size(page),
        offsets=np.asarray(page.dataoffsets, np.int64),
        counts=np.asarray(page.databytecounts, np.int64),
        tables=page.jpegtables,
        ycbcr=page.photometric == _PHOTOMETRIC.YCBCR,
    )


@dataclass(frozen=True)
class TiffPage:
    """One level, segment by segment.

    Attributes:
        page: Of tifffile.
        file: Descriptor; read with ``pread``, so threads share it.
        channels: That a segment is given: 3 or 4.
    """

    page: Any
    file: int
    channels: int
    fills = False

    @cached_property
    def _checker(self) -> JpegChecker:
        return JpegChecker(self.page.jpegtables)

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

    def decode(
        self, row: int, column: int, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Decode one segment, as `Source` says."""
        if self._banded:
            parts = [self._read_band(row)]
        else:
            parts = [self._read_segment(index) for index in self._indices(row, column)]
        present = [part for part in parts if part is not None]
        if len(present) < len(parts):
            width, height = self.segment
            return np.zeros((height, width, self.channels), np.uint8)
        return self._coloured(present[0] if len(present) == 1 else np.concatenate(present, axis=2))

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
        self._check_frame(data)
        pixels, _, _ = page.decode(data, index, jpegtables=page.jpegtables)
        return np.asarray(pixels[0], np.uint8)

    def _check_frame(self, data: bytes) -> None:
        """Refuse a stream that would be decoded to more than its segment."""
        page, (width, height) = self.page, self.segment
        frame = (0, 0)
        if page.compression == JPEG:
            header = self._checker.check(data)
            frame = (header.width, header.height)
        elif data.startswith(_JPEG2000_START):
            right, bottom, left, top = struct.unpack_from(">4I", data.ljust(24), 8)
            frame = (right - left, bottom - top)
        if frame[0] * frame[1] > width * height:
            raise ValueError(f"its stream has {frame[0]} × {frame[1]} pixels")
        if page.compression != 1:
            check_expansion((width, height, page.samplesperpixel), len(data))

    def _read(self, offset: int, size: int) -> bytes:
        with timed("read"):
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
