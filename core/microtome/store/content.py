"""What a run stores of a slide, and what is stored of it at one moment."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import StoreError
from microtome.store.arrays import FEATURES, array_names, is_name, row_count, split_key
from microtome.store.attributes import parse_fields
from microtome.store.identity import IDENTITY

if TYPE_CHECKING:
    from microtome.plugin.protocols import FeatureSource, StoredSlide

TOKEN = "microtome_token"
"""Attribute of a slide, of each feature set and array: another value at every publish."""


@dataclass(frozen=True)
class FeatureSet:
    """One encoder's features of a slide, or an array beside them.

    Attributes:
        source: (n, dim), row-aligned with the coordinates; of an array any shape.
        attributes: The encoder's card, provenance and ``identity``.
    """

    source: FeatureSource
    attributes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, kw_only=True)
class SlideContent:
    """What a run stores of a slide.

    Attributes:
        coords: (n, 5) int32 ``x, y, read_w, read_h, level``.
        columns: Per-tile values beside the coordinates, (n,) each.
        attributes: Of the slide; ``identity`` and ``identity_fields`` among them.
        features: By name.
        arrays: By ``group/name``: ``slide_features/titan``, ``tokens/uni_v1``, ….
    """

    coords: NDArray[np.int32]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=lambda: MappingProxyType({}))
    attributes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    features: Mapping[str, FeatureSet] = field(default_factory=lambda: MappingProxyType({}))
    arrays: Mapping[str, FeatureSet] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def sets(self) -> dict[str, FeatureSet]:
        """Feature sets and arrays, all by ``group/name``."""
        return {f"{FEATURES}/{name}": f for name, f in self.features.items()} | {**self.arrays}

    def check(self, final: Path) -> None:
        """See that all fits together.

        Args:
            final: Where it is to be published, for the message.

        Raises:
            StoreError: If it does not.
        """
        self._check_tiles(final)
        for name, features in self.features.items():
            if len(features.source.shape) != 2:
                raise StoreError(_misshapen(final, f"features {name!r}", features, self))
        for key in self.arrays:
            split_key(key)
        counts = {"tiles": len(self.coords)}
        for key, array in self.sets.items():
            group, _, name = key.partition("/")
            shape, kind = array.source.shape, np.dtype(array.source.dtype).kind
            rows = counts["tiles"] if group == FEATURES else row_count(key, counts)
            if not shape or rows not in (None, shape[0]):
                what = f"features {name!r}" if group == FEATURES else f"array {key!r}"
                raise StoreError(_misshapen(final, what, array, self))
            if kind not in "biuf":
                raise StoreError(f"{final}: the array {key!r} is {array.source.dtype}, no numbers.")

    def _check_tiles(self, final: Path) -> None:
        count = len(self.coords)
        if self.coords.shape != (count, 5) or self.coords.dtype != np.int32:
            raise StoreError(
                f"{final}: coords are {self.coords.dtype} of shape {self.coords.shape}, "
                "not int32 of shape (n, 5)."
            )
        for name, column in self.columns.items():
            if column.shape != (count,) or column.dtype.kind not in "biuf":
                raise StoreError(
                    f"{final}: the column {name!r} is {column.dtype} of shape {column.shape}; a "
                    f"column holds {count} numbers or booleans, one a tile."
                )
        for name in (*self.columns, *self.features):
            if not is_name(name):
                raise StoreError(
                    f"{final}: {name!r} cannot be the name of a column or feature set."
                )


def _misshapen(final: Path, what: str, given: FeatureSet, content: SlideContent) -> str:
    return f"{final}: the {what} are of shape {given.source.shape} for {len(content.coords)} tiles."


@dataclass(frozen=True)
class Snapshot:
    """A published slide as it was at one moment.

    Attributes:
        coords: (n, 5).
        columns: (n,) each.
        attributes: Of the slide.
        sets: Attributes of each feature set and array, by ``group/name``.
    """

    coords: NDArray[np.int32]
    columns: Mapping[str, NDArray[Any]]
    attributes: Mapping[str, Any]
    sets: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, stored: StoredSlide) -> Snapshot:
        """Look at an open slide."""
        sets = {f"{FEATURES}/{n}": stored.feature_attributes(n) for n in stored.feature_names()}
        sets |= {key: stored.array_attributes(key) for key in array_names(stored)}
        return cls(stored.coords, dict(stored.columns), stored.attributes, sets)

    @property
    def content(self) -> SlideContent:
        """What is there, without features and arrays."""
        return SlideContent(coords=self.coords, columns=self.columns, attributes=self.attributes)

    @property
    def token(self) -> tuple[str, ...]:
        """Another value after every publish; the first that of the slide itself."""
        sets = (f"{name}={a.get(TOKEN)}" for name, a in sorted(self.sets.items()))
        return (str(self.attributes.get(TOKEN)), *sets)

    def outdated(self, given: Mapping[str, FeatureSet]) -> set[str]:
        """Name what was made of sets that give way to others, and of what was made of these.

        Args:
            given: The new sets, by ``group/name``.
        """
        gone = {
            str(old[IDENTITY])
            for key, old in self.sets.items()
            if key in given and old.get(IDENTITY) not in (None, given[key].attributes.get(IDENTITY))
        }
        outdated: set[str] = set()
        while more := {k for k in self.sets if k not in outdated and self._is_of(k, gone)}:
            outdated |= more
            gone |= {str(self.sets[key][IDENTITY]) for key in more if IDENTITY in self.sets[key]}
        return outdated - given.keys()

    def _is_of(self, key: str, digests: Iterable[str]) -> bool:
        made_of = json.dumps(parse_fields(self.sets[key]), default=str)
        return any(f'"{digest}"' in made_of for digest in digests)
