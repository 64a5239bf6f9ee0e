"""Who works on which slide: one lease a slide, and what its earlier workers died of.

A lease tells workers to keep out of each other's way; it is renewed while its holder lives and is
taken over once it is not. It is no safety: that is the atomic publish.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from microtome.errors import StoreError
from microtome.store.atomic import private_path, remove, wrap_errors, write_json
from microtome.store.layout import OutputLayout

_LEASE, _ATTEMPTS = ".lease", ".attempts.json"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One worker's try at a slide, written before the work and taken back when it ends.

    Attributes:
        started: UTC, ISO 8601.
        host: Where.
        pid: Of the worker's driver.
        reader: The reader that last had the slide; empty where it was not reached.
        stage: The last stage that was heard of.
        how: What is known of its end: ``"killed by SIGSEGV"``; empty for a worker that vanished.
    """

    started: str
    host: str
    pid: int
    reader: str = ""
    stage: str = ""
    how: str = ""

    def __str__(self) -> str:
        """Say how it ended, and during what."""
        at = f" at {self.stage}" if self.stage else ""
        reader = f" with reader {self.reader}" if self.reader else ""
        return f"{self.how or 'vanished'}{at}{reader}"


@dataclass(eq=False, kw_only=True)
class Claim:
    """A slide that this process works on.

    Attributes:
        slide_id: Which.
        earlier: What earlier workers died of, oldest first.
    """

    slide_id: str
    earlier: tuple[Attempt, ...]
    _lease: SoftFileLease
    _path: Path
    _attempt: Attempt = field(
        default_factory=lambda: Attempt(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            host=socket.gethostname(),
            pid=os.getpid(),
        )
    )

    @property
    def lost(self) -> bool:
        """Whether another worker took it over, because this one could not renew it in time."""
        return self._lease.compromise is not None

    def begin(self) -> None:
        """Record the attempt, before anything is done that could end the process.

        Raises:
            StoreError: If it cannot be written.
        """
        self._write((*self.earlier, self._attempt))

    def note(self, *, reader: str | None = None, stage: str | None = None) -> None:
        """Record how far the attempt came, for those who find it without its worker.

        Raises:
            StoreError: If it cannot be written.
        """
        known = {"reader": reader, "stage": stage}
        changed = {name: value for name, value in known.items() if value is not None}
        self._attempt = Attempt(**{**asdict(self._attempt), **changed})
        self._write((*self.earlier, self._attempt))

    def end(self) -> None:
        """Give the slide back, done with it one way or another: its earlier deaths are history."""
        self._remove()
        self._release()

    def drop(self) -> None:
        """Give the slide back as it was found: the attempt was not the slide's fault."""
        if self.earlier:
            with suppress(StoreError):  # an attempt too many is not worth a run
                self._write(self.earlier)
        else:
            self._remove()
        self._release()

    def die(self, how: str) -> None:
        """Give the slide back after its worker died, and leave a record of that."""
        self._attempt = Attempt(**{**asdict(self._attempt), "how": how})
        self.earlier = (*self.earlier, self._attempt)
        with suppress(StoreError):  # what was recorded before stays
            self._write(self.earlier)
        self._release()

    def _write(self, attempts: tuple[Attempt, ...]) -> None:
        if self.lost:  # the record is that of the worker that took it over
            return
        # Not put on disk: a machine that loses its power is no fault of the slide.
        write_json(self._path, [asdict(a) for a in attempts], indent=None, durable=False)

    def _remove(self) -> None:
        if not self.lost:
            remove(self._path)

    def _release(self) -> None:
        with suppress(OSError):
            self._lease.release()


class Claims:
    """The claims on the slides of one tiling.

    One object must live as long as its worker keeps asking: how long a claim was not renewed is
    seen by looking at it more than once.

    Args:
        layout: Of the output.
        seconds: After which a claim that was not renewed is taken over.
    """

    def __init__(self, layout: OutputLayout, seconds: float) -> None:
        self._layout = layout
        self._seconds = seconds
        self._leases: dict[str, SoftFileLease] = {}
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}

    def take(self, slide_id: str, *, forget: bool = False) -> Claim | None:
        """Claim a slide, unless another living worker has it.

        Args:
            slide_id: Which.
            forget: Whether what earlier workers died of no longer counts.

        Raises:
            StoreError: If the claim cannot be written, or workers disagree on ``seconds``.
        """
        path = self._layout.claim(slide_id, _LEASE)
        lease = self._leases.get(slide_id)
        if lease is None:
            with wrap_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            lease = SoftFileLease(path, lease_duration=self._seconds, thread_local=False)
            self._leases[slide_id] = lease
        with wrap_errors(path):
            try:
                lease.acquire(timeout=0)
            except Timeout:  # which is an OSError
                self._free(path)
                return None
            except LeaseSettingsMismatch as error:
                raise StoreError(
                    f"Another worker holds {slide_id!r} with other claims.seconds than "
                    f"{self._seconds:g}; all workers on one output must say the same."
                ) from error
        del self._leases[slide_id]
        self._seen.pop(path, None)
        attempts = self._layout.claim(slide_id, _ATTEMPTS)
        if forget:
            remove(attempts)
        return Claim(
            slide_id=slide_id, earlier=read_attempts(attempts), _lease=lease, _path=attempts
        )

    def _free(self, path: Path) -> None:
        """Remove a claim that is not renewed and that its lease will not take over.

        That is one whose worker died before it had written its name into it, and any claim where
        the file system cannot exchange two names, as NFS and SMB cannot.
        """
        try:
            with path.open("rb") as file:  # NFS looks at the server when a file is opened
                found = os.fstat(file.fileno())
        except OSError:
            return
        marker, now = (found.st_ino, found.st_ctime_ns), time.monotonic()
        if self._seen.setdefault(path, (marker, now))[0] != marker:
            self._seen[path] = (marker, now)
        # Where the lease itself can take the claim over, it has done so after half of that.
        elif now - self._seen[path][1] > 2 * self._seconds:
            aside = private_path(path)
            with suppress(OSError):
                path.rename(aside)
                if aside.stat().st_ino != marker[0]:  # somebody was faster
                    os.link(aside, path)
            remove(aside)


def forget_attempts(layout: OutputLayout, slide_id: str) -> None:
    """Forget what workers died of on a slide."""
    remove(layout.claim(slide_id, _ATTEMPTS))


def read_attempts(path: Path) -> tuple[Attempt, ...]:
    """Read what earlier workers left of a slide; nothing where there is no readable record."""
    known = {f.name for f in fields(Attempt)}
    try:
        listed: list[Mapping[str, Any]] = json.loads(path.read_text("utf-8"))
        return tuple(Attempt(**{k: v for k, v in a.items() if k in known}) for a in listed)
    except (OSError, ValueError, TypeError, AttributeError):
        return ()


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a slide, as an observer sees it.

    Attributes:
        slide_id: Which.
        attempt: The current attempt; None where it was not recorded yet.
        age: Seconds since the claim was last renewed, by this machine's clock.
    """

    slide_id: str
    attempt: Attempt | None
    age: float


def find_holders(layout: OutputLayout) -> list[Holder]:
    """List who holds which slide of a tiling, without touching any claim."""
    folder = layout.claims_folder
    names = [
        path.relative_to(folder).as_posix().removesuffix(_LEASE)
        for path in sorted(folder.rglob(f"*{_LEASE}"))
    ]
    return [holder for name in names if (holder := find_holder(layout, name)) is not None]


def find_holder(layout: OutputLayout, slide_id: str) -> Holder | None:
    """Tell who holds a slide, without touching the claim; None if nobody does."""
    try:
        age = max(0.0, time.time() - layout.claim(slide_id, _LEASE).stat().st_mtime)
    except FileNotFoundError:
        return None
    attempts = read_attempts(layout.claim(slide_id, _ATTEMPTS))
    return Holder(slide_id=slide_id, attempt=attempts[-1] if attempts else None, age=age)
