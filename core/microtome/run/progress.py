"""Tells how a run goes: bars in a terminal, one line a slide anywhere else."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from microtome.errors import one_line
from microtome.store.status import FAILED

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from microtome.store.status import SlideStatus


FETCH = "fetch"
"""The stage in which a slide is copied from where it lies: it advances by MiB, not by tiles."""

_LATELY = 30.0
"""Seconds over which rates are taken: a batch more or less does not show, a stall does."""

_SILENCE = 60.0
"""Seconds after which a line says that slides are still in work."""


class Reporter(Protocol):
    """Whatever wants to know how a run goes. A context manager around the slides."""

    def start(self, slides: int) -> None:
        """Hear how many slides there are."""

    def note(self, text: str) -> None:
        """Hear something that the user should know."""

    def stage(self, slide_id: str, stage: str, tiles: int = 0) -> None:
        """Hear that a slide enters a stage, with the number of tiles ahead if it reads any."""

    def advance(self, slide_id: str, tiles: int) -> None:
        """Hear that some tiles of a slide are done."""

    def finished(self, status: SlideStatus) -> None:
        """Hear that a slide is finished, one way or another."""

    def __enter__(self) -> Self:
        """Begin to report."""

    def __exit__(self, *exc: object) -> None:
        """Stop reporting."""


_ACTIVE: ContextVar[Reporter | None] = ContextVar("microtome_reporter", default=None)


class SilentReporter:
    """Reports nothing."""

    def start(self, slides: int) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def stage(self, slide_id: str, stage: str, tiles: int = 0) -> None:
        """Ignore it."""

    def advance(self, slide_id: str, tiles: int) -> None:
        """Ignore it."""

    def finished(self, status: SlideStatus) -> None:
        """Ignore it."""

    def __enter__(self) -> Self:
        """Do nothing."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Do nothing."""


class TeeReporter:
    """Passes all it hears on to several reporters, each a context of its own.

    Args:
        reporters: In the order in which they hear.
    """

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters
        self._contexts = ExitStack()

    def start(self, slides: int) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.start(slides)

    def note(self, text: str) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.note(text)

    def stage(self, slide_id: str, stage: str, tiles: int = 0) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.stage(slide_id, stage, tiles)

    def advance(self, slide_id: str, tiles: int) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.advance(slide_id, tiles)

    def finished(self, status: SlideStatus) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.finished(status)

    def __enter__(self) -> Self:
        """Enter all of them."""
        for reporter in self._reporters:
            self._contexts.enter_context(reporter)
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave all of them."""
        self._contexts.close()


class _Pace:
    """How many tiles a second there were lately."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lately: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, count: int) -> None:
        """Count some more."""
        self._lately.append((time.monotonic(), count))
        self._sum += count

    def told(self, unit: str) -> str:
        """Give the rate as text; empty while nothing can be said."""
        now = time.monotonic()
        while self._lately and self._lately[0][0] < now - _LATELY:
            self._sum -= self._lately.popleft()[1]
        took = min(_LATELY, now - self._began)
        return f"{self._sum / took:.0f} {unit}/s" if self._sum and took > 0 else ""


class _Slide:
    """A slide in work, by what was heard of it."""

    def __init__(self) -> None:
        self.stage = ""
        self.total = self.done = 0
        self.pace = _Pace()
        self.bar: TaskID | None = None

    @property
    def unit(self) -> str:
        """What it advances by."""
        return "MiB" if self.stage == FETCH else "tiles"

    def enter(self, stage: str, total: int) -> None:
        """Begin a stage."""
        self.stage, self.total, self.done, self.pace = stage, total, 0, _Pace()

    def advance(self, count: int) -> None:
        """Go on in it."""
        self.done += count
        self.pace.add(count)

    def __str__(self) -> str:
        """Say how far it is."""
        return f"{self.stage} {self.done}/{self.total}" if self.total else self.stage


class WatchingReporter(SilentReporter):
    """Keeps account of all slides in work, whoever works on them.

    Attributes:
        slides: How many there are.
        done: How many are finished.
        working: Those in work, by their ids.
        pace: Of the tiles of all slides.
    """

    def __init__(self) -> None:
        self.slides = self.done = 0
        self.working: dict[str, _Slide] = {}
        self.pace = _Pace()
        self._began = time.monotonic()

    def start(self, slides: int) -> None:
        """Remember how many slides there are, and when it was."""
        self.slides, self.done, self._began, self.pace = slides, 0, time.monotonic(), _Pace()

    def stage(self, slide_id: str, stage: str, tiles: int = 0) -> None:
        """Note it."""
        self.working.setdefault(slide_id, _Slide()).enter(stage, tiles)

    def advance(self, slide_id: str, tiles: int) -> None:
        """Count them."""
        slide = self.working.setdefault(slide_id, _Slide())
        slide.advance(tiles)
        if slide.stage != FETCH:
            self.pace.add(tiles)

    def finished(self, status: SlideStatus) -> None:
        """Count it."""
        self.done += 1
        self.working.pop(status.slide_id, None)

    @property
    def left(self) -> str:
        """Say how long the other slides will take; empty while nothing can be said."""
        if not 0 < self.done < self.slides:
            return ""
        took = time.monotonic() - self._began
        return f"{duration(took / self.done * (self.slides - self.done))} left"


class LineReporter(WatchingReporter):
    """One line a slide, for logs and notebooks; one a minute while no slide is finished."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self.stream = stream or sys.stderr
        self._printed = time.monotonic()

    def note(self, text: str) -> None:
        """Print it."""
        self._print(f"microtome: {text}")

    def advance(self, slide_id: str, tiles: int) -> None:
        """Print how far the slides in work are, if nothing was printed for long."""
        super().advance(slide_id, tiles)
        if time.monotonic() - self._printed >= _SILENCE:
            told = ", ".join(f"{name} ({slide})" for name, slide in self.working.items())
            self._print(f"{self._counted()} in work: {told}")

    def finished(self, status: SlideStatus) -> None:
        """Print the slide, its state and how fast it went."""
        super().finished(status)
        self._print(f"{self._counted()} {describe_slide(status)}")

    def _counted(self) -> str:
        counted = f"{self.done}/{self.slides}"
        # The slide's own line has its rate; of several at once only this one tells.
        pace = self.pace.told("tiles") if self.working else ""
        return f"[{', '.join(filter(None, (counted, self.left, pace)))}]"

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        print(text, file=self.stream, flush=True)


class BarReporter(WatchingReporter):
    """Bars in a terminal: the slides, and below them each slide in work with its tiles."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self.bars: Bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=Console(stderr=True),
        )
        self._total: TaskID | None = None

    def start(self, slides: int) -> None:
        """Open the slides' bar."""
        super().start(slides)
        self._total = self.bars.add_task("slides", total=slides, rate="", left="")

    def note(self, text: str) -> None:
        """Print it above the bars."""
        self.bars.console.print(f"microtome: {text}", markup=False, highlight=False)

    def stage(self, slide_id: str, stage: str, tiles: int = 0) -> None:
        """Begin the slide's bar anew."""
        super().stage(slide_id, stage, tiles)
        slide = self.working[slide_id]
        if slide.bar is not None:
            self.bars.remove_task(slide.bar)
        told = one_line(f"{slide_id}: {stage}")
        slide.bar = self.bars.add_task(told, total=tiles or None, rate="", left="")

    def advance(self, slide_id: str, tiles: int) -> None:
        """Move the slide's bar."""
        super().advance(slide_id, tiles)
        slide = self.working[slide_id]
        if slide.bar is not None:
            self.bars.update(slide.bar, completed=slide.done, rate=slide.pace.told(slide.unit))
        self._move_total()

    def finished(self, status: SlideStatus) -> None:
        """Move the slides' bar, take the slide's away and leave a line."""
        slide = self.working.get(status.slide_id)
        if slide is not None and slide.bar is not None:
            self.bars.remove_task(slide.bar)
        super().finished(status)
        self.bars.console.print(describe_slide(status), markup=False, highlight=False)
        self._move_total()

    def _move_total(self) -> None:
        if self._total is not None:
            rate = self.pace.told("tiles")
            self.bars.update(self._total, completed=self.done, rate=rate, left=self.left)

    def __enter__(self) -> Self:
        """Show the bars."""
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Take the bars away."""
        self.bars.stop()


@contextmanager
def activate_progress_reporter(reporter: Reporter) -> Iterator[Reporter]:
    """Have every run within the block report to a reporter, unless it is given one of its own.

    ::

        with microtome.activate_progress_reporter(microtome.SilentReporter()):
            model.embed_slides(slides)

    Args:
        reporter: Entered and left as a context manager by each run.
    """
    before = _ACTIVE.set(reporter)
    try:
        yield reporter
    finally:
        _ACTIVE.reset(before)


def make_reporter(own: Reporter | None = None) -> Reporter:
    """Give a user's reporter; else a display in a notebook, bars in a terminal, or lines.

    Args:
        own: The one to give; that of `activate_progress_reporter` if None. Should it raise, the
            run goes on without it.
    """
    from microtome.run.guarding import GuardedReporter

    own = _ACTIVE.get() if own is None else own
    return _default() if own is None else GuardedReporter(own, _default)


def _default() -> Reporter:
    from microtome.run.notebook import NotebookReporter, in_notebook

    if in_notebook():
        return NotebookReporter()
    return BarReporter() if sys.stderr.isatty() else LineReporter()


def describe_slide(status: SlideStatus) -> str:
    """Put a slide's status into one line."""
    if status.state in FAILED:
        return one_line(f"{status.slide_id}: {status.state} at {status.stage}: {status.message}")
    seconds = sum(status.seconds.values())
    tiles = "" if status.tiles is None else f", {status.tiles} tiles"
    rate = f", {status.tiles_per_second:.0f} tiles/s" if status.tiles_per_second else ""
    why = f" ({'; '.join(status.warnings)})" if status.warnings else ""
    return one_line(f"{status.slide_id}: {status.state}{tiles} in {duration(seconds)}{rate}{why}")


def duration(seconds: float) -> str:
    """Write a time for a person: ``0.8 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
