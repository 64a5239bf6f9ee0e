"""Figures, what they are held against, and how they are shown and kept."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from microtome.run.planning.budget import cpu_budget
from microtome.run.slides.attributes import provenance

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Bar:
    """How much is expected.

    Attributes:
        limit: Of the ratio if the figure has one, else of the figure itself.
        at_most: Whether less is better.
    """

    limit: float
    at_most: bool = False

    def margin(self, figure: float) -> float:
        """Give by how much a figure is on the right side; negative where it misses."""
        return self.limit - figure if self.at_most else figure - self.limit

    def verdict(self, figure: float) -> str:
        """Say whether a figure is good enough, and by how much it is not."""
        margin = self.margin(figure)
        sign = "≤" if self.at_most else "≥"
        met = "met" if margin >= 0 else f"missed by {-margin:.{_digits(-margin)}f}"
        return f"{sign} {self.limit:g}  {met}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure.

    Attributes:
        group: The group of measurements that it belongs to.
        name: What was measured.
        value: How much.
        unit: Of what.
        ratio: The value as a multiple of what it is held against, or None.
        against: What that is.
        bar: How much is expected, or None.
        details: What else the measurement said, for the history.
    """

    group: str
    name: str
    value: float
    unit: str
    ratio: float | None = None
    against: str = ""
    bar: Bar | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def missed(self) -> bool:
        """Whether there is a bar, and this figure is on its wrong side."""
        return self.bar is not None and self.bar.margin(self._judged) < 0

    @property
    def _judged(self) -> float:
        return self.value if self.ratio is None else self.ratio

    def __str__(self) -> str:
        """Write a row of the table."""
        value = f"{self.value:,.{_digits(self.value)}f}"
        ratio = "" if self.ratio is None else f"{self.ratio:.{_digits(self.ratio)}f} {self.against}"
        verdict = "" if self.bar is None else self.bar.verdict(self._judged)
        return f"{self.name:<50}{value:>8} {self.unit:<8} {ratio:<30}{verdict}".rstrip()


def _digits(value: float) -> int:
    """Give the decimals that leave about three figures."""
    return 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0


def append_record(path: Path, results: Sequence[Result], slides: Mapping[str, str]) -> None:
    """Append the figures, with what they depend on, to a history: one JSON object a line.

    Args:
        path: The file; made if it is not there.
        results: The figures.
        slides: What was measured on, by name.
    """
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpus": cpu_budget(),
        "processor": _processor(),
        "libraries": dict(provenance()),
        "slides": dict(slides),
        "results": [asdict(result) | {"missed": result.missed} for result in results],
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _commit() -> str:
    """Name the commit, marked ``-dirty`` where files differ from it; empty without git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")
