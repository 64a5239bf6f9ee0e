"""All tiles of a slide, and all slides of a patient, as their encoders take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from microtome.plugin.protocols import SlideOutput


@dataclass(frozen=True, eq=False, kw_only=True)
class TileBag:
    """The tiles of a slide with their features.

    Attributes:
        slide_id: The slide.
        features: By `TileNeed.key`, (n, dim) floating point each; a pooling that takes any feature
            set is given one.
        coords: (n, 2) int64 ``x, y``, level-0 pixels of the top left corners, sorted by (y, x).
        tile_size_level0: Side of a tile in level-0 pixels; without overlap also the pitch, so
            that ``coords // tile_size_level0`` never merges two columns.
        size: Side of a tile in pixels as its encoder was given it.
        mpp: µm per pixel of the tiles, or None where it is not known.
        slide_size: (width, height) of level 0 in pixels.
        step: Pitch of the tiles in pixels as ``size`` is, or None where it is not known.
        magnification: The nominal target of the tiles, or None for a physical or no known one.
    """

    slide_id: str
    features: Mapping[str, NDArray[np.floating[Any]]]
    coords: NDArray[np.int64]
    tile_size_level0: int
    size: int
    mpp: float | None
    slide_size: tuple[int, int]
    step: int | None = None
    magnification: float | None = None

    def __len__(self) -> int:
        """Count the tiles."""
        return len(self.coords)

    @property
    def only(self) -> NDArray[np.floating[Any]]:
        """The one feature set, (n, dim).

        Raises:
            ValueError: If there are several.
        """
        (features,) = self.features.values()
        return features

    @property
    def extent(self) -> tuple[int, int]:
        """(columns, rows) of tiles that their bounding box is wide and high; (0, 0) for none."""
        if not len(self):
            return 0, 0
        span = (self.coords.max(0) - self.coords.min(0)) // self.tile_size_level0 + 1
        return int(span[0]), int(span[1])


@dataclass(frozen=True, eq=False, kw_only=True)
class PatientBag:
    """The slides of a patient.

    Attributes:
        patient_id: The patient.
        slides: Tiles of each slide, sorted by id, whatever the order of the input; empty where the
            encoder takes slide embeddings alone.
        slide_ids: Of every slide, in the same order.
        slide_embeddings: (slides, dim) floating point, row by row in that order, where the encoder
            takes them.
        embed: What the slide encoder that the patient encoder names makes of a bag.
    """

    patient_id: str
    slide_ids: tuple[str, ...]
    slides: tuple[TileBag, ...] = ()
    slide_embeddings: NDArray[np.floating[Any]] | None = None
    embed: Callable[[TileBag], SlideOutput] | None = None
