"""A reporter of a user's own, without which a run goes on if that raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from microtome.plugin.wording import reason

if TYPE_CHECKING:
    from microtome.run.progress import Reporter
    from microtome.store.status import SlideStatus


class GuardedReporter:
    """Passes all it hears on; a reporter that raises is dropped for another, which says so.

    Args:
        reporter: The user's.
        other: Makes the one that goes on.
    """

    def __init__(self, reporter: Reporter, other: Callable[[], Reporter]) -> None:
        self._reporter, self._other = reporter, other
        self._is_dropped = False
        self._slides: int | None = None

    def start(self, slides: int) -> None:
        """Pass it on."""
        self._tell("start", slides)
        self._slides = slides

    def note(self, text: str) -> None:
        """Pass it on."""
        self._tell("note", text)

    def stage(self, slide_id: str, stage: str, tiles: int = 0) -> None:
        """Pass it on."""
        self._tell("stage", slide_id, stage, tiles)

    def advance(self, slide_id: str, tiles: int) -> None:
        """Pass it on."""
        self._tell("advance", slide_id, tiles)

    def finished(self, status: SlideStatus) -> None:
        """Pass it on."""
        self._tell("finished", status)

    def __enter__(self) -> Self:
        """Enter it."""
        self._slides = None
        self._tell("__enter__")
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave it."""
        self._tell("__exit__", *exc)

    def _tell(self, what: str, *arguments: object) -> None:
        try:
            getattr(self._reporter, what)(*arguments)
        except Exception as error:
            if self._is_dropped:  # the other one is ours
                raise
            self._drop(f"{type(self._reporter).__name__} was dropped: {reason(error)}", what)
            if what != "__enter__":
                getattr(self._reporter, what)(*arguments)

    def _drop(self, told: str, during: str) -> None:
        self._reporter, self._is_dropped = self._other(), True
        self._reporter.__enter__()
        if self._slides is not None and during != "start":
            self._reporter.start(self._slides)
        self._reporter.note(f"the reporter {told}")
