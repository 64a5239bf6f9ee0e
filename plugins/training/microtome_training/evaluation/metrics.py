"""How good predictions are: measures of tiles and of slides, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from microtome.errors import TaskError
from microtome_training.evaluation.bootstrap import draw_units, strata_by_class
from microtome_training.evaluation.counting import divide
from microtome_training.evaluation.levels import (
    SLIDE_MAX,
    SLIDE_TOP,
    SMALLEST,
    TILE,
    Draws,
    Level,
    Metric,
    Scored,
)
from microtome_training.options.checks import check_measures
from microtome_training.options.evaluate import MeasureOptions, ResampleBy
from microtome_training.predictions import Predictions


@dataclass(frozen=True, kw_only=True)
class SlideMeasures:
    """One slide's own measures.

    Attributes:
        slide_id: Which.
        patient_id: Whose; empty if unknown.
        n: Tiles with a label.
        positives: Those of a class other than the background.
        loss: Mean of its tiles.
        accuracy: Of its tiles.
        auroc: Of its tiles, background against all others; None where it has not both.
        max_score: The highest probability of a class other than the background.
        top_k_mean: The mean of its k highest.
    """

    slide_id: str
    patient_id: str
    n: int
    positives: int
    loss: float
    accuracy: float
    auroc: float | None
    max_score: float
    top_k_mean: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """What was measured.

    Attributes:
        metrics: One a row.
        confusion: (C, C) tiles, true classes by predicted ones.
        scored: What curves are drawn of: tiles of the positive class, or of each of three or more
            classes, then slides of the positive classes.
        slides: Each slide that has a labelled tile.
        units: What was drawn, ``patients`` or ``slides``.
        unit_count: How many there are of them.
        no_interval: Why no measure has an interval; empty where some could have one.
    """

    metrics: tuple[Metric, ...]
    confusion: NDArray[np.int64]
    scored: tuple[Scored, ...]
    slides: tuple[SlideMeasures, ...]
    units: str
    unit_count: int
    no_interval: str = ""

    def find(self, level: str, metric: str, class_name: str = "") -> Metric:
        """Find a measure.

        Raises:
            KeyError: If there is none of that name.
        """
        for each in self.metrics:
            if (each.level, each.metric, each.class_name) == (level, metric, class_name):
                return each
        raise KeyError((level, metric, class_name))


def measure(predictions: Predictions, options: MeasureOptions | None = None) -> Measured:
    """Measure predictions on tiles and on slides.

    A slide is positive for a class if one of its labelled tiles is, and its scores are of these.

    Args:
        predictions: In the order of `Predictions.of_splits`. Tiles without a label are left out,
            and so are slides without any labelled tile.
        options: How.

    Raises:
        TaskError: If no tile has a label, or it is not known whose slides these are and draws
            shall go by patients.
        ConfigError: If an option makes no sense.
    """
    options = options or MeasureOptions()
    check_measures(options)
    labelled = predictions.take(predictions.label >= 0)
    if not len(labelled):
        raise TaskError(
            f"None of {len(predictions)} tiles has a label to measure its prediction by. Label "
            "them first: task=index annotations=FOLDER."
        )
    slides, slide = np.unique(labelled.slide, return_inverse=True)
    units, unit_of_slide = _units(labelled, slides, options.resample)
    unit = unit_of_slide[slide]
    drawn = _draw(labelled, unit, int(unit_of_slide.max()) + 1, options)
    draws = Draws(drawn, units, options)
    tiles = _measure_tiles(labelled, Level(TILE, unit, draws))
    scores = _score_slides(labelled, slide, options.top_k)
    levels = [
        _measure_slides(labelled, slide, score, Level(name, unit_of_slide, draws))
        for name, score in scores.items()
    ]
    predicted = labelled.predicted(options.threshold)
    return Measured(
        metrics=tuple(metric for level in (tiles, *levels) for metric in level.metrics),
        confusion=tiles.count(labelled.label, predicted, len(labelled.classes))[0].astype(np.int64),
        scored=tuple(scored for level in (tiles, *levels) for scored in level.scored),
        slides=_each_slide(labelled, slides, slide, options),
        units=units,
        unit_count=drawn.shape[1],
        no_interval=draws.why_none(),
    )


def top_mean(
    slide: NDArray[np.integer], score: NDArray[np.float32], *, k: int
) -> NDArray[np.float32]:
    """Give the mean of the k highest scores of each slide, or of all where it has fewer.

    Args:
        slide: (n,) index of each tile's slide; every slide up to the last has a tile.
        score: (n,).
        k: How many; 1 for the highest.

    Returns:
        (S,) float32.
    """
    order = np.lexsort((-score, slide))
    ordered = slide[order]
    counts = np.bincount(ordered)
    rank = np.arange(len(ordered)) - np.repeat(counts.cumsum() - counts, counts)
    top = rank < k
    sums = np.bincount(ordered[top], weights=score[order][top].astype(np.float64))
    return (sums / np.minimum(counts, k)).astype(np.float32)


def tile_loss(predictions: Predictions) -> NDArray[np.float32]:
    """Give the loss of each labelled tile, (n,): the negative logarithm of its class's share."""
    label = predictions.label[:, None].astype(np.int64)
    share = np.take_along_axis(predictions.probabilities, label, 1)[:, 0]
    loss: NDArray[np.float32] = -np.log(np.clip(share, SMALLEST, 1))
    return loss


def _units(
    predictions: Predictions, slides: NDArray[np.integer], by: ResampleBy
) -> tuple[str, NDArray[np.int64]]:
    """Say what is drawn, and which of them each slide is."""
    patients = [predictions.patient_ids[index] for index in slides]
    ids = [predictions.slide_ids[index] for index in slides]
    if by is ResampleBy.patient and not all(patients):
        raise TaskError(
            f"evaluate.resample=patient: nothing says whose slide {ids[patients.index('')]} is. "
            "Predict with a manifest that has a column patient_id, or take resample=slide."
        )
    by_patient = by is not ResampleBy.slide and all(patients)
    _, unit = np.unique(patients if by_patient else ids, return_inverse=True)
    return "patients" if by_patient else "slides", unit


def _draw(
    predictions: Predictions, unit: NDArray[np.integer], count: int, options: MeasureOptions
) -> NDArray[np.float64]:
    present = np.zeros((count, len(predictions.classes)), bool)
    present[unit, predictions.label] = True
    drawn = draw_units(strata_by_class(present), options.bootstrap, seed=options.seed)
    return np.concatenate([np.ones((1, count)), drawn])


def _measure_tiles(predictions: Predictions, level: Level) -> Level:
    classes, label = predictions.classes, predictions.label
    predicted = predictions.predicted(level.draws.options.threshold)
    confusion = level.count(label, predicted, len(classes))
    level.add_overall(confusion, tile_loss(predictions), classes)
    # Of two classes the second says it all.
    for number in range(1 if len(classes) == 2 else 0, len(classes)):
        level.add_curve(label == number, predictions.probabilities[:, number], classes[number])
        level.add_threshold(number, confusion, classes[number])
    if len(classes) > 2:
        level.add_averages(len(classes))
    return level


def _score_slides(
    predictions: Predictions, slide: NDArray[np.integer], k: int
) -> Mapping[str, NDArray[np.float32]]:
    """Score slides for each class by two rules, (S, C)."""
    columns = predictions.probabilities.T
    return {
        SLIDE_MAX: np.stack([top_mean(slide, column, k=1) for column in columns], axis=1),
        SLIDE_TOP: np.stack([top_mean(slide, column, k=k) for column in columns], axis=1),
    }


def _measure_slides(
    predictions: Predictions,
    slide: NDArray[np.integer],
    scores: NDArray[np.float32],
    level: Level,
) -> Level:
    truth = np.zeros(scores.shape, bool)
    truth[slide, predictions.label] = True
    for number, name in list(enumerate(predictions.classes))[1:]:
        positive, score = truth[:, number], scores[:, number]
        predicted = (score >= level.draws.options.threshold).astype(np.int64)
        confusion = level.count(positive.astype(np.int64), predicted, 2)
        loss = -np.log(np.clip(np.where(positive, score, 1 - score), SMALLEST, 1))
        level.add_overall(confusion, loss, (f"not {name}", name), class_name=name)
        level.add_curve(positive, score, name)
        level.add_threshold(1, confusion, name)
    return level


def _each_slide(
    predictions: Predictions,
    slides: NDArray[np.integer],
    slide: NDArray[np.integer],
    options: MeasureOptions,
) -> tuple[SlideMeasures, ...]:
    score, positive = predictions.score, predictions.label > 0
    right = predictions.predicted(options.threshold) == predictions.label
    counts = np.bincount(slide)
    loss = np.bincount(slide, weights=tile_loss(predictions)) / counts
    accuracy = np.bincount(slide, weights=right) / counts
    positives = np.bincount(slide, weights=positive).astype(np.int64)
    most, top = (top_mean(slide, score, k=k) for k in (1, options.top_k))
    auroc = _auroc_by_slide(slide, positive, score)
    return tuple(
        SlideMeasures(
            slide_id=predictions.slide_ids[index],
            patient_id=predictions.patient_ids[index],
            n=int(counts[row]),
            positives=int(positives[row]),
            loss=float(loss[row]),
            accuracy=float(accuracy[row]),
            auroc=float(auroc[row]) if np.isfinite(auroc[row]) else None,
            max_score=float(most[row]),
            top_k_mean=float(top[row]),
        )
        for row, index in enumerate(slides)
    )


def _auroc_by_slide(
    slide: NDArray[np.integer], truth: NDArray[np.bool_], score: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Give each slide's area under the ROC curve by ranks, NaN where there is none, (S,)."""
    order = np.lexsort((score, slide))
    slide, truth, score = slide[order], truth[order], score[order]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (np.diff(slide) != 0) | (np.diff(score) != 0)
    tied = np.bincount(is_new.cumsum() - 1)
    # Scores that are tied share the mean of their ranks.
    rank = np.repeat(tied.cumsum() - (tied - 1) / 2, tied)
    counts = np.bincount(slide)
    positives = np.bincount(slide, weights=truth)
    before = counts.cumsum() - counts
    sums = np.bincount(slide, weights=truth * (rank - before[slide]))
    return divide(sums - positives * (positives + 1) / 2, positives * (counts - positives))
