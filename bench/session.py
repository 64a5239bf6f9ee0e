"""What every group of measurements is given, and how rates are held against a base."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from bench.encoders import TILE
from bench.process import Finished, run_step
from bench.results import Bar, Result
from bench.slides import Slides

GRID: Mapping[str, Any] = {"size": TILE, "magnification": 20}
"""The tiles of most measurements: 256 px at 20x."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """One call of the benchmarks.

    Attributes:
        slides: Gives slides by name.
        repeats: How often a step repeats what it times; the shortest time counts.
        readers: Readers that are measured beside ``auto``.
        peers: Python interpreters of other tools' environments, by tool.
    """

    slides: Slides
    repeats: int = 5
    readers: Sequence[str] = ()
    peers: Mapping[str, str] = field(default_factory=dict)

    def slide(self, name: str) -> str:
        """Give a slide's path, made first where nobody gave it."""
        return str(self.slides.path(name).resolve())

    def take(self, measure: Measure) -> Rate:
        """Take a measurement whose step gives tiles and seconds."""
        arguments = {"repeats": self.repeats, **measure.arguments}
        return Rate.of(run_step(measure.step, **arguments))


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A step to take, and how it is told of.

    Attributes:
        name: In the table; ``{reader}`` stands for the reader that was used.
        step: Of `bench.steps`.
        arguments: The step's.
        bar: How much of the base is expected, or None.
        unit: Of its rate.
    """

    name: str
    step: str
    arguments: Mapping[str, Any]
    bar: Bar | None = None
    unit: str = "tiles/s"


@dataclass(frozen=True)
class Rate:
    """Tiles in a time.

    Attributes:
        tiles: How many.
        seconds: In how long.
        found: What else the step said.
    """

    tiles: int
    seconds: float
    found: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, finished: Finished) -> Rate:
        """Take the rate out of what a step said."""
        found = dict(finished.found)
        return cls(found["tiles"], found["seconds"], found)

    @property
    def per_second(self) -> float:
        """Tiles a second."""
        return self.tiles / self.seconds


def against(
    session: Session, group: str, base: Measure, measures: Sequence[Measure]
) -> Iterator[Result]:
    """Measure rates as shares of a base.

    A machine drifts, so the base is measured before and after each of them, and the mean of the
    two is what a rate is held against.

    Args:
        session: The call.
        group: The rows' group.
        base: What they are held against.
        measures: What is held against it.
    """
    bases = [session.take(base)]
    rows = []
    for measure in measures:
        rate = session.take(measure)
        bases.append(session.take(base))
        around = mean(found.per_second for found in bases[-2:])
        rows.append(
            Result(
                group=group,
                name=measure.name.format(**rate.found),
                value=rate.per_second,
                unit=measure.unit,
                ratio=rate.per_second / around,
                against=f"of {base.name.partition(',')[0]}",
                bar=measure.bar,
                details=rate.found,
            )
        )
    rates = [found.per_second for found in bases]
    details = {**bases[0].found, "rates": rates}
    yield Result(group=group, name=base.name, value=mean(rates), unit=base.unit, details=details)
    yield from rows


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Make a folder for one run's output, removed when the block ends."""
    return tempfile.TemporaryDirectory(prefix="microtome-bench-")
