"""Options of how predictions are measured and shown. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from microtome.plugin import option, runtime


class ResampleBy(Enum):
    """What a bootstrap draws."""

    auto = "auto"
    patient = "patient"
    slide = "slide"


@dataclass
class MeasureOptions:
    """How predictions are measured, for a task to have as ``evaluate`` and for `evaluate`."""

    threshold: float = option(
        0.5,
        help="Probability from which a tile, or a slide, is positive; with three or more classes "
        "a tile is of the most probable one.",
    )
    specificities: list[float] = option(
        [0.95], help="Specificities at which the sensitivity is told, above 0 and below 1."
    )
    top_k: int = option(10, help="Tiles whose mean probability is a slide's second score.")
    bootstrap: int = option(1000, help="Draws for the intervals; 0 for none.")
    confidence: float = option(0.95, help="Share of the draws that an interval holds.")
    resample: ResampleBy = option(
        ResampleBy.auto,
        help="What is drawn: patient, slide, or auto: patients where all are known, else slides.",
    )
    bins: int = option(15, help="Bins of the reliability curve, of equal width.")
    seed: int = option(42, help="Another seed draws otherwise.")
    shown_slides: int = runtime(3, help="Best and worst slides on the page, so many of each.")
    shown_tiles: int = runtime(12, help="Most wrong tiles on the page, so many of each kind.")


@dataclass
class EvaluateConfig(MeasureOptions):
    """Options of ``task=evaluate``."""

    predictions_file: str | None = option(
        None,
        help="What to measure: a predictions.parquet; by default the output's only one, of a "
        "training or of task=predict.",
    )
    split: str = option(
        "auto",
        help="Which tiles: test, val, train, all, or auto: test if there is any, else val, else "
        "those of no split.",
    )
    folder: str | None = runtime(
        None, help="Where the evaluation goes; by default evaluation/SPLIT beside the predictions."
    )
    csv_copy: bool = runtime(False, help="Also write the predictions that were measured as CSV.")
