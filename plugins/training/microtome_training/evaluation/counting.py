"""Measures as functions of counts, for any number of bootstrap draws at once.

Every function takes counts with any leading axes and gives NaN where a measure is not defined.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def divide(above: Floats, below: Floats) -> Floats:
    """Divide, giving NaN where there is nothing to divide by."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient: Floats = np.where(below > 0, above / below, np.nan)
    return quotient


def threshold_measures(confusion: Floats, number: int) -> dict[str, Floats]:
    """Measure one class against all others.

    Args:
        confusion: (…, C, C) counts, true classes by predicted ones.
        number: Of the class.

    Returns:
        ``sensitivity``, ``specificity``, ``precision`` and ``f1``, NaN where the class does not
        occur, or no other.
    """
    hits = confusion[..., number, number]
    positives = confusion[..., number, :].sum(-1)
    called = confusion[..., :, number].sum(-1)
    negatives = confusion.sum((-2, -1)) - positives
    alarms = called - hits
    occurs = np.where(positives > 0, 1.0, np.nan)
    return {
        "sensitivity": divide(hits, positives),
        "specificity": divide(negatives - alarms, negatives),
        "precision": divide(hits, called) * occurs,
        "f1": divide(2 * hits, positives + called) * occurs,
    }


def overall_measures(confusion: Floats) -> dict[str, Floats]:
    """Measure all classes together.

    Args:
        confusion: (…, C, C) counts, true classes by predicted ones.

    Returns:
        ``accuracy``, and ``balanced_accuracy``: the mean sensitivity of the classes that occur,
        NaN where fewer than two do.
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    total = confusion.sum(-1)
    shares = divide(right, total)
    occurring = (total > 0).sum(-1)
    mean = divide(np.nansum(shares, -1), occurring.astype(np.float64))
    return {
        "accuracy": divide(right.sum(-1), total.sum(-1)),
        "balanced_accuracy": np.where(occurring > 1, mean, np.nan),
    }


def curve_measures(
    hits: Floats, alarms: Floats, specificities: Sequence[float]
) -> dict[str, Floats]:
    """Measure a score by its counts along falling thresholds.

    Args:
        hits: (…, K + 1) true positives, from none to all.
        alarms: (…, K + 1) false positives.
        specificities: At which sensitivity is told.

    Returns:
        ``auroc``, the area by trapezoids; ``auprc``, the average precision, without
        interpolation; and `at_specificity` of each: the highest sensitivity of a threshold with
        at least that specificity.
    """
    positives, negatives = hits[..., -1], alarms[..., -1]
    steps = np.diff(hits, axis=-1)
    means = (alarms[..., 1:] + alarms[..., :-1]) / 2
    # Positives of a step times the negatives below it, by halves where they are tied with it.
    concordant = (steps * (negatives[..., None] - means)).sum(-1)
    called = hits[..., 1:] + alarms[..., 1:]
    precise = np.where(called > 0, hits[..., 1:] / np.maximum(called, 1), 0.0)
    both = np.where(negatives > 0, positives, 0.0)
    measures = {
        "auroc": divide(concordant, positives * negatives),
        "auprc": divide((steps * precise).sum(-1), both),
    }
    for specificity in specificities:
        # Half a count, so that a bound of whole counts holds whatever it was rounded to.
        allowed = (1 - specificity) * negatives[..., None] + 1e-6
        best = np.where(alarms <= allowed, hits, 0.0).max(-1)
        measures[at_specificity(specificity)] = divide(best, both)
    return measures


def at_specificity(specificity: float) -> str:
    """Name the sensitivity at a specificity."""
    return f"sensitivity_at_specificity_{specificity:g}"


def calibration_error(bins: Floats) -> Floats:
    """Give the expected calibration error: how far shares are from probabilities, on average.

    Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.

    Args:
        bins: (…, B, 3) of each bin: tiles, sum of their probabilities, positives.
    """
    gaps = np.abs(bins[..., 1] - bins[..., 2]).sum(-1)
    return divide(gaps, bins[..., 0].sum(-1))
