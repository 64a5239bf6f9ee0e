"""Stored features as a training is given them: rows out of the slides' stores."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import TaskError
from microtome.plugin.registry import get_registry
from microtome_training.reading import require_features

if TYPE_CHECKING:
    from microtome.plugin.protocols import StoredSlide
    from microtome.plugin.registry import Registry
    from microtome_training.tiles import Tiles

_BLOCK = 256
"""Rows of a store that are read at once, of those between the first and last that are wanted."""

_OPEN = 64


class FeatureSource:
    """Features read from the stores beside the tiles, few at a time. Pickles; opens stores late.

    Attributes:
        dim: Their columns.
        row_bytes: Of one tile in memory.

    Args:
        tiles: Whose.
        name: Of the feature set.
        registry: The stores.

    Raises:
        TaskError: If a slide has none by that name, or the slides' differ in width.
        StoreError: If a store cannot be read.
    """

    def __init__(self, tiles: Tiles, name: str, registry: Registry) -> None:
        self._stores = [(slide.writer, slide.store) for slide in tiles.slides]
        self._slide, self._row = tiles.slide, tiles.row
        self._name, self._registry = name, registry
        self._held: OrderedDict[int, StoredSlide] = OrderedDict()
        self._process = os.getpid()
        self.dim = self._find_dim(tiles)
        self.row_bytes = self.dim * np.dtype(np.float32).itemsize

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read the features of tiles by their index: (n, d) float32.

        Raises:
            TaskError: If a value is not finite.
            StoreError: If they cannot be read.
        """
        out = np.empty((len(rows), self.dim), np.float32)
        for number, mine in _blocks(self._slide[rows], self._row[rows]):
            wanted = self._row[rows[mine]]
            first = int(wanted[0])
            block = self._open(number).features(self._name, slice(first, int(wanted[-1]) + 1))
            out[mine] = np.asarray(block)[wanted - first]
        if not np.isfinite(out).all():
            raise TaskError(f"The features {self._name!r} hold values that are not finite.")
        return out

    def _find_dim(self, tiles: Tiles) -> int:
        """Give the width of the features of all slides that have tiles."""
        dims: dict[int, str] = {}
        for number in np.unique(self._slide).tolist():
            slide = tiles.slides[number]
            require_features(slide, self._name)
            with slide.open(self._registry) as stored:
                dims.setdefault(stored.feature_shape(self._name)[1], slide.slide_id)
        if len(dims) > 1:
            told = " and ".join(f"{dim} ({name})" for dim, name in sorted(dims.items())[:2])
            raise TaskError(f"The features {self._name!r} differ in width: {told}.")
        return next(iter(dims), 0)

    def _open(self, number: int) -> StoredSlide:
        """Give a slide's store, open; of those that are, the one read least lately is closed."""
        if self._process != os.getpid():  # forked: what is open is another's
            self._process, self._held = os.getpid(), OrderedDict()
        if number not in self._held:
            while len(self._held) >= _OPEN:
                self._held.popitem(last=False)[1].close()
            writer, path = self._stores[number]
            self._held[number] = self._registry.create("writer", writer).open_stored(path)
        self._held.move_to_end(number)
        return self._held[number]

    def __getstate__(self) -> dict[str, Any]:
        rest = {name: value for name, value in self.__dict__.items() if name != "_registry"}
        return {**rest, "_held": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _registry=get_registry())


def _blocks(
    slide: NDArray[np.int32], row: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Share out rows of stores into those that are read at once.

    Yields:
        Which slide, and which of the rows, the first in its store first.
    """
    if not len(row):
        return
    order = np.lexsort((row, slide))
    block, of = row[order] // _BLOCK, slide[order]
    starts = np.nonzero((np.diff(block) != 0) | (np.diff(of) != 0))[0] + 1
    for start, end in pairwise([0, *starts.tolist(), len(order)]):
        yield int(of[start]), order[start:end]
