"""One HDF5 file of labelled tile images a slide: ``images``, ``labels``, ``coords``, ``keys``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from microtome.errors import StoreError
from microtome.store.attributes import plain_attributes
from microtome.store.patches import COORDS, LABELS, UNLABELLED, PatchRecord
from microtome_writers import Hdf5Compression, PatchesConfig
from microtome_writers.chunks import chunk_shape
from microtome_writers.hdf5 import open_to_write, read_attributes, read_dataset
from microtome_writers.images import Place, Scratch, ScratchSink
from microtome_writers.stored import Patches

IMAGES, KEYS = "images", "keys"


class PatchesWriter:
    """Writes the pixels of tiles as they are."""

    def __init__(self, config: PatchesConfig) -> None:
        self._compression = Hdf5Compression(config.compression)

    def open(self, path: Path, slide_id: str, attributes: Mapping[str, Any]) -> ScratchSink:
        """Begin one slide at a path that does not exist yet."""
        size = int(attributes["patch_size"])
        return ScratchSink(path, lambda tile: tile.tobytes(), partial(self._finish, path, size))

    def open_patches(self, path: Path) -> Hdf5Patches:
        """Open a finished slide."""
        return Hdf5Patches(path, self.read_record(path))

    def read_record(self, path: Path) -> Mapping[str, Any]:
        """Give back what the sink was given to record."""
        with closing(_open(path)) as file:
            try:
                rows = {name: file[name] for name in (COORDS, UNLABELLED, LABELS)}
                record = read_attributes(file)
            except (KeyError, OSError, TypeError, ValueError) as error:
                raise StoreError(_not_ours(path, f"{error}")) from error
            for name in (COORDS, UNLABELLED):
                record[name] = json.dumps(read_dataset(rows[name]).tolist())
            return {**record, LABELS: read_dataset(rows[LABELS]).tolist()}

    def damage(self, path: Path, *, deep: bool) -> Iterator[str]:
        """Say what is wrong with the images; with ``deep`` every one is read."""
        patches = self.open_patches(path)
        with closing(_open(path)) as file:
            images = file.get(IMAGES)
            if images is None or images.ndim != 4 or len(images) != len(patches):
                yield f"it has no {IMAGES} of {len(patches)} tiles"
                return
            keys = [key.decode() for key in read_dataset(file[KEYS])] if KEYS in file else []
            if keys != list(patches.keys):
                yield "its keys are not those of its tiles"
            for row in range(len(images)) if deep else ():
                read_dataset(images, slice(row, row + 1))

    def _finish(
        self,
        path: Path,
        size: int,
        attributes: Mapping[str, Any],
        places: list[Place],
        scratch: Scratch,
    ) -> None:
        told = PatchRecord.parse(attributes, path)
        apart = (COORDS, LABELS, UNLABELLED)
        plain = plain_attributes({n: v for n, v in attributes.items() if n not in apart})
        with open_to_write(path, "x") as file:
            file.attrs.update(plain)
            for name, rows in ((COORDS, told.coords), (UNLABELLED, told.unlabelled)):
                _create(file, name, rows.shape, rows.dtype)[...] = rows
            _create(file, LABELS, told.labels.shape, told.labels.dtype)[...] = told.labels
            file.create_dataset(KEYS, data=list(told.keys), dtype=h5py.string_dtype())
            shape = (len(places), size, size, 3)
            images = _create(file, IMAGES, shape, np.uint8, self._compression)
            for row, place in enumerate(places):
                images[row] = np.frombuffer(scratch.get(place), np.uint8).reshape(shape[1:])


class Hdf5Patches(Patches):
    """The tiles of one slide in HDF5."""

    _file: h5py.File | None = None
    _process = 0

    def close(self) -> None:
        """Release the file; the next `read` opens it again."""
        if self._file is not None and self._process == os.getpid():
            self._file.close()
        self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def _read(self, row: int) -> NDArray[np.uint8]:
        if self._file is None or self._process != os.getpid():  # HDF5's state is one process's
            self._file, self._process = _open(self.path), os.getpid()
        images = self._file[IMAGES]
        pixels: NDArray[np.uint8] = read_dataset(images, slice(row, row + 1))[0]
        return pixels


def _create(
    file: h5py.File,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    compression: Hdf5Compression = Hdf5Compression.none,
) -> h5py.Dataset:
    """Create a dataset, an image or some rows a chunk, each with a checksum."""
    if 0 in shape:  # HDF5 has no chunk of nothing
        return file.create_dataset(name, shape, dtype)
    compressed = compression is not Hdf5Compression.none
    return file.create_dataset(
        name,
        shape,
        dtype,
        chunks=(1, *shape[1:]) if name == IMAGES else chunk_shape(shape, dtype),
        compression=compression.value if compressed else None,
        fletcher32=True,
    )


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise StoreError(_not_ours(path, "it cannot be opened as HDF5")) from error


def _not_ours(path: Path, reason: str) -> str:
    return (
        f"{path} is not a file of labelled tiles that microtome stored, or is damaged: {reason}. "
        "Move it away, or use force=true."
    )
