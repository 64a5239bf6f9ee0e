"""Has files examined in a process that may die, hang or swell."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from bench.hostile.examine import MARK
from bench.process import session_members
from bench.results import ROOT

LIMIT_S = 20.0
LIMIT_MB = 1024.0

FAULTS = ("unclear", "leaked", "died", "hung", "swollen", "differs")
"""What no file may do."""

_LOOK = 0.02
_PATIENCE = 3
"""Times the memory at which a process is ended: until then it is seen how much it takes."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one file ended with one reader.

    Attributes:
        ended: ``read``, ``refused``, ``equal``, or one of `FAULTS`.
        sentence: What it said.
        seconds: It took.
        peak_mb: Memory above what the process had before, in 10⁶ bytes.
        noise: Lines that libraries wrote to standard error.
    """

    ended: str
    sentence: str
    seconds: float
    peak_mb: float
    noise: tuple[str, ...] = ()

    @property
    def is_fault(self) -> bool:
        """Whether it should have ended otherwise."""
        return self.ended in FAULTS


class Examiner:
    """A process that examines one file after the other, replaced when it is lost.

    Args:
        warm_up: A good file, read first: libraries that are loaded then count nowhere.
    """

    def __init__(self, warm_up: Mapping[str, Any] | None = None) -> None:
        self._warm_up = warm_up
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed on leaving
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._errors.close()

    def ask(self, **arguments: Any) -> Outcome:
        """Have one thing done.

        Args:
            **arguments: Of `bench.hostile.examine.examine` or ``compare``.
        """
        noise_from = self._errors.seek(0, os.SEEK_END)
        outcome = self._watch(arguments)
        self._errors.seek(noise_from)
        noise = self._errors.read().decode("utf-8", "replace").splitlines()
        return Outcome(**{**outcome, "noise": tuple(noise)})

    def _watch(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        began, before = time.monotonic(), self._memory()
        peak = 0.0
        self._send(arguments)
        while True:
            with suppress(queue.Empty):
                line = self._lines.get(timeout=_LOOK)
                if line is None:
                    return self._lost("died", _cause(self._process.wait()), began, peak)
                found = json.loads(line.removeprefix(MARK))
                found["peak_mb"] = max(found["peak_mb"], peak)
                return _judged(found)
            peak = max(peak, self._memory() - before)
            if peak > _PATIENCE * LIMIT_MB:
                return self._lost("swollen", "it was ended", began, peak)
            if time.monotonic() - began > LIMIT_S:
                return self._lost("hung", "it was ended", began, peak)

    def _lost(self, ended: str, sentence: str, began: float, peak: float) -> dict[str, Any]:
        seconds = time.monotonic() - began
        self._end()
        self._start()
        return {"ended": ended, "sentence": sentence, "seconds": seconds, "peak_mb": peak}

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.hostile.examine"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        pump = threading.Thread(target=_pump, args=(self._process.stdout, self._lines), daemon=True)
        pump.start()
        if self._warm_up is not None:
            self._send(self._warm_up)
            self._lines.get(timeout=_PATIENCE * LIMIT_S)

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()

    def _send(self, arguments: Mapping[str, Any]) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # noticed by its end of output
                self._process.stdin.write(json.dumps(arguments) + "\n")
                self._process.stdin.flush()

    def _memory(self) -> float:
        """Measure what the process and all that it started have, in MB."""
        return sum(map(_anonymous, session_members(self._process.pid))) / 1e6


def _judged(found: dict[str, Any]) -> dict[str, Any]:
    """Call a fault what ended well but took too much."""
    if found["ended"] not in FAULTS:
        if found["seconds"] > LIMIT_S:
            found |= {"sentence": f"{found['ended']}: {found['sentence']}", "ended": "hung"}
        elif found["peak_mb"] > LIMIT_MB:
            found |= {"sentence": f"{found['ended']}: {found['sentence']}", "ended": "swollen"}
    return found


def _pump(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    def marked() -> Iterator[str]:
        with suppress(ValueError):  # closed
            for line in stream:
                if line.startswith(MARK):
                    yield line

    for line in marked():
        lines.put(line)
    lines.put(None)


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return 1024 * sum(int(line.split()[1]) for line in lines)
