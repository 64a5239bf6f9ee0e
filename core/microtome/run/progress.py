"""Tells how a run goes: bars in a terminal, one line a slide anywhere else."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from microtome.store.status import SlideStatus


class Reporter(Protocol):
    """Whatever wants to know how a run goes. A context manager around the slides."""

    def start(self, slides: int) -> None:
        """Hear how many slides there are."""

    def note(self, text: str) -> None:
        """Hear something that the user should know."""

    def stage(self, slide_id: str, stage: str, tiles: int = 0) -> None:
        """Hear that a slide enters a stage, with the number of tiles ahead if it reads any."""

    def advance(self, tiles: int) -> None:
        """Hear that some tiles of the current slide are done."""

    def finished(self, status: SlideStatus) -> None:
        """Hear that a slide is finished, one way or another."""

    def __enter__(self) -> Self:
        """Begin to report."""

    def __exit__(self, *exc: object) -> None:
        """Stop reporting."""


class SilentReporter:
    """Reports nothing."""

    def start(self, slides: int) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def stage(self, slide_id: str, stage: str, tiles: int = 0) -> None:
        """Ignore it."""

    def advance(self, tiles: int) -> None:
        """Ignore it."""

    def finished(self, status: SlideStatus) -> None:
        """Ignore it."""

    def __enter__(self) -> Self:
        """Do nothing."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Do nothing."""


class LineReporter(SilentReporter):
    """One line a slide, for logs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.slides = 0
        self.done = 0
        self.began = time.monotonic()

    def start(self, slides: int) -> None:
        """Remember how many slides there are, and when it was."""
        self.slides, self.began = slides, time.monotonic()

    def note(self, text: str) -> None:
        """Print it."""
        print(f"microtome: {text}", file=self.stream, flush=True)

    def finished(self, status: SlideStatus) -> None:
        """Print the slide, its state and how fast it went."""
        self.done += 1
        left = (time.monotonic() - self.began) / self.done * (self.slides - self.done)
        ahead = f", {duration(left)} left" if self.done < self.slides else ""
        print(
            f"[{self.done}/{self.slides}{ahead}] {describe_slide(status)}",
            file=self.stream,
            flush=True,
        )


class BarReporter(SilentReporter):
    """Two bars in a terminal: the slides, and the tiles of the current slide."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.bars: Bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.slides: TaskID | None = None
        self.tiles: TaskID | None = None

    def start(self, slides: int) -> None:
        """Open the slides' bar."""
        self.slides = self.bars.add_task("slides", total=slides, rate="")

    def note(self, text: str) -> None:
        """Print it above the bars."""
        self.bars.console.print(f"microtome: {text}", markup=False, highlight=False)

    def stage(self, slide_id: str, stage: str, tiles: int = 0) -> None:
        """Replace the tiles' bar."""
        if self.tiles is not None:
            self.bars.remove_task(self.tiles)
        self.tiles = self.bars.add_task(f"{slide_id}: {stage}", total=tiles or None, rate="")

    def advance(self, tiles: int) -> None:
        """Move the tiles' bar."""
        if self.tiles is not None:
            speed = self.bars.tasks[-1].speed
            self.bars.update(
                self.tiles, advance=tiles, rate=f"{speed:.0f} tiles/s" if speed else ""
            )

    def finished(self, status: SlideStatus) -> None:
        """Move the slides' bar and leave a line."""
        if self.tiles is not None:
            self.bars.remove_task(self.tiles)
            self.tiles = None
        self.bars.console.print(describe_slide(status), markup=False, highlight=False)
        if self.slides is not None:
            self.bars.update(self.slides, advance=1)

    def __enter__(self) -> Self:
        """Show the bars."""
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Take the bars away."""
        self.bars.stop()


def make_reporter() -> Reporter:
    """Give bars if stderr is a terminal, lines if not."""
    return BarReporter() if sys.stderr.isatty() else LineReporter()


def describe_slide(status: SlideStatus) -> str:
    """Put a slide's status into one line."""
    if status.state == "failed":
        return f"{status.slide_id}: failed at {status.stage}: {status.message}"
    seconds = sum(status.seconds.values())
    tiles = "" if status.tiles is None else f", {status.tiles} tiles"
    encoding = status.seconds.get("tiles", 0.0)
    rate = f", {status.tiles / encoding:.0f} tiles/s" if status.tiles and encoding > 0 else ""
    why = f" ({'; '.join(status.warnings)})" if status.warnings else ""
    return f"{status.slide_id}: {status.state}{tiles} in {duration(seconds)}{rate}{why}"


def duration(seconds: float) -> str:
    """Write a time for a person: ``0.8 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
