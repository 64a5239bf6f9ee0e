"""Ends a run by a signal as Ctrl-C does: what is worked on is dropped, what is finished stays."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
    if hasattr(signal, name)
)
"""What asks a process to end: Ctrl-C, SIGTERM, what schedulers send before they preempt a job, and
the end of a terminal."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end by a signal.

    Attributes:
        exit_code: 128 and the signal's number, as shells have it.
    """

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Raise `Terminated` in a block that is asked to end, where signals can be handled.

    What is ignored already (by ``nohup``, or a worker's SIGINT) stays so. A second signal while the
    first is still dealt with is ignored: cleaning up is not interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        raise Terminated(signum)

    heard = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
