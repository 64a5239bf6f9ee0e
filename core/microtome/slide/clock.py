"""Where the time of a run goes: stages that any thread, also a plugin's, may time."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

STAGES = ("read", "decode", "resize", "normalise", "encode", "write", "wait")
"""What the pass over a slide's pixels consists of; a plugin may time others."""

_NOTHING: AbstractContextManager[None] = nullcontext()


@dataclass(eq=False)
class Profile:
    """Seconds of all threads together, by stage.

    A stage inside of another one is taken off the outer one, so stages add up to the time that
    threads spent in any of them.

    Attributes:
        seconds: By stage.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _local: _Inner = field(default_factory=lambda: _Inner(), repr=False)

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Add the time of a ``with`` block to a stage."""
        return _Timed(self, stage)


class _Inner(threading.local):
    """The time of the stages inside of those that a thread is in."""

    def __init__(self) -> None:
        self.stack: list[float] = []


class _Timed(AbstractContextManager[None]):
    """A ``with`` block that is timed: a class, since every tile has several."""

    __slots__ = ("_began", "_profile", "_stack", "_stage")

    def __init__(self, profile: Profile, stage: str) -> None:
        self._profile, self._stage = profile, stage

    def __enter__(self) -> None:
        self._stack = self._profile._local.stack
        self._stack.append(0.0)
        self._began = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        took = time.perf_counter() - self._began
        own = took - self._stack.pop()
        if self._stack:
            self._stack[-1] += took
        with self._profile._lock:
            self._profile.seconds[self._stage] += own


_active: Profile | None = None


def timed(stage: str) -> AbstractContextManager[None]:
    """Time a ``with`` block, if anybody asked for a profile; costs nothing otherwise.

    Args:
        stage: One of `STAGES`, or a name of your own.
    """
    return _NOTHING if _active is None else _active.timed(stage)


@contextmanager
def profiling() -> Iterator[Profile]:
    """Let every `timed` block of the process, in any thread, count until the block ends."""
    global _active
    before, _active = _active, Profile()
    try:
        yield _active
    finally:
        _active = before


@contextmanager
def accounted(seconds: dict[str, float]) -> Iterator[None]:
    """Keep account of a block by itself. A profile that was asked for counts it, too.

    Args:
        seconds: Filled by stage when the block ends, however it does.
    """
    outer = _active
    with profiling() as profile:
        try:
            yield
        finally:
            seconds.update(profile.seconds)
            if outer is not None:
                for stage, value in profile.seconds.items():
                    outer.seconds[stage] += value
