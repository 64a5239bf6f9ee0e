"""The layouts of TIFF whose pixels are known, by test, to be OpenSlide's when decoded directly.

OpenSlide tells vendors apart by a file's tags, and each has a way of its own with overlaps, padding
and tiles that are not there. A file is on the list if it is one of the two plain kinds and cannot
be any of the others; what is in doubt is refused and left to OpenSlide.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from microtome.slide.types import Level
from microtome_readers.tiff import dirs as tags
from microtome_readers.tiff.dirs import Directory, read_directories
from microtome_readers.tiff.jpegstream import JpegChecker
from microtome_readers.tiff.jpegtiles import JpegTiles, TileTable
from microtome_readers.tiff.plausible import TILE_LIMIT, check_claim
from microtome_readers.tiff.props import describe_tiff, plain_mpp
from microtome_readers.tiff.tilewalk import Source

_JPEG, _CHUNKY, _RGB, _YCBCR = 7, 1, 2, 6
_REDUCED = 1
"""The bit of NewSubfileType that says that an image is a smaller version of another one."""

_TEXTS = {
    **{"ImageDescription": tags.DESCRIPTION, "Make": tags.MAKE, "Model": tags.MODEL},
    **{"Software": tags.SOFTWARE, "DateTime": tags.DATE_TIME, "Artist": tags.ARTIST},
    "Copyright": tags.COPYRIGHT,
}


@dataclass(frozen=True)
class KnownSlide:
    """A file whose layout is on the list.

    Attributes:
        layout: The layout's name.
        vendor: As OpenSlide names it.
        properties: Under OpenSlide's names.
        tables: Of each level's tiles, finest first.
    """

    layout: str
    vendor: str
    properties: dict[str, str]
    tables: tuple[TileTable, ...]

    @property
    def channels(self) -> int:
        """Nothing is transparent."""
        return 3

    @property
    def levels(self) -> tuple[Level, ...]:
        """Finest first; downsamples are the mean of both axes, as OpenSlide's are."""
        wide, high = self.tables[0].size
        return tuple(
            Level(
                width=table.size[0],
                height=table.size[1],
                downsample=(wide / table.size[0] + high / table.size[1]) / 2,
                tile=table.tile,
            )
            for table in self.tables
        )

    def sources(self, file: int) -> list[Source]:
        """Give the tiles of each level."""
        return [JpegTiles(file, table, self.channels) for table in self.tables]


@dataclass(frozen=True)
class _Layout:
    """A kind of file.

    Attributes:
        name: For people.
        vendor: As OpenSlide names it.
        claims: Whether a file is of this kind, told as OpenSlide tells it.
        levels: The directories that OpenSlide takes for levels, in its order.
    """

    name: str
    vendor: str
    claims: Callable[[Sequence[Directory]], bool]
    levels: Callable[[Sequence[Directory]], list[Directory]]


def find_known(path: Path) -> KnownSlide:
    """Recognise a slide whose layout is on the list.

    Raises:
        ValueError: If it is not; says why.
        OSError: If it cannot be read.
    """
    directories = read_directories(path)
    if not directories or not directories[0].is_tiled:
        raise ValueError("its first image is striped")
    with path.open("rb") as file:
        head = os.pread(file.fileno(), 132, 0)
        if head.startswith(b"MM"):
            raise ValueError("it is big-endian, which OpenSlide reads in part only")
        if head.endswith(b"DICM"):
            raise ValueError("it is DICOM as well")
        _refuse_foreign(directories)
        layout = next(layout for layout in LAYOUTS if layout.claims(directories))
        levels = layout.levels(directories)
        _refuse_no_pyramid(levels)
        check_claim(path, *levels[0].size)
        tables = tuple(_table(level, file.fileno()) for level in levels)
    return KnownSlide(layout.name, layout.vendor, _properties(layout, directories[0]), tables)


def _is_aperio(directories: Sequence[Directory]) -> bool:
    return directories[0].text(tags.DESCRIPTION).startswith("Aperio")


def _tiled(directories: Sequence[Directory]) -> list[Directory]:
    """Every tiled directory is a level of an Aperio slide; the others are label and macro."""
    return [directory for directory in directories if directory.is_tiled]


def _tiled_and_reduced(directories: Sequence[Directory]) -> list[Directory]:
    """The first, and every tiled one that says it is a smaller version."""
    first, *others = directories
    reduced = [d for d in _tiled(others) if d.number(tags.SUBFILE_TYPE) & _REDUCED]
    return [first, *sorted(reduced, key=lambda directory: -directory.size[0])]


LAYOUTS = (
    _Layout("Aperio SVS", "aperio", _is_aperio, _tiled),
    _Layout("pyramidal TIFF", "generic-tiff", lambda _: True, _tiled_and_reduced),
)
"""The list; the first that claims a file has it."""

_FOREIGN: tuple[tuple[str, Callable[[Directory], bool]], ...] = (
    ("it is Hamamatsu's", lambda d: tags.NDPI in d.tags),
    ("it is Argos'", lambda d: tags.ARGOS in d.tags),
    ("it is Huron's", lambda d: "Huron" in d.text(tags.MAKE) + d.text(tags.DESCRIPTION)),
    ("it is Trestle's", lambda d: d.text(tags.SOFTWARE).startswith("MedScan")),
    ("it is Philips'", lambda d: d.text(tags.SOFTWARE).startswith("Philips")),
    ("its description is XML: OME's, Leica's or Philips'", lambda d: _is_xml(d)),
    ("it holds an XML packet, as Ventana's do", lambda d: tags.XML_PACKET in d.tags),
    ("it has SubIFDs, where OME keeps levels", lambda d: tags.SUB_IFDS in d.tags),
)
"""What tells that a file may be another vendor's, in any of its directories."""

_UNFIT: tuple[tuple[str, Callable[[Directory], bool]], ...] = (
    ("has no size", lambda d: min(*d.size, *d.tile) < 1),
    ("has tiles too large to be decoded at once", lambda d: math.prod(d.tile) > TILE_LIMIT),
    ("is not JPEG", lambda d: d.number(tags.COMPRESSION) != _JPEG),
    ("is not of three samples", lambda d: d.number(tags.SAMPLES, 1) != 3),
    ("is not of 8 bits", lambda d: set(d.numbers(tags.BITS).tolist()) != {8}),
    ("is in planes", lambda d: d.number(tags.PLANAR, _CHUNKY) != _CHUNKY),
    ("is not RGB or YCbCr", lambda d: d.number(tags.PHOTOMETRIC) not in (_RGB, _YCBCR)),
    ("is three-dimensional", lambda d: d.number(tags.IMAGE_DEPTH, 1) != 1),
    ("has its bits reversed", lambda d: d.number(tags.FILL_ORDER, 1) != 1),
    ("does not list all tiles", lambda d: not _lists_all(d)),
    ("has empty tiles", lambda d: not d.numbers(tags.TILE_COUNTS).all()),
)
"""What tells that a level is not plain."""


def _is_xml(directory: Directory) -> bool:
    return directory.text(tags.DESCRIPTION).lstrip("\ufeff \t\r\n").startswith("<")


def _lists_all(directory: Directory) -> bool:
    sides = zip(directory.size, directory.tile, strict=True)
    count = math.prod(-(-side // tile) for side, tile in sides)
    listed = (directory.numbers(tag) for tag in (tags.TILE_OFFSETS, tags.TILE_COUNTS))
    return all(len(numbers) == count for numbers in listed)


def _refuse_foreign(directories: Sequence[Directory]) -> None:
    for reason, test in _FOREIGN:
        if any(map(test, directories)):
            raise ValueError(reason)


def _refuse_no_pyramid(levels: Sequence[Directory]) -> None:
    for index, level in enumerate(levels):
        for reason, test in _UNFIT:
            if test(level):
                raise ValueError(f"its level {index} {reason}")
    sizes = [level.size for level in levels]
    (wide, high), *others = sizes
    # Rounding may cost each side two pixels; what else is tiled is a picture of its own.
    if any(abs(w * high - h * wide) > 2 * max(wide, high) for w, h in others):
        raise ValueError("its levels are not of one proportion")
    if any(w >= before for (w, _), (before, _) in zip(others, sizes, strict=False)):
        raise ValueError("its levels do not get smaller")


def _table(level: Directory, file: int) -> TileTable:
    """Take a level's tiles, a few of which are looked at."""
    table = TileTable(
        size=level.size,
        tile=level.tile,
        offsets=level.numbers(tags.TILE_OFFSETS),
        counts=level.numbers(tags.TILE_COUNTS),
        tables=level.data(tags.JPEG_TABLES) or None,
        ycbcr=level.number(tags.PHOTOMETRIC) == _YCBCR,
    )
    if (table.offsets + table.counts).max() > os.fstat(file).st_size:
        raise ValueError("it is truncated")
    checker = JpegChecker(table.tables, (*table.tile, 3))
    for index in {0, len(table.counts) // 2, len(table.counts) - 1}:
        checker.check(os.pread(file, int(table.counts[index]), int(table.offsets[index])))
    return table


def _properties(layout: _Layout, first: Directory) -> dict[str, str]:
    texts = {name: text for name, tag in _TEXTS.items() if (text := first.text(tag))}
    resolution = (first.rational(tags.X_RESOLUTION), first.rational(tags.Y_RESOLUTION))
    unit = first.number(tags.UNIT) if tags.UNIT in first.tags else None
    _, properties = describe_tiff(texts, resolution, unit)
    if layout.vendor == "generic-tiff":
        properties |= plain_mpp(resolution, unit)
    return properties
