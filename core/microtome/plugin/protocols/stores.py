"""What stores and writers of tile images must be able to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


class FeatureSource(Protocol):
    """A matrix of features, or an array of more axes, that need not be in memory: (rows, …)."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def chunks(self, rows: int) -> Iterable[NDArray[Any]]:
        """Give the array from the top, at most ``rows`` rows at a time."""


class StoredSlide(Protocol):
    """A finished slide, open for reading. A context manager."""

    coords: NDArray[np.int32]
    """(n, 5) ``x, y, read_w, read_h, level``."""

    attributes: Mapping[str, Any]
    columns: Mapping[str, NDArray[Any]]
    """Per-tile columns beside the coordinates, ``tissue_fraction`` for one: (n,) each."""

    def feature_names(self) -> list[str]:
        """List the feature sets."""

    def feature_shape(self, name: str) -> tuple[int, int]:
        """Give a feature set's ``(n, dim)`` without reading it."""

    def features(self, name: str, rows: slice = ...) -> NDArray[np.floating[Any]]:
        """Read a feature set, or some of its rows."""

    def feature_attributes(self, name: str) -> Mapping[str, Any]:
        """Read a feature set's attributes: its encoder's card, identity and provenance."""

    def array_names(self, group: str = "") -> list[str]:
        """List the arrays beside the features, as ``group/name``; those of one group if given.

        Optional, with the three below: a store without them holds no such arrays.
        """

    def array_shape(self, key: str) -> tuple[int, ...]:
        """Give the shape of the array ``group/name`` without reading it."""

    def array(self, key: str, rows: slice = ...) -> NDArray[Any]:
        """Read the array ``group/name``, or some of its rows."""

    def array_attributes(self, key: str) -> Mapping[str, Any]:
        """Read the attributes of the array ``group/name``."""

    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> StoredSlide:
        """Enter a ``with`` block."""

    def __exit__(self, *exc: object) -> None:
        """Close on leaving a ``with`` block."""


class StoreWriter(Protocol):
    """Writes coordinates and features. Never learns the final name, so it need not be atomic.

    A writer of ``layout="directory"`` keeps every feature set in ``<path>/features/<name>``,
    whole and by itself: the store publishes a later one by renaming that folder in.
    """

    def create(
        self,
        path: Path,
        coords: NDArray[np.int32],
        columns: Mapping[str, NDArray[Any]],
        attributes: Mapping[str, Any],
    ) -> None:
        """Write a new slide without features at a path that does not exist yet."""

    def add_features(
        self, path: Path, name: str, source: FeatureSource, attributes: Mapping[str, Any]
    ) -> None:
        """Add a feature set to a slide that this writer created."""

    def add_array(
        self, path: Path, key: str, source: FeatureSource, attributes: Mapping[str, Any]
    ) -> None:
        """Add an array of any shape under ``group/name`` to a slide that this writer created.

        ``slide_features/titan`` is one, ``tokens/uni_v1`` another: what is no row-aligned matrix.
        Optional: a run that has such an array to keep refuses a writer without it. A writer of
        ``layout="directory"`` keeps each in ``<path>/<group>/<name>``, as it keeps feature sets;
        what else lies in ``<path>/<group>`` says what the group is, and comes with its first array.

        Raises:
            StoreError: If the group is ``coords``, ``columns``, ``features`` or ``passports``.
        """

    def open_stored(self, path: Path) -> StoredSlide:
        """Open a finished slide.

        Raises:
            StoreError: If it is not a slide of this store.
        """


class TileSink(Protocol):
    """Takes the tiles of one slide."""

    def write(self, coords: NDArray[np.int32], pixels: NDArray[np.uint8]) -> None:
        """Write tiles: coords (n, 5), pixels (n, h, w, 3), in no order and lent for the call.

        Called from one thread, which is not the one that opened it, or from several at once where
        the spec says ``concurrent``.
        """

    def record(self, attributes: Mapping[str, Any]) -> None:
        """Take, before `close`, what the store writes into a folder of images as its record.

        Of ``layout="file"`` alone. ``attributes["coords"]`` are the (n, 5) tiles that are kept, a
        list of rows; of others that came nothing stays.
        """

    def close(self) -> None:
        """Finish. Everything is on disk afterwards; the store then publishes the path."""


class StoredPatches(Protocol):
    """The labelled tiles of a slide, with their pixels. A context manager.

    It can be pickled and lives on in a forked process: a file is opened where it is read.
    """

    slide_id: str
    keys: Sequence[str]
    """(n,) ``<slide>_x<X>_y<Y>``, X and Y at level 0."""

    coords: NDArray[np.int32]
    """(n, 5) ``x, y, read_w, read_h, level``, sorted by (y, x)."""

    labels: NDArray[np.int16]
    """(n,) index into ``classes``."""

    classes: tuple[str, ...]
    """Names by label; the first is the background."""

    attributes: Mapping[str, Any]

    def __len__(self) -> int:
        """Count the tiles."""

    def read(self, rows: slice | Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Read the pixels of some tiles, in that order: (n, h, w, 3).

        Raises:
            StoreError: If they cannot be read, or are damaged.
        """

    def close(self) -> None:
        """Release the file; the next `read` opens it again."""

    def __enter__(self) -> StoredPatches:
        """Enter a ``with`` block."""

    def __exit__(self, *exc: object) -> None:
        """Close on leaving a ``with`` block."""


class PatchSink(Protocol):
    """Takes the labelled tiles of one slide."""

    def write(
        self, coords: NDArray[np.int32], pixels: NDArray[np.uint8], labels: NDArray[np.int16]
    ) -> None:
        """Write tiles as `TileSink.write` does; labels (n,), none below 0."""

    def record(self, attributes: Mapping[str, Any]) -> None:
        """Take, before `close`, what the store is to give back as its record.

        As `TileSink.record`, of ``layout="file"`` alone. ``attributes["labels"]`` has a label for
        each row of ``attributes["coords"]``, ``attributes["classes"]`` their names.
        """

    def close(self) -> None:
        """Finish. Everything is on disk afterwards; the store then publishes the path."""


class PatchWriter(Protocol):
    """Writes patch stores: tile images with labels. Never learns the final name.

    A writer of ``layout="classes"`` makes a folder at its path with one folder for each class that
    has tiles, and the store moves these to where the images of all slides are.
    """

    def open(self, path: Path, slide_id: str, attributes: Mapping[str, Any]) -> PatchSink:
        """Begin one slide at a path that does not exist yet.

        ``attributes["classes"]`` names the classes.
        """

    def open_patches(self, path: Path) -> StoredPatches:
        """Open a finished slide by its final name.

        Raises:
            StoreError: If it is not a slide of this store, or is damaged.
        """

    def read_record(self, path: Path) -> Mapping[str, Any]:
        """Give back what the store was given as its record, by its final name.

        Raises:
            StoreError: If it is no such file, or is damaged.
        """

    def damage(self, path: Path, *, deep: bool) -> Iterable[str]:
        """Say what is wrong with the images, as `TileWriter.damage` does."""


class TileWriter(Protocol):
    """Writes tile images into a folder, or a file, a slide. Never learns the final name.

    The store adds the slide's attributes to a folder, so that the next run knows it again. A writer
    of ``layout="file"`` keeps them itself: it has the methods but the first, too.
    """

    def open(self, path: Path, slide_id: str, attributes: Mapping[str, Any]) -> TileSink:
        """Begin one slide at a path that does not exist yet."""

    def read_record(self, path: Path) -> Mapping[str, Any]:
        """Give what `TileSink.record` was given, as a store gives attributes back.

        Raises:
            StoreError: If it is no such file, or is damaged.
        """

    def damage(self, path: Path, *, deep: bool) -> Iterable[str]:
        """Say what is wrong with the images of a file, half a sentence each.

        Args:
            path: The file.
            deep: Whether every image is read.

        Raises:
            StoreError: As `read_record` does.
        """
