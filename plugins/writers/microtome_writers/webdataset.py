"""A WebDataset shard a slide: a tile archive whose samples have labels."""

from __future__ import annotations

import json
import os
import weakref
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import StoreError
from microtome.store.archives import TileImage, archive_damage, read_archive, write_archive
from microtome.store.patches import PatchRecord
from microtome_writers import WebDatasetConfig
from microtome_writers.archive import sample_name
from microtome_writers.images import Codec, Place, Scratch, ScratchSink, damaged, decode
from microtome_writers.stored import Patches


class WebDatasetWriter:
    """Writes tiles as ``<key>.png``, ``<key>.cls`` and ``<key>.json`` into one tar file."""

    def __init__(self, config: WebDatasetConfig) -> None:
        self._codec = Codec("webdataset", config)

    def open(self, path: Path, slide_id: str, attributes: Mapping[str, Any]) -> ScratchSink:
        """Begin one slide at a path that does not exist yet."""
        return ScratchSink(path, self._codec.encode, partial(self._finish, path))

    def open_patches(self, path: Path) -> WebDatasetPatches:
        """Open a finished slide."""
        return WebDatasetPatches(path)

    def read_record(self, path: Path) -> Mapping[str, Any]:
        """Give back what the sink was given to record."""
        return read_archive(path).record

    def damage(self, path: Path, *, deep: bool) -> Iterator[str]:
        """Say what is wrong with the samples; with ``deep`` every one is read."""
        told = PatchRecord.parse(self.read_record(path), path)
        return archive_damage(path, deep=deep, beside=_beside(told))

    def _finish(
        self, path: Path, attributes: Mapping[str, Any], places: list[Place], scratch: Scratch
    ) -> None:
        told = PatchRecord.parse(attributes, path)
        images = [
            TileImage(
                name=f"{sample_name(key)}.{self._codec.suffix}",
                size=scratch.size(place),
                checksum=scratch.checksum(place),
                beside=beside,
            )
            for key, place, beside in zip(told.keys, places, _beside(told), strict=True)
        ]
        write_archive(path, attributes, images, lambda number: scratch.get(places[number]))


class WebDatasetPatches(Patches):
    """The tiles of one slide in a shard."""

    _file: int | None = None

    def __init__(self, path: Path) -> None:
        archive = read_archive(path)
        super().__init__(path, archive.record)
        self._offsets, self._sizes = archive.offsets, archive.sizes
        self._checksums = archive.checksums

    def close(self) -> None:
        """Release the file; the next `read` opens it again."""
        if self._file is not None:
            self._close()
        self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {n: v for n, v in self.__dict__.items() if n not in ("_file", "_close")}

    def _read(self, row: int) -> NDArray[np.uint8]:
        what = f"{self.keys[row]} in {self.path}"
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_RDONLY)
                self._close = weakref.finalize(self, os.close, self._file)
            data = os.pread(self._file, int(self._sizes[row]), int(self._offsets[row]))
        except OSError as error:
            raise StoreError(f"{what} cannot be read: {error.strerror or error}.") from error
        if zlib.crc32(data) != self._checksums[row]:
            raise damaged(what, "its content and its checksum differ")
        return decode(data, what)


def _beside(told: PatchRecord) -> list[dict[str, bytes]]:
    """Give what lies beside each image: the label, and what is known of the tile as JSON."""
    names = ("x", "y", "read_w", "read_h", "level")
    beside = []
    for key, row, label in zip(told.keys, told.coords.tolist(), told.labels.tolist(), strict=True):
        known = {"key": key, "slide_id": told.slide_id, **dict(zip(names, row, strict=True))}
        known |= {"label": label, "class": told.classes[label]}
        sample = sample_name(key)
        beside.append(
            {
                f"{sample}.cls": str(label).encode(),
                f"{sample}.json": json.dumps(known, ensure_ascii=False).encode(),
            }
        )
    return beside
