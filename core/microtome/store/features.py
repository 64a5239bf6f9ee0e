"""Features on their way to a store, a bounded part of them in memory at a time."""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from microtome.errors import EncoderError, StoreError
from microtome.store.atomic import wrap_errors

if TYPE_CHECKING:
    from microtome.plugin.protocols import FeatureSource, StoredSlide

_Floats = NDArray[np.floating[Any]]


class ArraySource:
    """A `FeatureSource` over an array in memory."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = array.dtype

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Give the array from the top, at most ``rows`` rows at a time."""
        for start in range(0, self.shape[0], rows):
            yield self._array[start : start + rows]


class StoredSource:
    """A `FeatureSource` over a feature set or array that a store holds already."""

    def __init__(self, stored: StoredSlide, name: str) -> None:
        """Look at what is there, without reading it.

        Args:
            stored: The slide.
            name: Of a feature set, or ``group/name`` of an array.
        """
        is_array = "/" in name
        self._name, self._read = name, stored.array if is_array else stored.features
        self.shape: tuple[int, ...] = (
            stored.array_shape(name) if is_array else stored.feature_shape(name)
        )
        self.dtype: np.dtype[Any] = self._read(name, slice(0, 0)).dtype

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Give the array from the top, at most ``rows`` rows at a time."""
        for start in range(0, self.shape[0], rows):
            yield self._read(self._name, slice(start, start + rows))


class FeatureScratch:
    """Keeps one encoder's features, or its token grids, on disk until the slide is whole.

    Rows arrive in any order, by plan index; those of tiles that a filter drops never arrive. They
    lie in the file as they arrived, so that a batch is one write. The file has no name, so that it
    vanishes with the process, however that ends.
    """

    def __init__(
        self,
        folder: Path,
        rows: int,
        dtype: DTypeLike,
        *,
        name: str = "features",
        dim: int | tuple[int, ...] | None = None,
        option: str = "feature_dtype",
    ) -> None:
        """Open a scratch file.

        Args:
            folder: Where it may take the bytes of all rows; made if missing.
            rows: Number of planned tiles.
            dtype: ``float32`` or ``float16``: what is stored.
            name: What error messages call it.
            dim: Columns; the shape of a row that has more axes; or None to learn the columns from
                the first batch.
            option: Of the run, which says the dtype; for messages.
        """
        self.name, self.rows, self._option = name, rows, option
        self.row_shape = (dim,) if isinstance(dim, int) else dim
        self.dtype = np.dtype(dtype)
        self._place = np.full(rows, -1, np.int64)  # in the file, by plan index
        self._used = 0
        self._lock = threading.Lock()
        self._path = folder
        with wrap_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - see close

    def write(self, rows: NDArray[np.int64], array: _Floats) -> None:
        """Write some rows; several threads may, each others.

        Args:
            rows: (n,) plan indices.
            array: (n, dim), or (n, …) for rows of more axes, floating point.

        Raises:
            EncoderError: If the shape does not fit, or a value is not finite, or not any more
                in the stored dtype.
            StoreError: If the disk takes no more.
        """
        self._check(rows, array)
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(array, self.dtype)
        if not np.isfinite(stored).all():
            raise EncoderError(self._explain_non_finite(array))
        if not stored.size:
            return
        with self._lock:
            first, self._used = self._used, self._used + len(stored)
        with wrap_errors(self._path):
            self._write_at(stored.data.cast("B"), first * self._row_bytes)
        self._place[rows] = np.arange(first, first + len(stored))

    def source(self, keep: NDArray[np.int64] | None = None) -> FeatureSource:
        """Give the features for the store.

        Args:
            keep: Plan indices of the rows wanted, in order; all if None.

        Raises:
            StoreError: If one of them was never written.
        """
        wanted = np.arange(self.rows) if keep is None else np.asarray(keep, np.int64)
        missing = wanted[self._place[wanted] < 0]
        if missing.size:
            raise StoreError(
                f"{missing.size} of {wanted.size} rows of {self.name!r} were never computed, the "
                f"first is row {missing[0]}. Nothing was stored; run the slide again."
            )
        return _ScratchSource(self, wanted)

    def close(self) -> None:
        """Release the file and its disk space."""
        self._file.close()

    def __enter__(self) -> FeatureScratch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self, indices: NDArray[np.int64]) -> _Floats:
        """Read rows by plan index."""
        out = np.empty((indices.size, *self.known_shape), self.dtype)
        if not out.size:
            return out
        places = self._place[indices]
        starts = np.flatnonzero(np.diff(places, prepend=places[0] - 2) != 1).tolist()
        for start, stop in zip(starts, [*starts[1:], indices.size], strict=True):
            self._read_at(out[start:stop].data.cast("B"), int(places[start]) * self._row_bytes)
        return out

    @property
    def known_shape(self) -> tuple[int, ...]:
        """Shape of a row; (0,) where no batch has told it."""
        return (0,) if self.row_shape is None else self.row_shape

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.known_shape) * self.dtype.itemsize

    def _check(self, rows: NDArray[np.int64], array: _Floats) -> None:
        axes = 1 + len(self.known_shape)
        if array.ndim != axes or not np.issubdtype(array.dtype, np.floating):
            wanted = "(tiles, dim)" if axes == 2 else f"(tiles, {str(self.known_shape)[1:]}"
            raise EncoderError(
                f"{self.name!r} gave {array.dtype} of shape {array.shape}; "
                f"floating point of shape {wanted} was expected."
            )
        self.row_shape = array.shape[1:] if self.row_shape is None else self.row_shape
        if array.shape[1:] != self.row_shape:
            given, wanted = (" x ".join(map(str, s)) for s in (array.shape[1:], self.row_shape))
            raise EncoderError(f"{self.name!r} gave {given} columns where {wanted} were expected.")
        if len(rows) != len(array):
            raise EncoderError(f"{self.name!r} gave {len(array)} rows for {len(rows)} tiles.")
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.rows:
            raise EncoderError(
                f"{self.name!r} gave rows {rows.min()} to {rows.max()} of a slide with "
                f"{self.rows} tiles."
            )

    def _explain_non_finite(self, array: _Floats) -> str:
        if not np.isfinite(array).all():
            return f"{self.name!r} gave features that are not finite. Try another precision."
        return (
            f"{self.name!r} gave a feature of {np.abs(array).max():.4g}, too large for "
            f"{self.dtype}. Use {self._option}=float32."
        )

    def _write_at(self, data: memoryview, offset: int) -> None:
        while data.nbytes:
            written = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[written:], offset + written

    def _read_at(self, out: memoryview, offset: int) -> None:
        while out.nbytes:
            read = os.preadv(self._file.fileno(), [out], offset)
            if not read:
                raise StoreError(f"The scratch file of {self.name!r} in {self._path} is cut short.")
            out, offset = out[read:], offset + read


class _ScratchSource:
    def __init__(self, scratch: FeatureScratch, keep: NDArray[np.int64]) -> None:
        self._scratch, self._keep = scratch, keep
        self.shape: tuple[int, ...] = (int(keep.size), *scratch.known_shape)
        self.dtype = scratch.dtype

    def chunks(self, rows: int) -> Iterator[_Floats]:
        for start in range(0, self.shape[0], rows):
            yield self._scratch.read(self._keep[start : start + rows])


def blocks(source: FeatureSource, rows: int) -> Iterable[tuple[int, NDArray[Any]]]:
    """Read a source in blocks of exactly ``rows`` rows, the last one shorter.

    For writers, whose chunks should each be written once and whole.

    Yields:
        (first row, block).

    Raises:
        StoreError: If the source gives other rows than its shape says.
    """
    total, *row = source.shape
    done, pending = 0, np.empty((0, *row), source.dtype)
    for chunk in source.chunks(rows):
        if chunk.shape[1:] != source.shape[1:]:
            raise StoreError(f"A source of {source.shape} features gave {chunk.shape}.")
        pending = chunk if not len(pending) else np.concatenate([pending, chunk])
        while len(pending) >= rows:
            yield done, pending[:rows]
            done, pending = done + rows, pending[rows:]
    if len(pending):
        yield done, pending
    if done + len(pending) != total:
        raise StoreError(f"A source of {total} rows of features gave {done + len(pending)}.")
