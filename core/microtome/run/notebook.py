"""Tells how a run goes in a notebook: one display, which is brought up to date."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any, Self

from microtome.errors import one_line
from microtome.run.progress import WatchingReporter, describe_slide
from microtome.store.status import FAILED, SlideStatus

_PAUSE = 0.2
"""Seconds between two updates: more a browser does not show."""

_LATEST = 5
"""Finished slides that are shown; of those that failed, all are."""

_WIDTH = 30
"""Characters of a bar."""


def in_notebook() -> bool:
    """Whether this runs in a kernel, whose output is a page."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


class NotebookReporter(WatchingReporter):
    """A display with the slides' bar, what is in work, and what was told.

    It needs no widgets, so it stays in a notebook that is saved.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handle: Any = None
        self._told: list[str] = []
        self._latest: deque[str] = deque(maxlen=_LATEST)
        self._shown = 0.0

    def start(self, slides: int) -> None:
        """Draw the bar."""
        super().start(slides)
        self._show()

    def note(self, text: str) -> None:
        """Write it above the bar."""
        self._told.append(one_line(text))
        self._show()

    def stage(self, slide_id: str, stage: str, tiles: int = 0) -> None:
        """Bring the slide's line up to date."""
        super().stage(slide_id, stage, tiles)
        self._show(wait=True)

    def advance(self, slide_id: str, tiles: int) -> None:
        """Bring the slide's line up to date."""
        super().advance(slide_id, tiles)
        self._show(wait=True)

    def finished(self, status: SlideStatus) -> None:
        """Move the bar and say what became of the slide."""
        super().finished(status)
        lines = self._told if status.state in FAILED else self._latest
        lines.append(describe_slide(status))
        self._show()

    @property
    def text(self) -> str:
        """What is shown."""
        share = self.done / self.slides if self.slides else 0.0
        bar = ("█" * round(share * _WIDTH)).ljust(_WIDTH, "░")
        rates = (self.pace.told("tiles") if self.working else "", self.left)
        total = " ".join(filter(None, (f"slides {bar} {self.done}/{self.slides}", *rates)))
        working = [one_line(f"{name}: {slide}") for name, slide in self.working.items()]
        return "\n".join([*self._told, *self._latest, total, *working])

    def _show(self, *, wait: bool = False) -> None:
        now = time.monotonic()
        if wait and now - self._shown < _PAUSE:
            return
        self._shown = now
        if self._handle is not None:
            self._handle.update(_plain(self.text), raw=True)

    def __enter__(self) -> Self:
        """Open the display; a second run goes on in the same."""
        from IPython.display import display

        show: Any = display
        if self._handle is None:
            self._handle = show(_plain(self.text), raw=True, display_id=True)
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave it as it ended."""
        self._show()


def _plain(text: str) -> dict[str, str]:
    return {"text/plain": text}
