"""Writes TIFFs tag by tag, whether they make sense or not."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 256, 257, 258, 259, 262, 270
OFFSETS, SAMPLES, ROWS, COUNTS, X_RESOLUTION, Y_RESOLUTION = 273, 277, 278, 279, 282, 283
UNIT, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 296, 322, 323, 324, 325
SUBFILE, PLANAR, SUB_IFDS, JPEG_TABLES = 254, 284, 330, 347

NONE, JPEG, DEFLATE, JPEG2000 = 1, 7, 8, 33005

_FORMATS = {2: "s", 3: "H", 4: "I", 5: "II", 7: "s", 9: "i", 10: "ii", 16: "Q"}


@dataclass(frozen=True)
class Tag:
    """A tag as it is written.

    Attributes:
        kind: TIFF's number of the type.
        count: Of values, as claimed.
        data: Bytes, kept beside the directory where they do not fit in.
    """

    kind: int
    count: int
    data: bytes


def shorts(*values: int) -> Tag:
    """Give 16-bit numbers."""
    return Tag(3, len(values), struct.pack(f"<{len(values)}H", *values))


def longs(*values: int) -> Tag:
    """Give 32-bit numbers."""
    return Tag(4, len(values), struct.pack(f"<{len(values)}I", *values))


def signed(*values: int) -> Tag:
    """Give 32-bit numbers that may be negative."""
    return Tag(9, len(values), struct.pack(f"<{len(values)}i", *values))


def text(data: bytes) -> Tag:
    """Give text, zero at the end."""
    return Tag(2, len(data) + 1, data + b"\0")


def opaque(data: bytes) -> Tag:
    """Give bytes that mean nothing to TIFF."""
    return Tag(7, len(data), data)


def rational(numerator: int, denominator: int) -> Tag:
    """Give a fraction."""
    return Tag(5, 1, struct.pack("<II", numerator, denominator))


class RawTiff:
    """A little-endian TIFF that is being written."""

    def __init__(self) -> None:
        self._data = bytearray(b"II*\0\0\0\0\0")

    @property
    def end(self) -> int:
        """Where the next thing goes."""
        return len(self._data) + len(self._data) % 2

    def put(self, data: bytes) -> int:
        """Add bytes and give their offset."""
        offset = self.end
        self._data += b"\0" * (offset - len(self._data)) + data
        return offset

    def directory(self, tags: Mapping[int, Tag], *, following: int = 0) -> int:
        """Add a directory and give its offset.

        Args:
            tags: By code.
            following: Offset of the next one.
        """
        entries = []
        for code, tag in sorted(tags.items()):
            value = tag.data if len(tag.data) <= 4 else struct.pack("<I", self.put(tag.data))
            entries.append(struct.pack("<HHI", code, tag.kind, tag.count) + value.ljust(4, b"\0"))
        body = b"".join(entries) + struct.pack("<I", following)
        return self.put(struct.pack("<H", len(entries)) + body)

    def save(self, path: Path, first: int) -> Path:
        """Write the file.

        Args:
            path: Of the file.
            first: Offset of its first directory.
        """
        self._data[4:8] = struct.pack("<I", first)
        path.write_bytes(self._data)
        return path


def tiled(
    size: tuple[int, int],
    tile: tuple[int, int],
    offsets: Tag,
    counts: Tag,
    *,
    compression: int = DEFLATE,
) -> dict[int, Tag]:
    """Give the tags of a tiled RGB image."""
    return {
        SUBFILE: longs(0),
        WIDTH: longs(size[0]),
        HEIGHT: longs(size[1]),
        BITS: shorts(8, 8, 8),
        COMPRESSION: shorts(compression),
        PHOTOMETRIC: shorts(2),
        SAMPLES: shorts(3),
        PLANAR: shorts(1),
        TILE_WIDTH: longs(tile[0]),
        TILE_HEIGHT: longs(tile[1]),
        TILE_OFFSETS: offsets,
        TILE_COUNTS: counts,
    }


def striped(
    size: tuple[int, int], rows: int, offsets: Tag, counts: Tag, *, compression: int = DEFLATE
) -> dict[int, Tag]:
    """Give the tags of an RGB image in strips."""
    tags = tiled(size, (16, 16), offsets, counts, compression=compression)
    for tag in (TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS):
        del tags[tag]
    return tags | {OFFSETS: offsets, ROWS: longs(rows), COUNTS: counts}
