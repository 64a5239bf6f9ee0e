"""Patients without a model of patients: their slides pooled, or made one slide. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import EncoderError
from microtome.plugin.specs import NoConfig
from microtome.slide.bags import PatientBag, TileBag
from microtome_encoders.options import ConcatConfig

Pool = Callable[[NDArray[np.floating[Any]]], NDArray[np.floating[Any]]]

GAP = 1
"""Columns of glass between two slides, so that no tile of one touches one of the other."""


class SlidePooling:
    """One vector of a patient's slide embeddings, each slide counting the same.

    Args:
        config: Nothing.
        pool: ``"mean"``, accumulated in float64, or ``"max"``, column by column.
    """

    def __init__(self, config: NoConfig, *, pool: str) -> None:
        self._pool = POOLS[pool]

    def load(self, device: str, precision: str) -> None:
        """Load nothing: there are no weights."""

    def encode(self, patient: PatientBag) -> NDArray[np.float32]:
        """Pool a patient's slides.

        Returns:
            (dim,) float32, of as many columns as the slide embeddings have.

        Raises:
            EncoderError: If the patient has no slide embedding.
        """
        slides = patient.slide_embeddings
        if slides is None or not len(slides):
            raise EncoderError(f"The patient {patient.patient_id} has no slide embedding to pool.")
        return self._pool(slides).astype(np.float32)


def _mean(slides: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    mean: NDArray[np.floating[Any]] = slides.mean(axis=0, dtype=np.float64)
    return mean


def _max(slides: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    highest: NDArray[np.floating[Any]] = slides.max(axis=0)
    return highest


POOLS: dict[str, Pool] = {"mean": _mean, "max": _max}


class ConcatEncoder:
    """All tiles of a patient as those of one slide, by a slide encoder of the user's choice.

    The slides are put side by side, as `side_by_side` says, and the slide encoder embeds them as
    one. A patient with one slide so has that slide's embedding.

    Args:
        config: Which slide encoder.

    Attributes:
        slide_encoder: Its name; its needs are this encoder's.
    """

    def __init__(self, config: ConcatConfig) -> None:
        self.slide_encoder = config.slide_encoder

    def load(self, device: str, precision: str) -> None:
        """Load nothing: the run loads the slide encoder."""

    def encode(self, patient: PatientBag) -> NDArray[np.floating[Any]]:
        """Embed a patient's tiles as one slide.

        Returns:
            (dim,) floating point, what the slide encoder gives.

        Raises:
            EncoderError: If the patient has no tile, no slide encoder came with it, or its slides
                were not tiled alike.
        """
        if patient.embed is None:
            raise EncoderError(
                f"The patient encoder concat was given no slide encoder {self.slide_encoder} to "
                f"embed the patient {patient.patient_id} with."
            )
        return patient.embed(side_by_side(patient.patient_id, patient.slides)).embedding


def side_by_side(patient_id: str, slides: Sequence[TileBag]) -> TileBag:
    """Put the tiles of several slides into one slide that no scanner has seen.

    Slides are placed from left to right in their order, their uppermost tiles in the first row,
    with one empty column between two. They are moved by whole tiles: a tile's column and row,
    ``coords // tile_size_level0``, change by one number for a whole slide, so the lattice of each
    stays what it was. Where slides differ in ``tile_size_level0``, since one was scanned at 40x and
    one at 20x, coordinates are brought to the largest by ``coords * largest // tile_size_level0``,
    which leaves every column and row as it is. A slide by itself is left where it is.

    Args:
        patient_id: What the new slide is called.
        slides: With the same feature sets and tiles of one ``size``; those without tiles are left
            out.

    Returns:
        Tiles sorted by (y, x), as those of any slide; ``mpp`` where the slides agree on it.

    Raises:
        EncoderError: If there is no tile, or the slides were not tiled alike.
    """
    filled = [slide for slide in slides if len(slide)]
    if not filled:
        raise EncoderError(f"No slide of the patient {patient_id} has a tile.")
    if len(filled) == 1:
        return filled[0]
    _check_alike(patient_id, filled)
    tile = max(slide.tile_size_level0 for slide in filled)
    coords = np.concatenate(_placed(filled, tile))
    order = np.lexsort(coords.T)
    return TileBag(
        slide_id=patient_id,
        features={
            key: np.concatenate([slide.features[key] for slide in filled])[order]
            for key in filled[0].features
        },
        coords=coords[order],
        tile_size_level0=tile,
        size=filled[0].size,
        mpp=filled[0].mpp if len({slide.mpp for slide in filled}) == 1 else None,
        slide_size=_size(coords, tile),
    )


def _placed(slides: Sequence[TileBag], tile: int) -> list[NDArray[np.int64]]:
    column, placed = 0, []
    for slide in slides:
        coords = slide.coords * tile // slide.tile_size_level0
        corner = coords.min(0) // tile
        placed.append(coords + (np.array([column, 0]) - corner) * tile)
        column = int(placed[-1][:, 0].max()) // tile + 1 + GAP
    return placed


def _size(coords: NDArray[np.int64], tile: int) -> tuple[int, int]:
    width, height = (coords.max(0) + tile).tolist()
    return width, height


def _check_alike(patient_id: str, slides: Sequence[TileBag]) -> None:
    first = slides[0]
    for slide in slides[1:]:
        if slide.size != first.size or slide.features.keys() != first.features.keys():
            raise EncoderError(
                f"The slides of the patient {patient_id} were not tiled alike: {first.slide_id} "
                f"has {', '.join(first.features)} of {first.size} px tiles, {slide.slide_id} has "
                f"{', '.join(slide.features)} of {slide.size} px tiles."
            )
