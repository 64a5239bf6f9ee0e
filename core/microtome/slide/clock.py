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
    _local: threading.local = field(default_factory=threading.local, repr=False)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a ``with`` block to a stage."""
        outer: list[float] = self._local.__dict__.setdefault("inner", [])
        outer.append(0.0)
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            own = took - outer.pop()
            if outer:
                outer[-1] += took
            with self._lock:
                self.seconds[stage] += own


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
