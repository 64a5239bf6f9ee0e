"""A slide's scores: what its tiles' probabilities say of it as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from microtome_training.predicting.lesions import write_table

COLUMNS = (
    *("slide_id", "patient_id", "class", "label", "tiles", "max", "top_k_mean"),
    *("positive_share", "positive_tiles"),
)
"""Of a table of slides."""


@dataclass(frozen=True, kw_only=True)
class SlideScore:
    """What the tiles of a slide say of one class.

    Attributes:
        slide_id: The slide.
        patient_id: Whose it is; empty if unknown.
        class_name: What the probabilities are of.
        label: Whether any of its tiles is labelled so; None where none is labelled at all.
        tiles: Their number.
        max: The highest probability; None of a slide without tiles, as the next two.
        top_k_mean: The mean of the k highest, or of all where there are fewer.
        positive_share: The share of tiles from the threshold on.
        positive_tiles: Their number.
    """

    slide_id: str
    patient_id: str
    class_name: str
    label: bool | None
    tiles: int
    max: float | None
    top_k_mean: float | None
    positive_share: float | None
    positive_tiles: int


def score_slide(
    probability: NDArray[np.float32],
    *,
    slide: tuple[str, str],
    class_name: str,
    positive: NDArray[np.bool_] | None = None,
    top_k: int = 10,
    threshold: float = 0.5,
) -> SlideScore:
    """Score a slide by its tiles.

    Args:
        probability: (n,) of the class.
        slide: Its id, and its patient's or nothing.
        class_name: The class.
        positive: (n,) bool, tiles that are labelled so; None where nothing is labelled.
        top_k: How many tiles ``top_k_mean`` is of.
        threshold: Probability from which a tile is positive.
    """
    highest = np.sort(probability.astype(np.float64))[::-1]
    count = int((probability >= threshold).sum())
    has = len(highest) > 0
    return SlideScore(
        slide_id=slide[0],
        patient_id=slide[1],
        class_name=class_name,
        label=None if positive is None else bool(positive.any()),
        tiles=len(highest),
        max=float(highest[0]) if has else None,
        top_k_mean=float(highest[:top_k].mean()) if has else None,
        positive_share=count / len(highest) if has else None,
        positive_tiles=count,
    )


def write_scores(path: Path, scores: Iterable[SlideScore]) -> None:
    """Write slides' scores as CSV, a row for each slide and class, atomically.

    Raises:
        StoreError: If it cannot be written.
    """
    write_table(path, COLUMNS, map(_row, scores))


def _row(score: SlideScore) -> dict[str, object]:
    return {
        "slide_id": score.slide_id,
        "patient_id": score.patient_id,
        "class": score.class_name,
        "label": "" if score.label is None else int(score.label),
        "tiles": score.tiles,
        "max": _told(score.max),
        "top_k_mean": _told(score.top_k_mean),
        "positive_share": _told(score.positive_share),
        "positive_tiles": score.positive_tiles,
    }


def _told(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
