"""HDF5 as the layouts read and write it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from microtome.errors import LayoutError
from microtome.store.exchange import NOTE, read_note
from microtome.store.publish import FeatureSet

_LOOKED_AT = 8
"""Files of a folder, to tell whose it is."""

_ROWS = 4096
"""Written and read at a time."""


class Hdf5Source:
    """A `FeatureSource` over a dataset of a file that is open only while it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        with open_hdf5(path) as file:
            dataset = dataset_of(file, name)
            if dataset.ndim != 2 or not np.issubdtype(dataset.dtype, np.floating):
                # TRIDENT leaves (0,) for a slide without tiles
                if dataset.size:
                    raise LayoutError(
                        f"{path}: {name} is {dataset.dtype} of shape {dataset.shape}, not floating "
                        "point of shape (tiles, dim)."
                    )
                self.shape, self.dtype = (0, 0), np.dtype(np.float32)
                return
            self.shape = (int(dataset.shape[0]), int(dataset.shape[1]))
            self.dtype = dataset.dtype

    def chunks(self, rows: int) -> Iterator[NDArray[np.floating[Any]]]:
        """Give the matrix from the top, at most ``rows`` rows at a time."""
        with open_hdf5(self._path) as file:
            dataset = dataset_of(file, self._name)
            for start in range(0, self.shape[0], rows):
                yield dataset[start : start + rows]


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading.

    Raises:
        LayoutError: If it, or something in it, cannot be read.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except LayoutError:
        raise
    except (OSError, RuntimeError) as error:  # the latter where bytes inside have changed
        raise LayoutError(f"{path} cannot be read as HDF5, it is damaged or no such file.") from (
            error
        )


def dataset_of(file: h5py.File, name: str) -> h5py.Dataset:
    """Give a dataset.

    Raises:
        LayoutError: If there is none of that name.
    """
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        held = ", ".join(sorted(file)) or "nothing"
        raise LayoutError(f"{file.filename} holds no dataset {name!r}, only {held}.")
    return found


def attributes_of(node: h5py.HLObject) -> dict[str, Any]:
    """Read attributes as plain values."""
    plain = {
        name: value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        for name, value in node.attrs.items()
    }
    return {
        n: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for n, v in plain.items()
    }


def need(attributes: Mapping[str, Any], name: str, path: Path) -> float:
    """Read a number out of attributes.

    Raises:
        LayoutError: If there is none of that name.
    """
    value = attributes.get(name)
    try:
        number = float(value[0] if isinstance(value, list) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, IndexError) as error:
        held = ", ".join(sorted(attributes)) or "none"
        raise LayoutError(
            f"{path}: the attribute {name!r} is missing or no number; there are {held}."
        ) from error
    return number


def write_features(
    group: h5py.Group, name: str, features: FeatureSet, *, dtype: DTypeLike | None = None
) -> h5py.Dataset:
    """Write features, a part in memory at a time.

    Raises:
        LayoutError: If a value is too large for the type.
    """
    source = features.source
    dataset = write_empty(group, name, source.shape, dtype or source.dtype)
    start = 0
    for block in source.chunks(_ROWS):
        with np.errstate(over="ignore"):
            stored = np.asarray(block, dataset.dtype)
        if not np.isfinite(stored).all():
            raise LayoutError(
                f"{features.attributes.get('encoder', 'an encoder')} gave a feature of "
                f"{np.abs(block).max():.4g}, too large for the {dataset.dtype} of this layout. "
                "Export to another one, or the other features with --features."
            )
        dataset[start : start + len(block)] = stored
        start += len(block)
    return dataset


def write_empty(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: DTypeLike
) -> h5py.Dataset:
    """Make a dataset to be filled, guarded by checksums where it holds anything."""
    if 0 in shape:  # HDF5 has no chunk of nothing
        return group.create_dataset(name, shape, dtype)
    chunks = (min(shape[0], _ROWS), *shape[1:])
    return group.create_dataset(name, shape, dtype, chunks=chunks, fletcher32=True)


def write_values(group: h5py.Group, name: str, values: NDArray[Any]) -> h5py.Dataset:
    """Write an array."""
    dataset = write_empty(group, name, values.shape, values.dtype)
    if values.size:
        dataset[...] = values
    return dataset


def read_features(path: Path, name: str, **more: Any) -> FeatureSet:
    """Give features and what a note says of them, without reading them.

    Args:
        path: The file.
        name: The dataset.
        **more: Attributes for which a note has none.
    """
    with open_hdf5(path) as file:
        note = dataset_of(file, name).attrs.get(NOTE)
    return FeatureSet(Hdf5Source(path, name), more | read_note(note))


def some_coords(
    folder: Path, pattern: str
) -> Iterator[tuple[tuple[int, ...], dict[str, Any], dict[str, Any]]]:
    """Look at a few files below a folder, as far as they can be read.

    Yields:
        Of each its coordinates' shape, their attributes and the file's.
    """
    files = (path for path in folder.rglob(pattern) if not path.name.startswith("."))
    for path in islice(files, _LOOKED_AT):
        with suppress(LayoutError), open_hdf5(path) as file:
            dataset = dataset_of(file, "coords")
            yield dataset.shape, attributes_of(dataset), attributes_of(file)


def points_of(path: Path) -> tuple[NDArray[Any], dict[str, Any], dict[str, Any]]:
    """Read coordinates, their attributes and the file's."""
    with open_hdf5(path) as file:
        dataset = dataset_of(file, "coords")
        return dataset[...], attributes_of(dataset), attributes_of(file)
