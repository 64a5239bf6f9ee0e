"""Patch stores: images of labelled tiles, one store a slide, each tile under a key of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import StoreError
from microtome.store.attributes import parse_list

CLASSES, COORDS, LABELS, UNLABELLED = "classes", "coords", "labels", "unlabelled"
"""Attributes of a patch store: names by label, rows, a label each, rows that were left out."""

LABELLED = "labelled pixels"
"""What a writer of patch stores consumes."""

SLIDE_ID = "slide_id"

_UNDERSCORES = re.compile("_{2,}|(?<=/)_|_(?=/)")


def tile_key(slide_id: str, x: int, y: int) -> str:
    """Name a tile by its slide and where it begins, in level-0 pixels: ``a_x512_y1024``.

    A key is flat, as of `flat_id`: no two tiles of a run have the same.
    """
    return f"{flat_id(slide_id)}_x{x}_y{y}"


def flat_id(slide_id: str) -> str:
    """Give a slide's id as one name: folders in it (``slide_id=relpath``) are joined by ``__``.

    No two ids have the same: ``_`` beside another or beside a slash is written ``%5F``, and ``%``
    ``%25``.
    """
    plain = _UNDERSCORES.sub(lambda found: "%5F" * len(found[0]), slide_id.replace("%", "%25"))
    return plain.replace("/", "__")


@dataclass(frozen=True, eq=False, kw_only=True)
class PatchRecord:
    """What a patch store says of its tiles.

    Attributes:
        slide_id: The slide.
        coords: (n, 5) int32 ``x, y, read_w, read_h, level``, sorted by (y, x).
        labels: (n,) int16 index into ``classes``.
        classes: Their names; the first is the background.
        unlabelled: (m, 5) int32, tiles of the slide that have no label and so no image.
        attributes: Those of the slide.
    """

    slide_id: str
    coords: NDArray[np.int32]
    labels: NDArray[np.int16]
    classes: tuple[str, ...]
    unlabelled: NDArray[np.int32]
    attributes: Mapping[str, Any]

    @property
    def keys(self) -> tuple[str, ...]:
        """The name of each tile."""
        return tuple(tile_key(self.slide_id, x, y) for x, y in self.coords[:, :2].tolist())

    @property
    def tiles(self) -> NDArray[np.int32]:
        """(n + m, 5) of all tiles of the slide, with an image or without, by (y, x)."""
        tiles = np.concatenate([self.coords, self.unlabelled])
        return tiles[np.lexsort((tiles[:, 0], tiles[:, 1]))]

    @classmethod
    def parse(cls, record: Mapping[str, Any], path: Path) -> PatchRecord:
        """Read a record as a store gives it back.

        Args:
            record: What a sink was given to record.
            path: Where it is from, for the message.

        Raises:
            StoreError: If it does not say what a patch store holds.
        """
        try:
            found = cls(
                slide_id=str(record[SLIDE_ID]),
                coords=_rows(record[COORDS]),
                labels=np.asarray(parse_list(record[LABELS]), np.int16),
                classes=tuple(map(str, parse_list(record[CLASSES]))),
                unlabelled=_rows(record[UNLABELLED]),
                attributes=record,
            )
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise StoreError(
                f"{path} does not say which tiles it holds and how they are labelled "
                f"({type(error).__name__}: {error}). Delete it and run again what made it."
            ) from error
        if fault := found.fault:
            raise StoreError(f"{path} is damaged: {fault}. Delete it and run again what made it.")
        return found

    @property
    def fault(self) -> str:
        """What does not fit together, half a sentence; empty if all does."""
        if len(self.labels) != len(self.coords):
            return f"it has {len(self.labels)} labels for {len(self.coords)} tiles"
        if ((self.labels < 0) | (self.labels >= len(self.classes))).any():
            return f"a label is none of its {len(self.classes)} classes"
        if len(np.unique(self.coords[:, :2], axis=0)) < len(self.coords):
            return "a tile is there twice"
        return ""


def labelled_tiles(coords: NDArray[np.int32], labels: NDArray[np.int16]) -> dict[str, Any]:
    """Give what a patch store records of a slide's tiles.

    Args:
        coords: (n, 5).
        labels: (n,), -1 for a tile without one.
    """
    known = labels >= 0
    return {
        COORDS: coords[known].tolist(),
        LABELS: labels[known].tolist(),
        UNLABELLED: coords[~known].tolist(),
        "num_patches": int(known.sum()),
    }


def _rows(value: object) -> NDArray[np.int32]:
    return np.asarray(parse_list(value), np.int32).reshape(-1, 5)
