"""Checks that a JPEG stream is whole, without decoding it.

Decoders fill in grey for a stream that ends early, and say nothing: what is checked here is what
they do not tell. Damage inside the entropy-coded data cannot be seen this way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_PROGRESSIVE = 0xC2
_SOF = (0xC0, 0xC1, _PROGRESSIVE)
"""Baseline, extended and progressive frames: what every decoder reads."""
_DHT, _SOS, _DQT = 0xC4, 0xDA, 0xDB
_APPLICATION = range(0xE0, 0xF0)
"""JFIF's, Adobe's, Exif's markers and colour profiles: what a decoder may take its colours from."""

_PADDING = 16
"""Zero bytes behind the end of a stream that are looked through without a search."""

_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""What ends entropy-coded data, in which FF is followed by 00 or is a restart.

Of several FF before it, the last: a search for all of them takes the square of their number.
"""

_KNOWN = 8
"""Headers that are remembered: scanners use one for all tiles of a level, or one for each."""


@dataclass(frozen=True)
class JpegHeader:
    """What a stream says up to its scan.

    Attributes:
        width: In pixels.
        height: In pixels.
        components: How many.
        data: The bytes themselves.
    """

    width: int
    height: int
    components: int
    data: bytes

    @property
    def frame(self) -> tuple[int, int, int]:
        """(width, height, components)."""
        return self.width, self.height, self.components


class JpegChecker:
    """Checks the streams of one level, which mostly begin alike.

    Args:
        tables: An abbreviated stream with their tables, as TIFF's JPEGTables holds them.
        frame: (width, height, components) that they must have, if it matters.
    """

    def __init__(self, tables: bytes | None, frame: tuple[int, int, int] | None = None) -> None:
        self._tables, self._frame = tables, frame
        # A tuple that is replaced, never changed: threads share it without a lock.
        self._known: tuple[JpegHeader, ...] = ()

    def check(self, data: bytes) -> JpegHeader:
        """Check a stream, as `parse_jpeg` does, and its frame."""
        for header in self._known:
            if data.startswith(header.data):
                _check_end(data, len(header.data))
                return header
        header = parse_jpeg(data, self._tables)
        if self._frame not in (None, header.frame):
            width, height, components = header.frame
            raise ValueError(f"its JPEG frame is {width} × {height} with {components} components")
        if len(self._known) < _KNOWN:
            self._known = (*self._known, header)
        return header


def parse_jpeg(data: bytes, tables: bytes | None = None) -> JpegHeader:
    """Check a stream's markers up to its scan, and its end.

    Args:
        data: The stream, or its head and tail joined.
        tables: An abbreviated stream with its tables, as TIFF's JPEGTables holds them.

    Returns:
        What it says.

    Raises:
        ValueError: If the stream is not whole; says where.
    """
    defined = set(_tables(tables)) if tables else set()
    frame: tuple[int, int, int] | None = None
    kind = 0
    for marker, body, end in _segments(data):
        if marker in _SOF:
            kind, frame = marker, _frame(body)
        elif marker == _SOS:
            if frame is None:
                raise ValueError("its JPEG stream has a scan before its frame")
            if kind != _PROGRESSIVE:  # whose scans use one table each
                _check_scan(body, defined)
            _check_end(data, end)
            return JpegHeader(*frame, data[:end])
        else:
            defined.update(_definitions(marker, body))
    raise ValueError("its JPEG stream has no scan")


def _check_end(data: bytes, scan: int) -> None:
    """Look for a stream's end, whatever follows it: decoders stop there."""
    if data[-_PADDING - 2 :].rstrip(b"\0").endswith(_EOI):
        return
    # Not the bytes FF D9 anywhere: a next stream's end behind a cut one is not this one's.
    while match := _MARKER.search(data, scan):
        if match[0].endswith(_EOI):
            return
        if match[0].endswith(_SOI):
            break
        scan = match.end() + int.from_bytes(data[match.end() : match.end() + 2])
    raise ValueError("its JPEG stream has no end: it is truncated")


def _tables(data: bytes) -> Iterator[tuple[int, int]]:
    for marker, body, _ in _segments(data):
        yield from _definitions(marker, body)


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Give each marker up to the scan or the end, with its parameters and where these end."""
    if data[:2] != _SOI:
        raise ValueError("its JPEG stream does not begin as one")
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise ValueError(f"its JPEG stream has no marker at byte {at}")
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if size < 2 or at + 2 + size > len(data):
            raise ValueError(f"its JPEG marker {marker:02X} at byte {at} has a bogus length")
        yield marker, data[at + 4 : at + 2 + size], at + 2 + size
        if marker == _SOS:
            return
        at += 2 + size


def _frame(body: bytes) -> tuple[int, int, int]:
    if len(body) < 6 or len(body) != 6 + 3 * body[5] or body[0] != 8:
        raise ValueError("its JPEG frame is not one of 8 bits")
    return int.from_bytes(body[3:5]), int.from_bytes(body[1:3]), body[5]


def _check_scan(body: bytes, defined: set[tuple[int, int]]) -> None:
    if not body or len(body) != 4 + 2 * body[0]:
        raise ValueError("its JPEG scan has a bogus length")
    for selector in body[2 : 2 + 2 * body[0] : 2]:
        if not {(_DHT, selector >> 4), (_DHT, 16 | selector & 15)} <= defined:
            raise ValueError("its JPEG scan uses a Huffman table that is not there")


def _definitions(marker: int, body: bytes) -> Iterator[tuple[int, int]]:
    """Name the tables that a marker defines, and check that they fill it."""
    at = 0
    while marker in (_DHT, _DQT) and at < len(body):
        head = body[at]
        yield marker, head
        if marker == _DQT:
            at += 1 + 64 * (2 if head >> 4 else 1)
        else:
            at += 17 + sum(body[at + 1 : at + 17])
    if at > len(body):
        raise ValueError(f"its JPEG marker {marker:02X} has a bogus length")


def standalone(header: bytes, tables: bytes | None, *, ycbcr: bool) -> bytes:
    """Make a stream's header complete, for decoders that know neither tables nor colours.

    Args:
        header: Of a stream, up to its scan.
        tables: What it leaves out, as TIFF's JPEGTables holds it.
        ycbcr: What its colours are; RGB otherwise. Adobe's marker says so in the result.

    Returns:
        A header that takes the place of the old one.
    """
    parts = [_SOI, _adobe(ycbcr)]
    for stream in (tables or _SOI, header):
        for marker, body, _ in _segments(stream):
            if marker not in _APPLICATION:
                parts.append(b"\xff%c%s%s" % (marker, (len(body) + 2).to_bytes(2, "big"), body))
    return b"".join(parts)


def _adobe(ycbcr: bool) -> bytes:
    """Write Adobe's marker: a version, two empty flags, the transform."""
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00%c" % int(ycbcr)
