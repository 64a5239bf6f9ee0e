"""Measures of one level, tiles or slides by a score, for every draw of a bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from microtome_training.evaluation.bootstrap import Floats, curves, interval, sum_by_unit
from microtome_training.evaluation.counting import (
    calibration_error,
    curve_measures,
    overall_measures,
    threshold_measures,
)
from microtome_training.options.evaluate import MeasureOptions

TILE, SLIDE_MAX, SLIDE_TOP = "tile", "slide_max", "slide_top_k_mean"
"""What a measure is of: tiles, or slides by one of two scores."""

SMALLEST = 1e-7
"""Probability of the true class below which its loss does not grow further: 16.1."""

BAND = np.linspace(0, 1, 101)
"""False positive rates at which the interval of a ROC curve is known."""

_AVERAGED = ("auroc", "auprc", "ece", "sensitivity", "specificity", "precision", "f1")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measure.

    Attributes:
        level: `TILE`, `SLIDE_MAX` or `SLIDE_TOP`.
        class_name: The class that it is of, against all others; empty for all together.
        metric: Its name.
        value: None where it is not defined; ``note`` says why.
        low: Of the interval; None without one.
        high: Likewise.
        n: Tiles, or slides, that it is of.
        positives: How many of these are of the class; None for all together.
        draws: Draws of the bootstrap that could be used.
        note: Why there is no value, or no interval.
    """

    level: str
    class_name: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    positives: int | None
    draws: int
    note: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
    """One class of one level: what curves are drawn of.

    Attributes:
        level: As of `Metric`.
        class_name: The class.
        truth: (n,) bool.
        score: (n,) float32.
        band: (2, len(BAND)) the interval of sensitivity at rates `BAND` of false positives; None
            without one.
        bins: (B, 3) count, sum of scores and positives, by score.
    """

    level: str
    class_name: str
    truth: NDArray[np.bool_]
    score: NDArray[np.float32]
    band: Floats | None
    bins: Floats


@dataclass(frozen=True, eq=False)
class Draws:
    """What a bootstrap drew.

    Attributes:
        weights: (B, U) how often each slide or patient was drawn; the first draw has each once,
            so that what it measures is the value.
        units: ``slides`` or ``patients``.
        options: How is measured.
    """

    weights: Floats
    units: str
    options: MeasureOptions

    def why_none(self) -> str:
        """Say why there are none besides the first; empty where there are."""
        if len(self.weights) > 1:
            return ""
        if not self.options.bootstrap:
            return "no interval was asked for (bootstrap=0)"
        return f"too few {self.units} to draw from ({self.weights.shape[1]}): no interval"


class Level:
    """Measures of tiles, or of slides by one score.

    Args:
        name: `TILE`, `SLIDE_MAX` or `SLIDE_TOP`.
        unit: (n,) index of the slide or patient of each tile or slide.
        draws: What was drawn.
    """

    def __init__(self, name: str, unit: NDArray[np.integer], draws: Draws) -> None:
        self.name, self.unit, self.draws = name, unit, draws
        self.what = "tile" if name == TILE else "slide"
        self.metrics: list[Metric] = []
        self.scored: list[Scored] = []
        self._averaged: dict[str, list[Floats]] = {}

    def add_overall(
        self,
        confusion: Floats,
        loss: NDArray[np.floating],
        classes: Sequence[str],
        *,
        class_name: str = "",
    ) -> None:
        """Measure all classes together.

        Args:
            confusion: As `count` gives it.
            loss: (n,) the loss of each tile or slide.
            classes: What each row of ``confusion`` is.
            class_name: The class that all is about, if it is one against the others.
        """
        sums = self._sum(np.stack([loss.astype(np.float64), np.ones(len(loss))], axis=1))
        measures = {"loss": sums[:, 0] / sums[:, 1].clip(1), **overall_measures(confusion)}
        counts = confusion[0].sum(1)
        reason = f"every {self.what} is {classes[int(counts.argmax())]}"
        positives = int(counts[1]) if class_name else None
        for name, values in measures.items():
            self._add(name, class_name, values, positives=positives, reason=reason)

    def add_threshold(self, number: int, confusion: Floats, class_name: str) -> None:
        """Measure a class as it is told at the threshold.

        Args:
            number: Its place in ``confusion``.
            confusion: As `count` gives it.
            class_name: Its name.
        """
        positives = int(confusion[0, number].sum())
        for name, values in threshold_measures(confusion, number).items():
            reason = self._one_class(positives, class_name)
            if name == "precision" and positives:
                reason = f"no {self.what} is predicted {class_name}"
            self._add(name, class_name, values, positives=positives, reason=reason)

    def add_curve(
        self, truth: NDArray[np.bool_], score: NDArray[np.float32], class_name: str
    ) -> None:
        """Measure a class along all thresholds, and its calibration if it is of tiles.

        Args:
            truth: (n,) which are of the class.
            score: (n,) how probably they are.
            class_name: Its name.
        """
        positives = int(truth.sum())
        measures, band = self._along(truth, score)
        if 0 < positives < len(truth):
            # The values are of every score by itself: draws may have binned them.
            for name, value in self._exact(truth, score).items():
                measures[name][0] = value
        bins = self._count_bins(truth, score)
        if self.name == TILE:
            measures["ece"] = calibration_error(bins)
        for name, values in measures.items():
            reason = self._one_class(positives, class_name)
            self._add(name, class_name, values, positives=positives, reason=reason)
        self.scored.append(
            Scored(
                level=self.name,
                class_name=class_name,
                truth=truth,
                score=score,
                band=band,
                bins=bins[0],
            )
        )

    def add_averages(self, classes: int) -> None:
        """Average the measures of single classes over those where they are defined.

        Args:
            classes: How many there are.
        """
        for name, values in self._averaged.items():
            defined = [each for each in values if np.isfinite(each[0])]
            mean = np.mean(defined, axis=0) if defined else np.full(len(values[0]), np.nan)
            left = classes - len(defined)
            self._add(f"macro_{name}", "", mean, positives=None, reason="no class has one")
            if left and defined:
                note = f"{left} of {classes} classes without it are left out"
                self.metrics[-1] = _noted(self.metrics[-1], note)

    def count(
        self, truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int
    ) -> Floats:
        """Count true classes by predicted ones for each draw, (B, classes, classes)."""
        units = self.draws.weights.shape[1]
        cell = (self.unit * classes + truth) * classes + predicted
        counts = np.bincount(cell, minlength=units * classes * classes).reshape(units, -1)
        return (self.draws.weights @ counts.astype(np.float64)).reshape(-1, classes, classes)

    def _sum(self, values: Floats) -> Floats:
        weights = self.draws.weights
        return weights @ sum_by_unit(self.unit, values, weights.shape[1])

    def _add(
        self, name: str, class_name: str, values: Floats, *, positives: int | None, reason: str
    ) -> None:
        """Add a measure by its values: the first is its own, the others those of draws."""
        if class_name and name in _AVERAGED:
            self._averaged.setdefault(name, []).append(values)
        value = float(values[0]) if np.isfinite(values[0]) else None
        low, high, usable, note = None, None, 0, reason
        if value is not None:
            low, high, usable = interval(values[1:], self.draws.options.confidence)
            few = f"only {usable} of {len(values) - 1} draws could be used: no interval"
            note = "" if low is not None else few if len(values) > 1 else self.draws.why_none()
        self.metrics.append(
            Metric(
                level=self.name,
                class_name=class_name,
                metric=name,
                value=value,
                low=low,
                high=high,
                n=len(self.unit),
                positives=positives,
                draws=usable,
                note=note,
            )
        )

    def _one_class(self, positives: int, class_name: str) -> str:
        return f"{'every' if positives else 'no'} {self.what} is {class_name}"

    def _exact(self, truth: NDArray[np.bool_], score: NDArray[np.float32]) -> dict[str, float]:
        from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

        down, up, _ = roc_curve(truth, score, drop_intermediate=False)
        counts = up * truth.sum(), down * (~truth).sum()
        exact = curve_measures(*counts, self.draws.options.specificities)
        values = {name: float(value) for name, value in exact.items()}
        areas = {"auroc": roc_auc_score, "auprc": average_precision_score}
        return values | {name: float(area(truth, score)) for name, area in areas.items()}

    def _along(
        self, truth: NDArray[np.bool_], score: NDArray[np.float32]
    ) -> tuple[dict[str, Floats], Floats | None]:
        options, parts = self.draws.options, []
        shapes: list[Floats] = []
        for hits, alarms in curves(truth, score, self.unit, self.draws.weights):
            parts.append(curve_measures(hits, alarms, options.specificities))
            shapes += _shapes(hits, alarms)
        measures = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if len(shapes) < 2:
            return measures, None
        tail = (1 - options.confidence) / 2
        return measures, np.quantile(shapes[1:], [tail, 1 - tail], axis=0)

    def _count_bins(self, truth: NDArray[np.bool_], score: NDArray[np.float32]) -> Floats:
        """Count by score for each draw: (B, bins, 3)."""
        count, units = self.draws.options.bins, self.draws.weights.shape[1]
        inside = np.minimum((score * np.float32(count)).astype(np.int64), count - 1)
        cell = self.unit * count + inside
        of_each = (np.ones(len(score)), score.astype(np.float64), truth.astype(np.float64))
        sums = [np.bincount(cell, weights=one, minlength=units * count) for one in of_each]
        together = np.stack(sums, axis=1).reshape(units, -1)
        return (self.draws.weights @ together).reshape(-1, count, 3)


def _shapes(hits: Floats, alarms: Floats) -> list[Floats]:
    """Give the sensitivity at each rate of `BAND`, for each draw that has both classes."""
    usable = (hits[:, -1] > 0) & (alarms[:, -1] > 0)
    pairs = zip(hits[usable], alarms[usable], strict=True)
    return [np.interp(BAND, down / down[-1], up / up[-1]) for up, down in pairs]


def _noted(metric: Metric, note: str) -> Metric:
    return replace(metric, note="; ".join(filter(None, (metric.note, note))))
