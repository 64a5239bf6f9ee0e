"""Reads JSON of any encoding, also compressed, and the first bytes of any file as text."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from microtome.errors import AnnotationError

_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_LARGEST, _ALWAYS, _RATIO = 1 << 30, 64 << 20, 100
"""Bytes that a compressed file may hold: the first number, and beyond the second so many times its
own. A few kilobytes can say that they are terabytes; outlines are packed to a tenth, not more."""

_PIECE = 1 << 20


def read_json(path: Path, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Read a file.

    Args:
        path: JSON in UTF-8, -16 or -32, or that in gzip or as the one member of a zip.
        hook: Given each object once it is read; what it returns takes its place.

    Raises:
        AnnotationError: If it is not that; names the line.
    """
    try:
        data = _inflated(path.read_bytes())
        return json.loads(data.decode(json.detect_encoding(data)), object_hook=hook)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise AnnotationError(f"{path}, {place}: it is no JSON here ({error.msg}).") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise AnnotationError(
            f"{path}, line {line}: it is no {error.encoding.upper()}. Save it as UTF-8."
        ) from error
    except RecursionError as error:
        raise AnnotationError(f"{path} is nested deeper than any annotation.") from error
    except (ValueError, EOFError, OSError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise AnnotationError(f"{path} cannot be read: {error}.") from error


def head_text(head: bytes) -> str:
    """Give the first bytes of a file as text, decompressed; what cannot be decoded is left out."""
    try:
        if head.startswith(_GZIP):
            head = zlib.decompressobj(31).decompress(head, len(head))
        elif head.startswith(_ZIP) and len(head) >= 30:
            stored = head[8:10] == b"\0\0"
            body = head[30 + sum(struct.unpack("<HH", head[26:30])) :]
            head = body if stored else zlib.decompressobj(-15).decompress(body, len(head))
    except zlib.error:
        return ""
    return head.decode(json.detect_encoding(head), "ignore")


def _inflated(data: bytes) -> bytes:
    if data.startswith(_GZIP):
        with gzip.open(io.BytesIO(data)) as file:
            return _read(file, len(data))
    if data.startswith(_ZIP):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if len(names) != 1:
                raise ValueError(f"it holds {len(names)} files, not the one of a slide")
            with archive.open(names[0]) as file:
                return _read(file, len(data))
    return data


def _read(file: IO[bytes] | gzip.GzipFile, packed: int) -> bytes:
    """Read a compressed file of so many bytes, and stop where it holds too much."""
    most = min(_LARGEST, max(_ALWAYS, _RATIO * packed))
    data = bytearray()
    while piece := file.read(_PIECE):
        data += piece
        if len(data) > most:
            raise ValueError(
                f"decompressed it is larger than {most / 2**20:.4g} MiB, which no file of "
                f"{packed / 2**20:.2g} MiB with outlines is"
            )
    return bytes(data)
