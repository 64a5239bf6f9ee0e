"""Draw tiles by seeded rules: which, no order and no number of workers can change.

Each rule ranks tiles by a hash of the seed, the rule and the tile's key, so that a rule within a
slide gives the same tiles whatever other slides there are. The rules hash apart from each other: a
cap of one would otherwise favour, in the next, the tiles of slides that have many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from microtome_training.options.sample import SampleConfig
    from microtome_training.tiles import Tiles

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


def draw(tiles: Tiles, config: SampleConfig, hard: Mask) -> Rows:
    """Draw tiles: cap slides, then patients, then classes, then balance what is left.

    Args:
        tiles: All there are.
        config: The rules.
        hard: (n,) those to take before others.

    Returns:
        (m,) rows of ``tiles``, ascending.
    """
    drawing = _Drawing(tiles, config, hard)
    rows = np.flatnonzero((tiles.label >= 0) & (tiles.fraction >= np.float32(config.min_fraction)))
    if config.per_slide is not None:
        rows = drawing.cap(rows, config.per_slide, "slide", tiles.slide)
    if config.per_patient is not None:
        rows = drawing.cap(rows, config.per_patient, "patient", number_patients(tiles)[tiles.slide])
    if config.per_class is not None:
        rows = drawing.cap(rows, config.per_class, "class", np.zeros(len(tiles), np.int64))
    if config.negatives_per_positive is not None:
        is_positive = tiles.label[rows] > 0
        positives, negatives = rows[is_positive], rows[~is_positive]
        most = int(config.negatives_per_positive * len(positives))
        rows = np.sort(np.concatenate([positives, drawing.pick(negatives, most, "ratio")]))
    return rows


def number_patients(tiles: Tiles) -> NDArray[np.int64]:
    """Number the patients of the slides: (slides,). A slide of nobody's is a patient of its own."""
    names = [(s.patient_id, "" if s.patient_id else s.slide_id) for s in tiles.slides]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], np.int64)


def ranks(seed: int, rule: str, keys: Iterable[str]) -> NDArray[np.uint64]:
    """Hash keys: (n,), each evenly over all numbers, and apart from its rank by another rule."""
    start = hashlib.blake2b(f"{seed}\0{rule}\0".encode(), digest_size=8)
    found = []
    for key in keys:
        one = start.copy()
        one.update(key.encode("utf-8", "surrogateescape"))
        found.append(one.digest())
    return np.frombuffer(b"".join(found), "<u8").astype(np.uint64)


class _Drawing:
    def __init__(self, tiles: Tiles, config: SampleConfig, hard: Mask) -> None:
        self._label, self._hard = tiles.label, hard
        self._keys: Sequence[str] = tiles.keys()
        self._seed, self._share = config.seed, config.hard_share

    def cap(self, rows: Rows, most: int, rule: str, group: NDArray[Any]) -> Rows:
        """Keep at most so many tiles of each class in each group of (n,) numbers."""
        kept = []
        by_group = rows[np.lexsort((self._label[rows], group[rows]))]
        pairs = np.stack([group[by_group], self._label[by_group]])
        ends = np.flatnonzero(np.diff(pairs, axis=1).any(axis=0)) + 1
        for part in np.split(by_group, ends):
            kept.append(self.pick(part, most, rule))
        return np.sort(np.concatenate(kept))

    def pick(self, rows: Rows, most: int, rule: str) -> Rows:
        """Take so many tiles by rank, those of the list first up to their share."""
        if len(rows) <= most:
            return rows
        rank = ranks(self._seed, rule, (self._keys[row] for row in rows.tolist()))
        ranked = rows[np.argsort(rank, kind="stable")]
        hard, others = ranked[self._hard[ranked]], ranked[~self._hard[ranked]]
        first = int(self._share * most)
        return np.concatenate([hard[:first], others, hard[first:]])[:most]
