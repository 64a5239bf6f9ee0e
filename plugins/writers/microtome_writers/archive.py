"""A tar file of tile images a slide, as WebDataset reads it, with an index of its own."""

from __future__ import annotations

import io
import os
import tempfile
import threading
import weakref
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from microtome.errors import ConfigError, StoreError
from microtome.store.archives import TileImage, archive_damage, read_archive, write_archive
from microtome_writers import TarConfig, TileFormat

_SUFFIXES = {TileFormat.png: "png", TileFormat.jpeg: "jpg"}


class TarWriter:
    """Writes tiles as ``<slide>_<x>_<y>.png`` into one tar file, x and y at level 0."""

    def __init__(self, config: TarConfig) -> None:
        if not 0 <= config.compression_level <= 9:
            raise ConfigError(
                f"writer.tar.compression_level={config.compression_level} is not between 0 and 9."
            )
        if not 1 <= config.quality <= 95:
            raise ConfigError(f"writer.tar.quality={config.quality} is not between 1 and 95.")
        self._config = config

    def open(self, path: Path, slide_id: str, attributes: Mapping[str, Any]) -> TarSink:
        """Begin one slide at a path that does not exist yet.

        Args:
            path: The file to make.
            slide_id: The slide; the last part of it begins every name.
            attributes: Unused: what the store keeps comes last, with `TarSink.record`.
        """
        # WebDataset takes a name up to its first dot for the sample.
        stem = PurePosixPath(slide_id).name.replace(".", "_")
        return TarSink(path, stem, self._config)

    def read_record(self, path: Path) -> Mapping[str, Any]:
        """Give back what the sink was given to record."""
        return read_archive(path).record

    def damage(self, path: Path, *, deep: bool) -> Iterator[str]:
        """Say what is wrong with the images; with ``deep`` every one is read."""
        return archive_damage(path, deep=deep)


@dataclass(frozen=True)
class _Kept:
    """An image that waits in the scratch file."""

    start: int
    size: int
    checksum: int


class TarSink:
    """Takes the tiles of one slide.

    They come in any order, and which are kept is known last, so they wait in a scratch file that
    has no name: whatever is killed, nothing of it stays.
    """

    def __init__(self, path: Path, stem: str, config: TarConfig) -> None:
        self._path, self._stem, self._config = path, stem, config
        self._suffix = _SUFFIXES[config.format]
        self._scratch, name = tempfile.mkstemp(dir=path.parent)
        Path(name).unlink()
        self._close = weakref.finalize(self, os.close, self._scratch)
        self._kept: dict[tuple[int, int], _Kept] = {}
        self._end = 0
        self._lock = threading.Lock()
        self._attributes: Mapping[str, Any] = {}

    def write(self, coords: NDArray[np.int32], pixels: NDArray[np.uint8]) -> None:
        """Write tiles.

        Args:
            coords: (n, 5) ``x, y, read_w, read_h, level``.
            pixels: (n, h, w, 3).
        """
        for (x, y), tile in zip(coords[:, :2].tolist(), pixels, strict=True):
            data = self._encode(tile)
            with self._lock:
                start, self._end = self._end, self._end + len(data)
                self._kept[x, y] = _Kept(start, len(data), zlib.crc32(data))
            _write_at(self._scratch, data, start)

    def record(self, attributes: Mapping[str, Any]) -> None:
        """Take what a folder of images would keep, before closing."""
        self._attributes = attributes

    def close(self) -> None:
        """Write the archive, its tiles in the order of their coordinates."""
        places = [(int(row[0]), int(row[1])) for row in self._attributes["coords"]]
        if lost := [place for place in places if place not in self._kept]:
            raise StoreError(f"{len(lost)} tiles came without pixels, the first at {lost[0]}.")
        kept = [self._kept[place] for place in places]
        images = [
            TileImage(
                name=f"{self._stem}_{x}_{y}.{self._suffix}", size=one.size, checksum=one.checksum
            )
            for (x, y), one in zip(places, kept, strict=True)
        ]

        def read(number: int) -> bytes:
            return os.pread(self._scratch, kept[number].size, kept[number].start)

        write_archive(self._path, self._attributes, images, read)
        self._close()

    def _encode(self, tile: NDArray[np.uint8]) -> bytes:
        buffer = io.BytesIO()
        image = Image.fromarray(tile)
        if self._config.format is TileFormat.png:
            image.save(buffer, "PNG", compress_level=self._config.compression_level)
        else:
            image.save(buffer, "JPEG", quality=self._config.quality)
        return buffer.getvalue()


def _write_at(handle: int, data: bytes, start: int) -> None:
    done = 0
    while done < len(data):  # a write may be short on a full disk, and the next then raises
        done += os.pwrite(handle, data[done:], start + done)
