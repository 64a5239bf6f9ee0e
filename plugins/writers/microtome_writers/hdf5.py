"""One HDF5 file a slide: ``coords``, ``columns/*``, ``features/*``, arrays and attributes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from microtome.errors import StoreError
from microtome.store.arrays import RESERVED, split_key
from microtome.store.attributes import plain_attributes
from microtome.store.features import blocks
from microtome.store.passports import passport_rows
from microtome_writers import Hdf5Compression, Hdf5Config
from microtome_writers.chunks import chunk_shape

if TYPE_CHECKING:
    from microtome.plugin.protocols import FeatureSource


class Hdf5Writer:
    """Writes slides as HDF5."""

    def __init__(self, config: Hdf5Config) -> None:
        self._compression = Hdf5Compression(config.compression)
        self._passports = config.passports

    def create(
        self,
        path: Path,
        coords: NDArray[np.int32],
        columns: Mapping[str, NDArray[Any]],
        attributes: Mapping[str, Any],
    ) -> None:
        """Write a new slide without features at a path that does not exist yet."""
        plain = plain_attributes(attributes)
        with open_to_write(path, "x") as file:
            file.attrs.update(plain)
            self._write(file, "coords", coords)
            file.create_group("features")
            group = file.create_group("columns")
            for name, values in columns.items():
                self._write(group, name, values)
            if self._passports:
                self._write(file, "passports", passport_rows(coords, plain))

    def add_features(
        self, path: Path, name: str, source: FeatureSource, attributes: Mapping[str, Any]
    ) -> None:
        """Add a feature set to a slide that this writer created."""
        self._add(path, "features", name, source, attributes)

    def add_array(
        self, path: Path, key: str, source: FeatureSource, attributes: Mapping[str, Any]
    ) -> None:
        """Add an array of any shape under ``group/name`` to a slide that this writer created.

        Raises:
            StoreError: If the group is one that the store needs for itself.
        """
        self._add(path, *split_key(key), source, attributes)

    def open_stored(self, path: Path) -> Hdf5Slide:
        """Open a finished slide."""
        return Hdf5Slide(path)

    def _add(
        self,
        path: Path,
        group: str,
        name: str,
        source: FeatureSource,
        attributes: Mapping[str, Any],
    ) -> None:
        with open_to_write(path, "r+") as file:
            dataset = self._create(file.require_group(group), name, source.shape, source.dtype)
            dataset.attrs.update(plain_attributes(attributes))
            for start, block in blocks(source, chunk_shape(source.shape, source.dtype)[0]):
                dataset[start : start + len(block)] = block

    def _write(self, group: h5py.Group, name: str, values: NDArray[Any]) -> None:
        dataset = self._create(group, name, values.shape, values.dtype)
        rows = chunk_shape(values.shape, values.dtype)[0]
        for start in range(0, len(values), rows):
            dataset[start : start + rows] = values[start : start + rows]

    def _create(
        self, group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> h5py.Dataset:
        if 0 in shape:  # HDF5 has no chunk of nothing
            return group.create_dataset(name, shape, dtype)
        compressed = self._compression is not Hdf5Compression.none
        return group.create_dataset(
            name,
            shape,
            dtype,
            chunks=chunk_shape(shape, dtype),
            compression=self._compression.value if compressed else None,
            shuffle=compressed,
            fletcher32=True,  # every reader of HDF5 then notices a flipped bit
        )


class Hdf5Slide:
    """A slide in HDF5, open for reading."""

    def __init__(self, path: Path) -> None:
        """Open a finished slide.

        Raises:
            StoreError: If it is not a slide of this store.
        """
        try:
            # Published files never change, and some network file systems cannot lock.
            self._file = h5py.File(path, "r", locking=False)
        except OSError as error:
            raise StoreError(_not_ours(path, "it cannot be opened as HDF5")) from error
        with ExitStack() as stack:
            stack.callback(self._file.close)
            self._open(path)
            stack.pop_all()

    def _open(self, path: Path) -> None:
        if "coords" in self._file and "columns" not in self._file:
            raise StoreError(
                f"{path} is another tool's. Give this run an output of its own; `microtome import` "
                "takes files of other tools over."
            )
        try:
            self._features = self._file["features"]
            coords, columns = self._file["coords"], dict(self._file["columns"].items())
            self.attributes: Mapping[str, Any] = read_attributes(self._file)
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise StoreError(_not_ours(path, "it lacks coords or features")) from error
        self.coords: NDArray[np.int32] = read_dataset(coords)
        self.columns: Mapping[str, NDArray[Any]] = {n: read_dataset(d) for n, d in columns.items()}

    def feature_names(self) -> list[str]:
        """List the feature sets."""
        return sorted(self._features)

    def feature_shape(self, name: str) -> tuple[int, int]:
        """Give a feature set's ``(n, dim)`` without reading it."""
        rows, dim = self._features[name].shape
        return rows, dim

    def features(self, name: str, rows: slice = slice(None)) -> NDArray[np.floating[Any]]:
        """Read a feature set, or some of its rows.

        Raises:
            StoreError: If they cannot be read, or are not what was written.
        """
        return read_dataset(self._features[name], rows)

    def feature_attributes(self, name: str) -> Mapping[str, Any]:
        """Read a feature set's attributes."""
        return read_attributes(self._features[name])

    def array_names(self, group: str = "") -> list[str]:
        """List the arrays beside the features, as ``group/name``; those of one group if given."""
        nodes = {n: self._file[n] for n in self._file if n not in RESERVED and group in ("", n)}
        groups = {name: node for name, node in nodes.items() if isinstance(node, h5py.Group)}
        return sorted(
            f"{name}/{array}"
            for name, node in groups.items()
            for array in node
            if isinstance(node[array], h5py.Dataset)
        )

    def array_shape(self, key: str) -> tuple[int, ...]:
        """Give the shape of the array ``group/name`` without reading it."""
        shape: tuple[int, ...] = self._array(key).shape
        return shape

    def array(self, key: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Read the array ``group/name``, or some of its rows.

        Raises:
            StoreError: If it cannot be read, or is not what was written.
        """
        return read_dataset(self._array(key), rows)

    def array_attributes(self, key: str) -> Mapping[str, Any]:
        """Read the attributes of the array ``group/name``."""
        return read_attributes(self._array(key))

    def _array(self, key: str) -> h5py.Dataset:
        split_key(key)
        return self._file[key]

    @property
    def passports(self) -> NDArray[np.bytes_] | None:
        """The names of the tiles, (n,) of type ``S160``; None where there are none."""
        return read_dataset(self._file["passports"]) if "passports" in self._file else None

    def checksums(self) -> dict[str, str]:
        """Name by dataset the checksum that guards it; empty where none does."""
        features = ((f"features/{name}", dataset) for name, dataset in self._features.items())
        columns = ((f"columns/{name}", dataset) for name, dataset in self._file["columns"].items())
        top = ((name, self._file[name]) for name in ("coords", "passports") if name in self._file)
        arrays = ((key, self._file[key]) for key in self.array_names())
        datasets = (*top, *columns, *features, *arrays)
        return {n: "fletcher32" if d.fletcher32 or not d.size else "" for n, d in datasets}

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> Hdf5Slide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextmanager
def open_to_write(path: Path, mode: str) -> Iterator[h5py.File]:
    """Open a private file so that a full disk is an error and no more.

    HDF5 writes what it still holds when a file is closed. Where that fails it keeps the file
    open for good, and the process dies at its end. So nothing but a little metadata is held
    back (no chunk cache; blocks are whole chunks), and after an error the file, of no use any
    more, is emptied first: then there is room to close it.
    """
    file = h5py.File(path, mode, locking=False, rdcc_nbytes=0)
    whole = False
    try:
        yield file
        file.flush()
        whole = True
    finally:
        if not whole:
            os.truncate(path, 0)
        file.close()


def read_dataset(dataset: h5py.Dataset, rows: slice = slice(None)) -> NDArray[Any]:
    """Read rows of a dataset.

    Raises:
        StoreError: If they cannot be read, or are not what was written.
    """
    try:
        values: NDArray[Any] = dataset[rows]
    except OSError as error:  # a checksum that does not fit, or the end of the file
        raise StoreError(
            f"{dataset.file.filename}: {dataset.name.lstrip('/')} cannot be read, it is damaged: "
            f"{error}. Delete the file and run the same command again."
        ) from error
    return values


def read_attributes(node: h5py.HLObject) -> dict[str, Any]:
    """Read attributes as plain values."""
    return {
        name: value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        for name, value in node.attrs.items()
    }


def _not_ours(path: Path, reason: str) -> str:
    return (
        f"{path} is not a slide that microtome's hdf5 writer stored, or is damaged: {reason}. "
        "Move it away, or use force=true."
    )
