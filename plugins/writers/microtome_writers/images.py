"""Tile images as bytes: encoded, kept until all have come, and read back."""

from __future__ import annotations

import io
import os
import tempfile
import threading
import weakref
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from microtome.errors import ConfigError, StoreError
from microtome_writers import ImageConfig, TileFormat

Place = tuple[int, int]
"""(x, y) at level 0."""

_SUFFIXES = {TileFormat.png: "png", TileFormat.jpeg: "jpg"}


class Codec:
    """Encodes tiles as a writer's options say."""

    def __init__(self, writer: str, config: ImageConfig) -> None:
        """Take the options.

        Raises:
            ConfigError: If one of them is out of range.
        """
        if not 0 <= config.compression_level <= 9:
            raise ConfigError(
                f"writer.{writer}.compression_level={config.compression_level} is not between 0 "
                "and 9."
            )
        if not 1 <= config.quality <= 95:
            raise ConfigError(f"writer.{writer}.quality={config.quality} is not between 1 and 95.")
        self._config = config

    @property
    def suffix(self) -> str:
        """Of a file, without the dot."""
        return _SUFFIXES[self._config.format]

    def encode(self, tile: NDArray[np.uint8]) -> bytes:
        """Encode a tile, (h, w, 3)."""
        buffer = io.BytesIO()
        image = Image.fromarray(tile)
        if self._config.format is TileFormat.png:
            image.save(buffer, "PNG", compress_level=self._config.compression_level)
        else:
            image.save(buffer, "JPEG", quality=self._config.quality)
        return buffer.getvalue()


def decode(data: bytes, what: str) -> NDArray[np.uint8]:
    """Decode an image to (h, w, 3).

    Args:
        data: Of the image.
        what: It is, for the message.

    Raises:
        StoreError: If it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise damaged(what, str(error)) from error


def damaged(what: str, reason: str) -> StoreError:
    """Say that an image that was stored cannot be given."""
    return StoreError(f"{what} is damaged: {reason}. Delete the file and run again what made it.")


@dataclass(frozen=True)
class _Kept:
    """Bytes that wait in the scratch file."""

    start: int
    size: int
    checksum: int


class Scratch:
    """Takes the bytes of tiles in any order, from any thread, until it is known which are kept.

    The file that they wait in has no name: whatever is killed, nothing of it stays.
    """

    def __init__(self, folder: Path) -> None:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            self._handle = os.dup(file.fileno())
        self._close = weakref.finalize(self, os.close, self._handle)
        self._kept: dict[Place, _Kept] = {}
        self._end = 0
        self._lock = threading.Lock()

    def put(self, place: Place, data: bytes) -> None:
        """Take a tile's bytes."""
        with self._lock:
            start, self._end = self._end, self._end + len(data)
            self._kept[place] = _Kept(start, len(data), zlib.crc32(data))
        done = 0
        while done < len(data):  # a write may be short on a full disk, and the next then raises
            done += os.pwrite(self._handle, data[done:], start + done)

    def get(self, place: Place) -> bytes:
        """Give them back."""
        kept = self._kept[place]
        return os.pread(self._handle, kept.size, kept.start)

    def size(self, place: Place) -> int:
        """Count them."""
        return self._kept[place].size

    def checksum(self, place: Place) -> int:
        """Give their CRC-32."""
        return self._kept[place].checksum

    def find(self, coords: list[list[int]]) -> list[Place]:
        """Give the places of tiles, rows of coordinates.

        Raises:
            StoreError: If one never came.
        """
        places = [(int(row[0]), int(row[1])) for row in coords]
        if lost := [place for place in places if place not in self._kept]:
            raise StoreError(f"{len(lost)} tiles came without pixels, the first at {lost[0]}.")
        return places

    def close(self) -> None:
        """Let go of the disk space."""
        self._close()


Finish = Callable[[Mapping[str, Any], list[Place], Scratch], None]
"""Writes the final file out of what was recorded, the tiles' places in order, and their bytes."""


class ScratchSink:
    """Takes the tiles of one slide, with labels or without; one file is written at the end."""

    def __init__(
        self, path: Path, encode: Callable[[NDArray[np.uint8]], bytes], finish: Finish
    ) -> None:
        self._encode, self._finish = encode, finish
        self._scratch = Scratch(path.parent)
        self._attributes: Mapping[str, Any] = {}

    def write(
        self,
        coords: NDArray[np.int32],
        pixels: NDArray[np.uint8],
        labels: NDArray[np.int16] | None = None,
    ) -> None:
        """Write tiles.

        Args:
            coords: (n, 5) ``x, y, read_w, read_h, level``.
            pixels: (n, h, w, 3).
            labels: (n,), which come again with what is recorded.
        """
        for (x, y), tile in zip(coords[:, :2].tolist(), pixels, strict=True):
            self._scratch.put((x, y), self._encode(tile))

    def record(self, attributes: Mapping[str, Any]) -> None:
        """Take what a folder of images would keep, before closing."""
        self._attributes = attributes

    def close(self) -> None:
        """Write the file, its tiles in the order of their coordinates."""
        places = self._scratch.find(self._attributes["coords"])
        self._finish(self._attributes, places, self._scratch)
        self._scratch.close()
