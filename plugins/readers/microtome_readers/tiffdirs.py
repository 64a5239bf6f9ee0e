"""Reads the directories of a TIFF and nothing else.

That takes a millisecond, where importing tifffile takes a fifth of a second: so it is told from
them which files may be decoded directly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
FILL_ORDER, DESCRIPTION, MAKE, MODEL, SAMPLES = 266, 270, 271, 272, 277
X_RESOLUTION, Y_RESOLUTION, PLANAR, UNIT, SOFTWARE = 282, 283, 284, 296, 305
DATE_TIME, ARTIST, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 306, 315, 322, 323, 324, 325
SUB_IFDS, JPEG_TABLES, XML_PACKET, IMAGE_DEPTH, COPYRIGHT = 330, 347, 700, 32997, 33432
ARGOS, NDPI = 65000, 65420

_READ = {
    *(SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, DESCRIPTION),
    *(MAKE, MODEL, SAMPLES, X_RESOLUTION, Y_RESOLUTION, PLANAR, UNIT, SOFTWARE, DATE_TIME, ARTIST),
    *(TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, JPEG_TABLES, IMAGE_DEPTH, COPYRIGHT),
}
"""Tags whose values are read; of the others only that they are there."""

_TYPES = {
    **{1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "2u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4"},
    **{10: "2i4", 11: "f4", 12: "f8", 16: "u8", 17: "i8"},
}
"""numpy's names of TIFF's types; a rational is two numbers."""

_OPAQUE = (2, 7)
"""The types of text and of bytes that are no numbers."""

_KINDS = {*_TYPES, 13, 18}
"""All types: those of values, and directories."""

_NONE, _NO_RATIONAL = np.zeros(0, np.uint8), np.zeros((0, 2), np.uint8)

_LIMIT = 1024
"""Directories of a file at most: a slide has a dozen."""


@dataclass(frozen=True, eq=False)
class Directory:
    """One directory of a TIFF.

    Attributes:
        tags: The codes of all its tags.
        values: Of those that are read: bytes of text and opaque data, (n,) or for rationals (n, 2)
            numbers otherwise.
    """

    tags: frozenset[int]
    values: dict[int, Any]

    def number(self, tag: int, default: int = 0) -> int:
        """Give a tag's first number, as `numbers` does."""
        numbers = self.numbers(tag)
        return int(numbers[0]) if len(numbers) else default

    def numbers(self, tag: int) -> NDArray[np.int64]:
        """Give all of a tag's numbers, none where it is not there.

        Raises:
            ValueError: If they are signed or not whole, or above what 63 bits hold.
        """
        value = self.values.get(tag, _NONE)
        if isinstance(value, bytes) or value.ndim != 1 or value.dtype.kind != "u":
            raise ValueError(f"its tag {tag} does not hold unsigned numbers")
        numbers: NDArray[np.int64] = value.astype(np.int64)
        if (numbers < 0).any():
            raise ValueError(f"its tag {tag} holds numbers beyond reason")
        return numbers

    def data(self, tag: int) -> bytes:
        """Give a tag's bytes, none where it is not there.

        Raises:
            ValueError: If it holds larger items.
        """
        value = self.values.get(tag, b"")
        if isinstance(value, bytes):
            return value
        if value.dtype.itemsize != 1:
            raise ValueError(f"its tag {tag} does not hold bytes")
        return bytes(value.tobytes())

    def text(self, tag: int) -> str:
        """Give a tag's text, as `data` does."""
        return self.data(tag).split(b"\0")[0].decode("utf-8", "replace")

    def rational(self, tag: int) -> float:
        """Give a tag's first unsigned rational, 0 where it is not there or divided by 0.

        Raises:
            ValueError: If it is none.
        """
        value = self.values.get(tag, _NO_RATIONAL)
        if isinstance(value, bytes) or value.ndim != 2 or value.dtype.kind != "u":
            raise ValueError(f"its tag {tag} does not hold rationals")
        numerator, denominator = value[0].tolist() if len(value) else (0, 0)
        return float(numerator / denominator) if denominator else 0.0

    @property
    def is_tiled(self) -> bool:
        """Whether it holds tiles, not strips."""
        return TILE_WIDTH in self.tags

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.number(WIDTH), self.number(HEIGHT)

    @property
    def tile(self) -> tuple[int, int]:
        """(width, height) of a tile in pixels."""
        return self.number(TILE_WIDTH), self.number(TILE_HEIGHT)


def read_directories(path: Path) -> list[Directory]:
    """Read every directory of a TIFF's main chain.

    Raises:
        ValueError: If it is no TIFF, or its directories make no sense.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        return list(_Chain(file.fileno()).directories())


class _Chain:
    """The directories of an open TIFF or BigTIFF, of either byte order."""

    def __init__(self, file: int) -> None:
        self._file, self._size = file, os.fstat(file).st_size
        head = os.pread(file, 16, 0)
        self._order: Literal["little", "big"] = "big" if head[:2] == b"MM" else "little"
        version = self._integer(head[2:4])
        if head[:2] not in (b"II", b"MM") or version not in (42, 43):
            raise ValueError("it is no TIFF")
        self._word = 8 if version == 43 else 4
        self._first = self._integer(head[self._word : 2 * self._word])

    def directories(self) -> Iterator[Directory]:
        """Give each directory."""
        offset, seen = self._first, set[int]()
        while offset:
            if offset in seen or len(seen) >= _LIMIT:
                raise ValueError("its directories go round in a circle")
            seen.add(offset)
            directory, offset = self._directory(offset)
            yield directory

    def _directory(self, offset: int) -> tuple[Directory, int]:
        """Read one directory, and where the next one is."""
        head, entry = (8, 20) if self._word == 8 else (2, 12)
        size = self._integer(self._bytes(offset, head)) * entry
        body = self._bytes(offset + head, size + self._word)
        entries = [body[at : at + entry] for at in range(0, size, entry)]
        tags = [self._integer(data[:2]) for data in entries]
        if any(tag >= after for tag, after in pairwise(tags)):
            # Libraries do not agree on which one of two counts.
            raise ValueError("its tags are repeated or out of order")
        for kind in {self._integer(data[2:4]) for data in entries} - _KINDS:
            raise ValueError(f"it has a tag of the unknown type {kind}")
        pairs = zip(tags, entries, strict=True)
        values = {tag: self._value(data[2:]) for tag, data in pairs if tag in _READ}
        return Directory(frozenset(tags), values), self._integer(body[size:])

    def _value(self, entry: bytes) -> Any:
        """Read a tag's value out of its entry, or from where that points to."""
        word, kind = self._word, self._integer(entry[:2])
        if kind not in _TYPES:
            raise ValueError("it has a tag that points to a directory where it should hold a value")
        dtype = np.dtype(_TYPES[kind]).newbyteorder(self._order)
        size = self._integer(entry[2 : 2 + word]) * dtype.itemsize
        data = entry[2 + word :][:size]
        if size > word:
            data = self._bytes(self._integer(entry[2 + word :]), size)
        return data if kind in _OPAQUE else np.frombuffer(data, dtype)

    def _integer(self, data: bytes) -> int:
        return int.from_bytes(data, self._order)

    def _bytes(self, offset: int, size: int) -> bytes:
        data = os.pread(self._file, size, offset) if offset + size <= self._size else b""
        if len(data) != size:
            raise ValueError(f"it is truncated: a tag should end at byte {offset + size}")
        return data
