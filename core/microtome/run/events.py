"""What workers do, as it happens: a log of JSON lines for each process that works on slides.

Logs lie under ``<run_dir>/events/<host>-<pid>.jsonl``, so that a driver on any host, or a person,
can follow a run by its shared output alone.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from microtome.errors import StoreError
from microtome.run.progress import Reporter, SilentReporter
from microtome.store.atomic import wrap_errors
from microtome.store.status import SlideStatus

_FOLDER, _SUFFIX = "events", ".jsonl"

_PAUSE = 1.0
"""Seconds between two lines about tiles."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of a log.

    Attributes:
        worker: Whose log: ``<host>-<pid>``.
        time: UTC, ISO 8601, to the millisecond, by the worker's clock.
        event: ``"started"``, ``"stage"``, ``"tiles"`` and ``"finished"`` of a slide, ``"note"``.
        slide_id: Of the slide; empty for a note.
        stage: That the slide is in.
        tiles: With ``"stage"``, how many are ahead; with ``"tiles"``, how many more are done.
        seconds: Since the slide was started.
        text: Of a note.
        status: Of a finished slide.
    """

    worker: str
    time: str
    event: str
    slide_id: str = ""
    stage: str = ""
    tiles: int = 0
    seconds: float = 0.0
    text: str = ""
    status: SlideStatus | None = None

    def tell(self, reporter: Reporter) -> None:
        """Pass on what a reporter wants to hear while slides are worked on.

        The end of a slide is not told: whoever hands out slides knows which end counts.
        """
        if self.event == "stage":
            reporter.stage(self.slide_id, self.stage, self.tiles)
        elif self.event == "tiles":
            reporter.advance(self.slide_id, self.tiles)
        elif self.event == "note":
            reporter.note(self.text)


class EventLog(SilentReporter):
    """A reporter that writes a log. The file is made with the first event.

    Several runs may append to one log; several processes must not.

    Args:
        path: Of the log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._began: dict[str, float] = {}
        self._stage: dict[str, str] = {}
        self._tiles: dict[str, int] = {}
        self._told = 0.0

    def note(self, text: str) -> None:
        """Log it."""
        self._write("note", text=text)

    def stage(self, slide_id: str, stage: str, tiles: int = 0) -> None:
        """Log it, and before its first stage that the slide is started."""
        self._flush(slide_id)
        if slide_id not in self._began:
            self._began[slide_id] = time.monotonic()
            self._write("started", slide_id)
        self._stage[slide_id] = stage
        self._write("stage", slide_id, **({"tiles": tiles} if tiles else {}))

    def advance(self, slide_id: str, tiles: int) -> None:
        """Log tiles about once a second, those of several batches together."""
        self._tiles[slide_id] = self._tiles.get(slide_id, 0) + tiles
        if time.monotonic() - self._told >= _PAUSE:
            self._told = time.monotonic()
            self._flush(slide_id)

    def finished(self, status: SlideStatus) -> None:
        """Log the end of a slide, with its whole status."""
        self._flush(status.slide_id)
        self._write("finished", status.slide_id, status=status.record())
        self._began.pop(status.slide_id, None)
        self._stage.pop(status.slide_id, None)

    def __exit__(self, *exc: object) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _flush(self, slide_id: str) -> None:
        if tiles := self._tiles.pop(slide_id, 0):
            self._write("tiles", slide_id, tiles=tiles)

    def _write(self, event: str, slide_id: str = "", **more: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": now, "event": event}
        if slide_id:
            began = self._began.get(slide_id, time.monotonic())
            line |= {
                "slide_id": slide_id,
                "stage": self._stage.get(slide_id, ""),
                "seconds": round(time.monotonic() - began, 3),
            }
        text = json.dumps(line | more, ensure_ascii=False, allow_nan=False)
        with wrap_errors(self._path):
            self._append(f"{text}\n".encode("utf-8", "backslashreplace"))

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what was told is there, however the process ends.
            self._file = self._path.open("ab", buffering=0)
            if self._file.tell():
                line = b"\n" + line  # the last line of a killed process may be torn
        while line:
            line = line[self._file.write(line) :]


def open_log(run_dir: Path | None) -> Reporter:
    """Give this process's log in a run's folder; nothing is logged of a run without one."""
    if run_dir is None:
        return SilentReporter()
    return EventLog(events_folder(run_dir) / f"{socket.gethostname()}-{os.getpid()}{_SUFFIX}")


def events_folder(run_dir: Path) -> Path:
    """Give the folder of a run's logs."""
    return run_dir / _FOLDER


class EventFollower:
    """Reads the logs of a folder as they grow, each line once.

    Args:
        folder: Of the logs; need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}

    def poll(self) -> list[Event]:
        """Give what was logged since the last time, log by log.

        A line that is not complete yet is left for the next time; one that a dead worker left
        torn is passed over.
        """
        logs = sorted(self._folder.glob(f"*{_SUFFIX}"))
        parsed = (_parse(path.stem, line) for path in logs for line in self._new_lines(path))
        return [event for event in parsed if event is not None]

    def _new_lines(self, path: Path) -> list[bytes]:
        begin = self._read.get(path, 0)
        try:
            with path.open("rb") as file:
                file.seek(begin)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._read[path] = begin + len(complete)
        return complete.splitlines()


def _parse(worker: str, line: bytes) -> Event | None:
    try:
        data = json.loads(line)
        known = {f.name: data[f.name] for f in fields(Event) if f.name in data}
        if isinstance(known.get("status"), Mapping):
            known["status"] = SlideStatus.from_record(known["status"])
        return Event(**known | {"worker": worker})
    except (ValueError, TypeError, StoreError):
        return None
