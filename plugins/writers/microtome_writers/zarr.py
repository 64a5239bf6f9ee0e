"""One Zarr v3 group a slide: ``coords``, ``columns/*``, ``features/*``, arrays and attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, GzipCodec, ZstdCodec
from zarr.errors import BaseZarrError

from microtome.errors import ConfigError, StoreError
from microtome.store.arrays import RESERVED, split_key
from microtome.store.attributes import plain_attributes
from microtome.store.features import blocks
from microtome.store.passports import PASSPORT_BYTES, passport_rows
from microtome_writers import ZarrCompression, ZarrConfig
from microtome_writers.chunks import CHUNK_BYTES, chunk_shape, chunks_per_row

if TYPE_CHECKING:
    from microtome.plugin.protocols import FeatureSource

_CODECS: Mapping[ZarrCompression, tuple[Any, ...]] = {
    ZarrCompression.none: (),
    ZarrCompression.zstd: (ZstdCodec(level=3),),
    ZarrCompression.gzip: (GzipCodec(level=5),),
}


class ZarrWriter:
    """Writes slides as Zarr v3, without consolidated metadata.

    A feature set is a folder by itself, and so is an array, so that a later one can be renamed into
    a slide.
    """

    def __init__(self, config: ZarrConfig) -> None:
        if config.shard_mb < 1:
            raise ConfigError(f"writer.zarr.shard_mb={config.shard_mb}: a shard has 1 MiB or more.")
        self._codecs = _CODECS[ZarrCompression(config.compression)]
        self._passports = config.passports
        self._shard_chunks = config.shard_mb * (1 << 20) // CHUNK_BYTES

    def create(
        self,
        path: Path,
        coords: NDArray[np.int32],
        columns: Mapping[str, NDArray[Any]],
        attributes: Mapping[str, Any],
    ) -> None:
        """Write a new slide without features at a path that does not exist yet."""
        plain = plain_attributes(attributes)
        root = zarr.create_group(path, zarr_format=3, attributes=plain)
        self._create(root, "coords", coords.shape, coords.dtype)[:] = coords
        root.create_group("features")
        group = root.create_group("columns")
        for name, values in columns.items():
            self._create(group, name, values.shape, values.dtype)[:] = values
        if self._passports:
            # Zarr v3 has no specification of texts of fixed length.
            rows = passport_rows(coords, plain).view(np.uint8).reshape(-1, PASSPORT_BYTES)
            self._create(root, "passports", rows.shape, rows.dtype)[:] = rows

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

    def open_stored(self, path: Path) -> ZarrSlide:
        """Open a finished slide."""
        return ZarrSlide(path)

    def _add(
        self,
        path: Path,
        group: str,
        name: str,
        source: FeatureSource,
        attributes: Mapping[str, Any],
    ) -> None:
        parent = zarr.open_group(path, mode="r+", zarr_format=3).require_group(group)
        array = self._create(parent, name, source.shape, source.dtype)
        for start, block in blocks(source, (array.shards or array.chunks)[0]):
            array[start : start + len(block)] = block
        # Last, and whole: updating attributes replaces the array's metadata file.
        array.update_attributes(plain_attributes(attributes))

    def _create(
        self, group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> zarr.Array[Any]:
        chunk = chunk_shape(shape, dtype)
        in_row = chunks_per_row(shape, chunk)
        # A shard is whole rows, and may reach beyond the last: what is not there takes no space.
        per_shard = max(1, min(self._shard_chunks // in_row, -(-shape[0] // chunk[0])))
        width = (-(-max(1, s) // c) * c for s, c in zip(shape[1:], chunk[1:], strict=True))
        return group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=chunk,
            shards=(chunk[0] * per_shard, *width) if per_shard * in_row > 1 else None,
            # Every reader of Zarr then notices a flipped bit.
            compressors=(*self._codecs, Crc32cCodec()),
            # Chunks of zeros too: then a chunk that is not there is one that was lost.
            config={"write_empty_chunks": True},
        )


class ZarrSlide:
    """A slide in Zarr, open for reading."""

    def __init__(self, path: Path) -> None:
        """Open a finished slide.

        Raises:
            StoreError: If it is not a slide of this store.
        """
        self._path = path
        try:
            self._root = root = zarr.open_group(
                path, mode="r", zarr_format=3, use_consolidated=False
            )
            self._coords = _array(root, "coords")
            self._features = _group(root, "features")
            self._columns = _group(root, "columns")
            self._passports = _array(root, "passports") if "passports" in root else None
        except (BaseZarrError, OSError, KeyError, ValueError) as error:
            raise StoreError(
                f"{path} is not a slide that microtome's zarr writer stored, or is damaged: it "
                "lacks coords or features. Move it away, or use force=true."
            ) from error
        self._root = root
        self.coords: NDArray[np.int32] = self._read(self._coords)
        self.columns: Mapping[str, NDArray[Any]] = {
            name: self._read(_array(self._columns, name)) for name in self._columns.array_keys()
        }
        self.attributes: Mapping[str, Any] = root.attrs.asdict()

    def feature_names(self) -> list[str]:
        """List the feature sets.

        Raises:
            StoreError: If the description of one is damaged.
        """
        return sorted(name for name, _ in self._arrays(self._features))

    def feature_shape(self, name: str) -> tuple[int, int]:
        """Give a feature set's ``(n, dim)`` without reading it."""
        rows, dim = _array(self._features, name).shape
        return rows, dim

    def features(self, name: str, rows: slice = slice(None)) -> NDArray[np.floating[Any]]:
        """Read a feature set, or some of its rows.

        Raises:
            StoreError: If they cannot be read, or are not what was written.
        """
        return self._read(_array(self._features, name), rows)

    def feature_attributes(self, name: str) -> Mapping[str, Any]:
        """Read a feature set's attributes."""
        attributes: dict[str, Any] = _array(self._features, name).attrs.asdict()
        return attributes

    def array_names(self, group: str = "") -> list[str]:
        """List the arrays beside the features, as ``group/name``; those of one group if given."""
        return sorted(
            f"{n}/{a}" for n, found in self._groups(group) for a, _ in self._arrays(found)
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
        return self._read(self._array(key), rows)

    def array_attributes(self, key: str) -> Mapping[str, Any]:
        """Read the attributes of the array ``group/name``."""
        attributes: dict[str, Any] = self._array(key).attrs.asdict()
        return attributes

    def _array(self, key: str) -> Any:
        group, name = split_key(key)
        return _array(_group(self._root, group), name)

    def _groups(self, group: str = "") -> list[tuple[str, zarr.Group]]:
        """Give the groups of arrays, or one of them."""
        with self._damaged("a group"):
            groups = [(n, g) for n, g in self._root.groups() if n not in RESERVED]
        return [(name, found) for name, found in groups if group in ("", name)]

    def _arrays(self, group: zarr.Group) -> list[tuple[str, zarr.Array[Any]]]:
        with self._damaged(group.path):
            return list(group.arrays())

    @property
    def passports(self) -> NDArray[np.bytes_] | None:
        """The names of the tiles, (n,) of type ``S160``; None where there are none."""
        if self._passports is None:
            return None
        rows = np.ascontiguousarray(self._read(self._passports))
        return rows.view(f"S{PASSPORT_BYTES}").reshape(-1)

    def checksums(self) -> dict[str, str]:
        """Name by array the checksum that guards it; empty where none does."""
        groups = (self._columns, self._features, *(group for _, group in self._groups()))
        top = (self._coords, *(() if self._passports is None else (self._passports,)))
        arrays = [*top, *(array for group in groups for _, array in sorted(self._arrays(group)))]
        return {
            a.path: "crc32c" if any(isinstance(c, Crc32cCodec) for c in a.compressors) else ""
            for a in arrays
        }

    def _read(self, array: zarr.Array[Any], rows: slice = slice(None)) -> NDArray[Any]:
        """Read rows, after seeing that their files are there: Zarr gives zeros for a lost one."""
        with self._damaged(array.path):
            for file in _files(array, rows):
                if not (self._path / array.path / file).is_file():
                    raise FileNotFoundError(f"its file {file} is missing")
            return np.asarray(array[rows])

    @contextmanager
    def _damaged(self, what: str) -> Iterator[None]:
        """Turn what Zarr raises at a damaged file into a `StoreError`."""
        try:
            yield
        except (BaseZarrError, OSError, ValueError) as error:
            raise StoreError(
                f"{self._path}: {what} cannot be read, it is damaged: {error}. Delete the "
                "folder and run the same command again."
            ) from error

    def close(self) -> None:
        """Release nothing: a Zarr group holds no file open."""

    def __enter__(self) -> ZarrSlide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _files(array: zarr.Array[Any], rows: slice) -> Iterator[str]:
    """Name the files that hold some rows."""
    if not array.size:
        return
    first, stop, _ = rows.indices(array.shape[0])
    step = (array.shards or array.chunks)[0]
    for index in range(first // step, -(-stop // step)):
        yield array.metadata.encode_chunk_key((index, *[0] * (array.ndim - 1)))


def _array(group: zarr.Group, name: str) -> Any:
    node = group[name]
    if not isinstance(node, zarr.Array):
        raise KeyError(name)
    return node


def _group(group: zarr.Group, name: str) -> zarr.Group:
    node = group[name]
    if not isinstance(node, zarr.Group):
        raise KeyError(name)
    return node
