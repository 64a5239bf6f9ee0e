"""Poolings of tiles without weights: mean, maximum and statistics, of any feature set, in numpy.

Sums are taken in float64 in the order of the bag's rows, which are sorted by (y, x), and in blocks
of one size: so the same tiles give the same bits, whatever engine and how many workers made them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import EncoderError
from microtome.plugin.protocols import SlideOutput
from microtome.slide.bags import TileBag

Rows = NDArray[np.floating[Any]]
Vector = NDArray[np.float64]

ROWS = 4096
"""How many rows are made float64 at once."""


class MeanPooling:
    """The mean of the tiles' features: (dim,) float32.

    Args:
        config: Nothing to configure.
    """

    def __init__(self, config: object | None = None) -> None:
        self.config = config

    def load(self, device: str, precision: str) -> None:
        """Do nothing: there are no weights, and it runs on the CPU."""

    def weights(self) -> Mapping[str, str]:
        """Say that there are no weights."""
        return {"weights": "none"}

    def memory(self, tiles: int, extent: tuple[int, int]) -> int:
        """Estimate nothing beyond the features, which the run counts: blocks become float64."""
        return 0

    def encode(self, bag: TileBag) -> SlideOutput:
        """Pool a slide.

        Raises:
            EncoderError: If the slide has no tiles.
        """
        if not len(bag):
            raise EncoderError(f"{bag.slide_id} has no tiles, so there is nothing to pool.")
        return SlideOutput(embedding=self.pool(bag.only).astype(np.float32))

    def pool(self, features: Rows) -> Vector:
        """Pool (n, dim) features into one vector of float64."""
        return mean(features)


class MaxPooling(MeanPooling):
    """The largest value of each of the tiles' features: (dim,) float32."""

    def pool(self, features: Rows) -> Vector:
        """Pool (n, dim) features into one vector of float64."""
        return largest(features)


class StatisticsPooling(MeanPooling):
    """Mean, standard deviation and maximum of the tiles' features, one after the other.

    (3 · dim,) float32: all means, then all standard deviations, then all maxima. The deviation is
    that of the tiles themselves (divided by n), so it is 0 for a slide of one tile.
    """

    def pool(self, features: Rows) -> Vector:
        """Pool (n, dim) features into one vector of float64."""
        centre = mean(features)
        squares = total(np.square(block - centre) for block in blocks(features))
        return np.concatenate([centre, np.sqrt(squares / len(features)), largest(features)])


def mean(features: Rows) -> Vector:
    """Average (n, dim) features over n in float64."""
    return total(blocks(features)) / len(features)


def largest(features: Rows) -> Vector:
    """Take the maximum of (n, dim) features over n, as float64."""
    return np.asarray(features.max(axis=0), np.float64)


def blocks(features: Rows) -> Iterator[Vector]:
    """Give the rows of (n, dim) features from the top, as float64, `ROWS` at a time."""
    for start in range(0, len(features), ROWS):
        yield np.ascontiguousarray(features[start : start + ROWS], np.float64)


def total(rows: Iterator[Vector]) -> Vector:
    """Add (n, dim) blocks up over all n."""
    summed: Vector = next(rows).sum(axis=0)
    for block in rows:
        summed += block.sum(axis=0)
    return summed
