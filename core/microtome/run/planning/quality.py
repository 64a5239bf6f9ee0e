"""Inspectors in a run: what is planned of them, and their part of the pass over the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ConfigError, InspectorError
from microtome.plugin.options import configure
from microtome.plugin.protocols import Inspector
from microtome.plugin.registry import Registry
from microtome.plugin.specs import InspectorSpec
from microtome.run.settings import Choice, RunConfig
from microtome.slide.clock import timed
from microtome.store.identity import describe
from microtome.store.quality import REASON, SIDES, Column, bit_names, give_reasons


@dataclass(frozen=True, eq=False, kw_only=True)
class PlannedInspector:
    """An inspector of a run.

    Attributes:
        name: Its node's key, with which its columns begin.
        spec: Its spec.
        inspector: The object.
        fields: What its scores' identity depends on: no limit.
        limits: By ``<name>_<column>_above`` or ``…_below``.
    """

    name: str
    spec: InspectorSpec
    inspector: Inspector
    fields: dict[str, Any]
    limits: Mapping[str, float]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns as they are stored."""
        return tuple(f"{self.name}_{column}" for column in self.spec.columns)

    def inspect(self, tiles: NDArray[np.uint8], mpp: float | None) -> dict[str, Column]:
        """Inspect tiles and hold the inspector to its spec.

        Args:
            tiles: (n, size, size, 3) uint8.
            mpp: µm per pixel of the tiles.

        Returns:
            (n,) float32 by the names that are stored.

        Raises:
            InspectorError: If a column is missing, of another length or not finite.
        """
        found = self.inspector.inspect(tiles, mpp)
        if set(found) != set(self.spec.columns):
            raise InspectorError(
                f"The inspector {self.name} gave {', '.join(sorted(found)) or 'nothing'}; "
                f"its spec says {', '.join(sorted(self.spec.columns))}."
            )
        return {f"{self.name}_{name}": self._checked(name, found[name], tiles) for name in found}

    def _checked(self, name: str, values: NDArray[Any], tiles: NDArray[np.uint8]) -> Column:
        scores = np.asarray(values, np.float32)
        if scores.shape != (len(tiles),) or not np.isfinite(scores).all():
            raise InspectorError(
                f"The inspector {self.name} gave {name} of shape {scores.shape} for {len(tiles)} "
                "tiles, or values that are not finite."
            )
        return scores


def plan_inspectors(config: RunConfig, registry: Registry) -> tuple[PlannedInspector, ...]:
    """Make a run's inspectors and collect the limits on their columns.

    Raises:
        ConfigError: If two have one name, or there are more limits than reasons.
        PluginError: If a plugin is unknown, broken or misses a library.
    """
    if config.task == "tissue":
        return ()
    planned = tuple(_plan(choice, registry) for choice in config.inspectors)
    names = [inspector.name for inspector in planned]
    for name in {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"Two inspectors are named {name!r}; give one a key of its own.")
    bit_names(limit for inspector in planned for limit in inspector.limits)
    return planned


def _plan(choice: Choice, registry: Registry) -> PlannedInspector:
    spec = registry.find("inspector", choice.plugin).spec
    if not isinstance(spec, InspectorSpec):
        raise ConfigError(f"{choice.plugin!r} is no inspector.")
    options = configure(spec) if choice.config is None else choice.config
    inspector: Inspector = registry.create("inspector", spec.name, options)
    fields = describe(spec, options)
    weights = getattr(inspector, "weights", None)
    if weights is not None:
        fields["weights"] = dict(weights())
    return PlannedInspector(
        name=choice.name,
        spec=spec,
        inspector=inspector,
        fields=fields,
        limits=_limits(choice.name, spec, options),
    )


def _limits(key: str, spec: InspectorSpec, options: Any) -> dict[str, float]:
    names = (f"{column}_{side}" for column in spec.columns for side in SIDES)
    given = {name: getattr(options, name, None) for name in names}
    return {f"{key}_{name}": limit for name, limit in given.items() if limit is not None}


@dataclass(eq=False, kw_only=True)
class Inspection:
    """The inspectors' part of a pass over a slide's pixels. Threads look at rows of their own.

    Attributes:
        inspectors: Those that look.
        drop: Whether tiles with a reason are left out.
        mpp: µm per pixel of the tiles, or None where it is not known.
        scores: (n,) over the grid, by column.
        reason: (n,) over the grid; 0 for what is kept anyway.
    """

    inspectors: Sequence[PlannedInspector] = ()
    drop: bool = False
    mpp: float | None = None
    scores: dict[str, Column] = field(default_factory=dict)
    reason: NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, np.uint16))

    @property
    def columns(self) -> frozenset[str]:
        """Names of the columns that it adds, of `REASON` among them where there are reasons."""
        scores = {column for each in self.inspectors for column in each.columns}
        return frozenset({*scores, REASON} if scores else ())

    @property
    def limits(self) -> dict[str, float]:
        """Those of all inspectors together."""
        return {name: limit for each in self.inspectors for name, limit in each.limits.items()}

    def begin(self, tiles: int) -> None:
        """Make room for a grid's scores."""
        columns = [column for each in self.inspectors for column in each.columns]
        self.scores = {column: np.zeros(tiles, np.float32) for column in columns}
        self.reason = np.zeros(tiles, np.uint16)

    def look(self, rows: NDArray[np.int64], tiles: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Inspect some tiles.

        Args:
            rows: (n,) of the grid.
            tiles: (n, size, size, 3) uint8.

        Returns:
            (n,) bool, True to keep.

        Raises:
            InspectorError: If an inspector breaks its spec.
        """
        if not len(rows) or not self.inspectors:
            return np.ones(len(rows), np.bool_)
        found: dict[str, Column] = {}
        with timed("inspect"):
            for each in self.inspectors:
                found |= each.inspect(tiles, self.mpp)
        for name, scores in found.items():
            self.scores[name][rows] = scores
        if self.drop:
            self.reason[rows] = give_reasons(found, self.limits)
        keep: NDArray[np.bool_] = self.reason[rows] == 0
        return keep
