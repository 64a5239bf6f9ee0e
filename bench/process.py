"""Runs one measurement in a process of its own, and watches its memory from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.results import ROOT

MARK = "RESULT "
"""Begins the line of standard output that holds what a measurement found, as JSON."""

_MB = 1e6


class StepError(RuntimeError):
    """A measurement failed; the text ends in what it wrote last."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A process that ended well.

    Attributes:
        wall: Seconds from before its start to after its end.
        found: What it said on its ``RESULT`` line.
        peak_mb: The largest sum of the proportional set sizes (PSS) of it and all it started, in
            10^6 bytes; 0 where nobody looked.
        memory: That sum over time, ``(seconds, MB)``.
    """

    wall: float
    found: Mapping[str, Any] = field(default_factory=dict)
    peak_mb: float = 0.0
    memory: Sequence[tuple[float, float]] = ()


def run_step(name: str, *, sample: float = 0.0, **arguments: Any) -> Finished:
    """Run a step of `bench.steps` in this interpreter.

    Args:
        name: Of the step.
        sample: Seconds between looks at its memory; 0 does not look, which costs least.
        **arguments: The step's own, plain values.

    Raises:
        StepError: If it fails.
    """
    command = [sys.executable, "-m", "bench.steps", name, json.dumps(arguments)]
    return run_process(command, sample=sample)


def run_process(
    command: Sequence[str], *, sample: float = 0.0, environment: Mapping[str, str] | None = None
) -> Finished:
    """Run a command to its end.

    Args:
        command: The words.
        sample: Seconds between looks at its memory; 0 does not look.
        environment: Variables beside this process's own.

    Raises:
        StepError: If it fails or cannot be started.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        began = time.perf_counter()
        try:
            # A session of its own: everything it starts can be found, whoever its parent then is.
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise StepError(f"{command[0]} cannot be started: {error}") from error
        watch = _Watch(process.pid, sample)
        try:
            code = process.wait()
            wall = time.perf_counter() - began
        finally:
            process.kill()  # does nothing to one that has ended
            watch.stop()
        output.seek(0)
        text = output.read()
    if code:
        raise StepError(f"{' '.join(command[:4])} … ended with {code}:\n{text[-2000:]}")
    marked = [line for line in text.splitlines() if line.startswith(MARK)]
    found = json.loads(marked[-1].removeprefix(MARK)) if marked else {}
    return Finished(wall=wall, found=found, peak_mb=watch.peak_mb, memory=watch.seen)


class _Watch:
    """Looks at the memory of a session's processes now and then, from a thread."""

    def __init__(self, session: int, interval: float) -> None:
        self.seen: list[tuple[float, float]] = []
        self._session = session
        self._interval = interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        if interval:
            self._thread.start()

    @property
    def peak_mb(self) -> float:
        return max((size for _, size in self.seen), default=0.0)

    def stop(self) -> None:
        self._ended.set()
        if self._interval:
            self._thread.join()

    def _look(self) -> None:
        began = time.perf_counter()
        while not self._ended.wait(self._interval):
            size = sum(proportional_size(pid) for pid in session_members(self._session))
            self.seen.append((round(time.perf_counter() - began, 3), round(size / _MB, 1)))


def session_members(session: int) -> list[int]:
    """List the processes of a session; none where there is no ``/proc``."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in parentheses, may hold anything; after it: state, parent, group, session.
            fields = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[3]) == session:
            members.append(int(folder.name))
    return members


def proportional_size(pid: int) -> int:
    """Give a process's PSS in bytes: its own memory and its share of what it shares."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return 0  # it ended meanwhile
    sizes = (int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 1024 * next(sizes, 0)
