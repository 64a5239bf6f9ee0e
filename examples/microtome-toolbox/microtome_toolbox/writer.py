"""Store a slide as one NumPy archive.

An archive cannot be appended to in place: adding an encoder writes it again. The store hands a
private path and publishes it, so nothing here is about half-written files.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import StoreError
from microtome.plugin.protocols import FeatureSource
from microtome_toolbox import NpzConfig

Arrays = dict[str, NDArray[Any]]


class NpzWriter:
    """Writes ``coords``, ``columns/<name>``, ``features/<name>`` and JSON ``attributes``."""

    def __init__(self, config: NpzConfig) -> None:
        self._savez = np.savez_compressed if config.compress else np.savez

    def create(
        self,
        path: Path,
        coords: NDArray[np.int32],
        columns: Mapping[str, NDArray[Any]],
        attributes: Mapping[str, Any],
    ) -> None:
        """Write a slide without features."""
        arrays = {f"columns/{name}": values for name, values in columns.items()}
        self._save(path, {"coords": coords, "attributes": _encode(attributes), **arrays})

    def add_features(
        self, path: Path, name: str, source: FeatureSource, attributes: Mapping[str, Any]
    ) -> None:
        """Write the archive again with a feature set more."""
        arrays = _load(path)
        matrix = np.empty(source.shape, source.dtype)
        start = 0
        for chunk in source.chunks(4096):
            matrix[start : start + len(chunk)] = chunk
            start += len(chunk)
        arrays[f"features/{name}"] = matrix
        arrays[f"attributes/{name}"] = _encode(attributes)
        self._save(path, arrays)

    def open_stored(self, path: Path) -> NpzSlide:
        """Open a slide."""
        return NpzSlide(_load(path))

    def _save(self, path: Path, arrays: Arrays) -> None:
        # A file object: given a path, savez would add a suffix to it.
        with path.open("wb") as file:
            self._savez(file, **arrays)  # type: ignore[arg-type]


class NpzSlide:
    """A stored slide, in memory."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self.coords = arrays["coords"]
        self.attributes = _decode(arrays["attributes"])
        self.columns = {name: arrays[f"columns/{name}"] for name in self._names("columns")}

    def _names(self, group: str) -> list[str]:
        return [key.split("/", 1)[1] for key in self._arrays if key.startswith(f"{group}/")]

    def feature_names(self) -> list[str]:
        """List the feature sets."""
        return self._names("features")

    def feature_shape(self, name: str) -> tuple[int, int]:
        """Give a feature set's (n, dim)."""
        rows, dim = self._arrays[f"features/{name}"].shape
        return rows, dim

    def features(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Give a feature set, or some of its rows."""
        return self._arrays[f"features/{name}"][rows]

    def feature_attributes(self, name: str) -> Mapping[str, Any]:
        """Give a feature set's attributes."""
        return _decode(self._arrays[f"attributes/{name}"])

    def close(self) -> None:
        """Nothing is open: the archive was read whole."""

    def __enter__(self) -> NpzSlide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _load(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} is no NumPy archive that can be read: {error}") from error
    if "coords" not in arrays or "attributes" not in arrays:
        raise StoreError(f"{path} is a NumPy archive, but no slide.")
    return arrays


def _encode(attributes: Mapping[str, Any]) -> NDArray[Any]:
    # NumPy's numbers among the values become Python's.
    return np.array(json.dumps(dict(attributes), default=lambda value: value.item()))


def _decode(text: NDArray[Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = json.loads(str(text))
    return attributes
