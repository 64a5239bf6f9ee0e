"""Patch stores read back: what all of them have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from microtome.store.patches import PatchRecord

Rows = slice | Sequence[int] | NDArray[np.integer[Any]]


class Patches(ABC):
    """The labelled tiles of a slide, with their pixels, sorted by (y, x).

    Nothing is open until something is read, so it can be pickled, and lives on in a forked process.

    Attributes:
        path: The store.
        slide_id: The slide.
        keys: (n,) ``<slide>_x<X>_y<Y>``.
        coords: (n, 5) int32 ``x, y, read_w, read_h, level``.
        labels: (n,) int16 index into ``classes``.
        classes: Names by label; the first is the background.
        attributes: Of the slide.
    """

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        """Take what a store recorded.

        Raises:
            StoreError: If that says not which tiles it holds.
        """
        told = PatchRecord.parse(record, path)
        self.path, self.slide_id, self.keys = path, told.slide_id, told.keys
        self.coords, self.labels, self.classes = told.coords, told.labels, told.classes
        self.attributes = told.attributes

    def __len__(self) -> int:
        """Count the tiles."""
        return len(self.keys)

    def read(self, rows: Rows) -> NDArray[np.uint8]:
        """Read the pixels of some tiles, in that order.

        Args:
            rows: Index of each, or a slice, or a mask.

        Returns:
            (n, h, w, 3) RGB.

        Raises:
            StoreError: If one cannot be read, or is damaged.
        """
        index = rows if isinstance(rows, slice) else np.asarray(rows, None if len(rows) else int)
        chosen = np.arange(len(self))[index].tolist()
        if not chosen:
            size = int(self.attributes.get("patch_size", 0))
            return np.empty((0, size, size, 3), np.uint8)
        return np.stack([self._read(row) for row in chosen])

    @abstractmethod
    def close(self) -> None:
        """Release the file; the next `read` opens it again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @abstractmethod
    def _read(self, row: int) -> NDArray[np.uint8]:
        """Read one tile, (h, w, 3)."""
