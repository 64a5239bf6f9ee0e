"""Draws slides again and again, to tell how far a measure may be off.

Tiles of one slide are no independent observations, so what is drawn are slides, or patients. A
draw is a weight for each of them: how often it was drawn. Whatever is a sum over tiles is then a
product of the weights with each slide's sums, and no tile is copied.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse  # type: ignore[import-untyped]

Floats = NDArray[np.float64]

MOST_BINS = 4096
"""Scores up to so many different ones are taken as they are. More of them are binned so that a bin
holds at most 1 in 2048 of the positives and of the negatives: intervals of sensitivity and
specificity are then at most 0.0005 off, those of areas under curves far less."""

_DRAWS = 250  # that are held at once, at 32 MiB for each of some arrays
_LEAST_USABLE = 0.5


def strata_by_class(present: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Sort what is drawn by the rarest class that occurs in it.

    Each draw has as many of each stratum as there are, so the rarest class never vanishes.

    Args:
        present: (U, C) which classes occur in each slide or patient.

    Returns:
        (U,) a number for each stratum.
    """
    occurrences = np.where(present, present.sum(0), np.iinfo(np.int64).max)
    stratum: NDArray[np.int64] = occurrences.argmin(1)
    return stratum


def draw_units(strata: NDArray[np.int64], count: int, *, seed: int) -> Floats:
    """Draw slides or patients with replacement, within their strata.

    Args:
        strata: (U,) the stratum of each, in an order that no run changes.
        count: Draws.
        seed: Of the draws.

    Returns:
        (count, U) how often each was drawn. Empty, (0, U), where nothing could come out other
        than it is, for every stratum has one unit.
    """
    rng = np.random.default_rng(seed)
    strata_units = [np.flatnonzero(strata == each) for each in np.unique(strata)]
    if all(len(units) < 2 for units in strata_units):
        count = 0
    weights = np.zeros((count, len(strata)))
    for units in strata_units:
        weights[:, units] = rng.multinomial(len(units), [1 / len(units)] * len(units), size=count)
    return weights


def sum_by_unit(unit: NDArray[np.integer], values: Floats, count: int) -> Floats:
    """Sum tiles' values over each slide or patient.

    Args:
        unit: (n,) whose each tile is.
        values: (n, k).
        count: How many slides or patients there are.

    Returns:
        (count, k).
    """
    sums = [np.bincount(unit, weights=column, minlength=count) for column in values.T]
    return np.stack(sums, axis=1)


def interval(values: Floats, confidence: float) -> tuple[float | None, float | None, int]:
    """Give the percentile interval of a measure's draws.

    Args:
        values: (B,), NaN where a draw has no such measure.
        confidence: Share of the draws that it holds.

    Returns:
        Both ends, None where fewer than half of the draws, or none, are usable; and how many are.
    """
    usable = values[np.isfinite(values)]
    if not len(usable) or len(usable) < _LEAST_USABLE * len(values):
        return None, None, len(usable)
    tail = (1 - confidence) / 2
    low, high = np.quantile(usable, [tail, 1 - tail])
    return float(low), float(high), len(usable)


def curves(
    truth: NDArray[np.bool_],
    score: NDArray[np.float32],
    unit: NDArray[np.integer],
    weights: Floats,
) -> Iterator[tuple[Floats, Floats]]:
    """Count true and false positives along all thresholds, for each draw.

    Args:
        truth: (n,) which are positive.
        score: (n,).
        unit: (n,) index of the slide or patient of each, below U.
        weights: (B, U).

    Yields:
        For some draws at a time: (b, K + 1) true and false positives at K falling thresholds,
        beginning with none.
    """
    bins, count = _bin(truth, score)
    bins = count - 1 - bins  # the highest score first
    shape = (count, weights.shape[1])
    sums = [
        sparse.csr_array((np.ones(part.sum()), (bins[part], unit[part])), shape=shape)
        for part in (truth, ~truth)
    ]
    for first in range(0, len(weights), _DRAWS):
        drawn = weights[first : first + _DRAWS].T
        counts = [np.cumsum(each @ drawn, axis=0).T for each in sums]
        along = [np.pad(each, ((0, 0), (1, 0))) for each in counts]
        yield along[0], along[1]


def _bin(truth: NDArray[np.bool_], score: NDArray[np.float32]) -> tuple[NDArray[np.int64], int]:
    """Number the scores, rising; several of one number only where there are too many."""
    edges = np.unique(score)
    if len(edges) > MOST_BINS:
        shares = np.linspace(0, 1, MOST_BINS // 2 + 1)
        kinds = [each for each in (score[truth], score[~truth]) if len(each)]
        edges = np.unique([np.quantile(each, shares, method="lower") for each in kinds])
    bins = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, None)
    return bins.astype(np.int64), len(edges)
