"""What a TIFF says of itself: its pyramid, its metadata, and whether its bytes are all there."""

from __future__ import annotations

import logging
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tifffile

from microtome.errors import SlideOpenError
from microtome.slide.types import Level
from microtome_readers.tiff.dirs import check_directories
from microtome_readers.tiff.plausible import STRIP_LIMIT, check_claim, check_tile
from microtome_readers.tiff.props import describe_tiff

# It logs what it then raises, or makes do without: a line on the terminal for each odd tag.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

TAG_ERRORS = (
    tifffile.TiffFileError,
    struct.error,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    TypeError,
    ValueError,
)
"""What tifffile lets through on tags that make no sense."""

JPEG = 7
JPEG2000 = (33003, 33005)
APERIO_YCBCR = 33003
"""Aperio's JPEG 2000 whose three components are YCbCr, told by this tag alone."""

_TEXT_TAGS = ("ImageDescription", "Make", "Model", "Software", "DateTime", "Artist", "Copyright")


@dataclass(frozen=True)
class TiffTags:
    """What the tags of a TIFF say.

    Attributes:
        pages: One tifffile page a level, finest first.
        vendor: As OpenSlide names it, where known.
        properties: Its metadata under OpenSlide's names.
    """

    pages: list[Any]
    vendor: str | None
    properties: dict[str, str]


def read_tags(path: Path) -> TiffTags:
    """Read the tags of a TIFF. The file is closed again; the pages still decode.

    Raises:
        SlideOpenError: If it is no TIFF, or its tags or byte ranges make no sense.
    """
    try:
        check_directories(path)
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            pages = find_pyramid(list(tiff.pages))
            check_claim(path, pages[0].imagewidth, pages[0].imagelength)
            for page in pages:
                _check_page(page, tiff.filehandle.size)
                # Kept by the page: they look into the file, which is closed later.
                _ = page.decode, page.jpegtables, page.colormap
            return TiffTags(pages, *_read_properties(pages[0]))
    except SlideOpenError:
        raise
    except TAG_ERRORS as error:
        raise SlideOpenError(f"its TIFF tags cannot be read ({error})") from error


def find_pyramid(pages: list[Any]) -> list[Any]:
    """Tell the levels among a TIFF's pages, finest first.

    A page is a level when it holds the same kind of pixels as the first one, says that it is a
    reduced version of it (or the file is Aperio's, which says nothing), and has its proportions
    to within two pixels: labels, macros and other series are no levels. SubIFDs, which OME-TIFF
    keeps its pyramid in, count where the main chain has no levels: OpenSlide knows only that.
    """
    base = pages[0]
    chain = [page for page in pages[1:] if page.is_reduced or base.is_svs]
    if any(page.imagewidth > base.imagewidth and _kind(page) == _kind(base) for page in chain):
        # OpenSlide would take that for the finest level.
        raise SlideOpenError("it has a level that is larger than its first one")
    levels = _levels_among(base, chain)
    return levels if len(levels) > 1 else _levels_among(base, list(base.pages or ()))


def _levels_among(base: Any, pages: list[Any]) -> list[Any]:
    levels = [base]
    for page in sorted(pages, key=lambda page: -int(page.imagewidth)):
        smaller = page.imagewidth < levels[-1].imagewidth
        if smaller and _kind(page) == _kind(base) and _proportional(page, base):
            levels.append(page)
    return levels


def describe_levels(pages: list[Any]) -> tuple[Level, ...]:
    """Describe a pyramid; downsamples are the mean of both axes, as OpenSlide's are."""
    base = pages[0]
    return tuple(
        Level(
            width=page.imagewidth,
            height=page.imagelength,
            downsample=(base.imagewidth / page.imagewidth + base.imagelength / page.imagelength)
            / 2,
            tile=segment_size(page),
        )
        for page in pages
    )


def whole_downsamples(pages: list[Any]) -> bool:
    """Whether every pixel of every level starts at a whole level-0 pixel.

    Where not, OpenSlide interpolates between pixels, and so do its stand-ins, each with its own
    rounding.
    """
    return all(level.downsample.is_integer() for level in describe_levels(pages))


def segment_size(page: Any) -> tuple[int, int]:
    """Give the (width, height) of a page's tiles or strips."""
    if page.is_tiled:
        return page.tilewidth, page.tilelength
    return page.imagewidth, min(page.rowsperstrip, page.imagelength)


def _read_properties(page: Any) -> tuple[str | None, dict[str, str]]:
    texts = {name: str(page.tags[name].value) for name in _TEXT_TAGS if name in page.tags}
    resolution = (_rational(page, "XResolution"), _rational(page, "YResolution"))
    unit = int(page.tags["ResolutionUnit"].value) if "ResolutionUnit" in page.tags else None
    return describe_tiff(texts, resolution, unit)


def _kind(page: Any) -> tuple[Any, ...]:
    return (page.is_tiled, page.samplesperpixel, page.bitspersample, page.photometric)


def _proportional(page: Any, base: Any) -> bool:
    off = page.imagewidth * base.imagelength - page.imagelength * base.imagewidth
    return bool(abs(off) <= 2 * max(base.imagewidth, base.imagelength))


def _check_page(page: Any, file_size: int) -> None:
    width, height = page.imagewidth, page.imagelength
    if width < 1 or height < 1:
        raise SlideOpenError(f"its TIFF tags give it a size of {width} × {height} pixels")
    tile_width, tile_height = segment_size(page)
    if page.is_tiled:
        check_tile(tile_width, tile_height)
    count = math.ceil(width / tile_width) * math.ceil(height / tile_height)
    if not page.is_tiled and count > STRIP_LIMIT:
        raise SlideOpenError(f"it has {count} strips: convert it to a tiled TIFF first")
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        count *= page.samplesperpixel
    if not len(page.dataoffsets) == len(page.databytecounts) == count:
        raise SlideOpenError(
            f"its TIFF tags list {len(page.dataoffsets)} tiles or strips where "
            f"{width} × {height} pixels need {count}"
        )
    for index, (offset, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        if offset + size > file_size:
            raise SlideOpenError(
                f"it is truncated: tile or strip {index} ends at byte {offset + size}, the file "
                f"at {file_size}"
            )


def _rational(page: Any, name: str) -> float:
    value = page.tags[name].value if name in page.tags else (0, 1)
    numerator, denominator = value if isinstance(value, tuple) else (value, 1)
    return numerator / denominator if denominator else 0.0
