"""Reads the directories of a TIFF and nothing else.

That takes a millisecond, where importing tifffile takes a fifth of a second: so it is told from
them which files may be decoded directly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from microtome.errors import SlideOpenError
from microtome_readers.tiff.plausible import DIRECTORY_LIMIT, TAG_BYTES

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

_TOO_MANY = f"it has more than {DIRECTORY_LIMIT} images, and a slide has a dozen"

_NONE, _NO_RATIONAL = np.zeros(0, np.uint8), np.zeros((0, 2), np.uint8)


class EndlessError(SlideOpenError, ValueError):
    """Directories without end, for all that reading them takes."""


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


def check_directories(path: Path) -> None:
    """Refuse a TIFF whose directories would fill the memory of whoever reads them.

    Anything else that is wrong with them is left to the library that reads the file next.

    Raises:
        EndlessError: If they are too many or a circle, or their values far more than the file has
            bytes.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        # Beyond 4 GiB Hamamatsu's have longer offsets than the others, and nobody lies so large.
        if os.fstat(file.fileno()).st_size >> 32:
            return
        try:
            _Chain(file.fileno()).weigh()
        except EndlessError:
            raise
        except ValueError:
            return


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
        # A byte is one tag's, mostly: a thousand directories may not share a large one.
        self._unread = max(TAG_BYTES, 2 * self._size)

    def directories(self) -> Iterator[Directory]:
        """Give each directory."""
        for entries in self._main():
            yield self._directory(entries)

    def weigh(self) -> None:
        """Count directories and add up what their tags claim, as `check_directories` says."""
        count = 0
        for entries in self._main():
            below = [data for data in entries if self._integer(data[:2]) == SUB_IFDS]
            places = self._numbers(below[0][2:]) if below else []
            count += 1 + len(places)
            if count > DIRECTORY_LIMIT:
                raise EndlessError(_TOO_MANY)
            self._weigh(entries)
            for place in places:
                self._weigh(self._entries(place)[0])

    def _weigh(self, entries: Sequence[bytes]) -> None:
        for data in entries:
            kind = self._integer(data[2:4])
            size = self._integer(data[4 : 4 + self._word])
            size *= np.dtype(_TYPES[kind]).itemsize if kind in _TYPES else 1
            if self._word < size <= self._size:  # what is larger cannot be read
                self._charge(size)

    def _numbers(self, entry: bytes) -> list[int]:
        """Give the offsets of directories."""
        kind = self._integer(entry[:2])
        code = {13: 4, 18: 16}.get(kind, kind)
        value = self._value(code.to_bytes(2, self._order) + entry[2:])
        return [] if isinstance(value, bytes) or value.ndim != 1 else [int(v) for v in value]

    def _main(self) -> Iterator[list[bytes]]:
        """Give the entries of each directory of the main chain."""
        offset, seen = self._first, set[int]()
        while offset:
            if offset in seen:
                raise EndlessError("its directories go round in a circle")
            if len(seen) == DIRECTORY_LIMIT:
                raise EndlessError(_TOO_MANY)
            seen.add(offset)
            entries, offset = self._entries(offset)
            yield entries

    def _entries(self, offset: int) -> tuple[list[bytes], int]:
        """Read the entries of one directory, and where the next one is."""
        head, entry = (8, 20) if self._word == 8 else (2, 12)
        size = self._integer(self._bytes(offset, head)) * entry
        body = self._bytes(offset + head, size + self._word)
        entries = [body[at : at + entry] for at in range(0, size, entry)]
        return entries, self._integer(body[size:])

    def _directory(self, entries: Sequence[bytes]) -> Directory:
        tags = [self._integer(data[:2]) for data in entries]
        if any(tag >= after for tag, after in pairwise(tags)):
            # Libraries do not agree on which one of two counts.
            raise ValueError("its tags are repeated or out of order")
        for kind in {self._integer(data[2:4]) for data in entries} - _KINDS:
            raise ValueError(f"it has a tag of the unknown type {kind}")
        pairs = zip(tags, entries, strict=True)
        values = {tag: self._value(data[2:]) for tag, data in pairs if tag in _READ}
        return Directory(frozenset(tags), values)

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
        self._charge(size)
        return data

    def _charge(self, size: int) -> None:
        self._unread -= size
        if self._unread < 0:
            raise EndlessError("its tags claim far more bytes than it has: they overlap")
