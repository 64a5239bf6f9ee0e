"""A folder of slides' copies on a local disk, shared by all runs of a machine.

A slide's files are one unit: a folder that appears whole. Who uses a unit holds a shared lock on
its folder, which ends with the process; only what nobody holds is evicted, and what was not used
for longest goes first. A copy in the making is counted before its first byte.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from microtome.errors import ConfigError, SlideOpenError
from microtome.run.inputs.sources import Source, SourceFile, Tick
from microtome.store.atomic import flush, private_path, remove, sweep, take_turn

_PART = ".part"
_POLL = 0.5
_FULL = 0.95
"""Of what a disk has free: the last of it is for others."""

_TRIES = 3
"""For each file: networks and their servers have moments."""


class TooLargeError(SlideOpenError):
    """A slide has more bytes than all copies together may have."""


@dataclass(eq=False)
class Held:
    """A unit that stays while it is held.

    Attributes:
        folder: Of the copies.
        version: Of what they are copies of.
    """

    folder: Path
    version: str
    _handle: int

    def release(self) -> None:
        """Let it be evicted."""
        with suppress(OSError):
            os.utime(self.folder)  # it was used until now
        os.close(self._handle)


class SlideCache:
    """The copies below a folder.

    Args:
        folder: On a local disk.
        budget: Bytes that all copies may have together.

    Raises:
        ConfigError: If the folder cannot be written.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder = folder
        self._budget = budget
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = private_path(folder / "probe")
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"staging.cache={folder} cannot be written: {error.strerror}. "
                "Name a folder on a local disk."
            ) from error
        sweep(folder)

    def version(self, source: Source) -> str:
        """Name what a source holds now: by its name, and its files' names, sizes and dates.

        Raises:
            OSError: If it cannot be looked at.
        """
        return _version(source, source.files())

    def fetch(self, source: Source, tick: Tick, total: Callable[[int], None]) -> Held:
        """Give a slide's copy, made if there is none, waiting for room where there is none.

        Args:
            source: Where the slide lies.
            tick: Told how many bytes were copied, and 0 now and then while nothing is.
            total: Told before how many there are.

        Raises:
            TooLargeError: If there will never be room.
            SlideOpenError: If what came is not what was announced.
            OSError: If something cannot be read or written.
        """
        files = source.files()
        version = _version(source, files)
        size = sum(file.size for file in files)
        if size > self._budget:
            raise TooLargeError(
                f"{source.name} has {size / 2**30:.1f} GiB, more than "
                f"staging.budget_gb={self._budget / 2**30:g}."
            )
        while True:
            held = self._hold(version, files)
            if held is not None:
                return held
            part = self._reserve(version, size)
            if part is not None:
                total(size)
                try:
                    return self._fill(version, source, files, tick)
                finally:
                    self._unreserve(version, part)
            tick(0)
            time.sleep(_POLL)

    def _hold(self, version: str, files: Sequence[SourceFile]) -> Held | None:
        """Hold a unit, unless it is not there, damaged or being evicted."""
        folder = self._folder / version
        handle = _lock(folder, fcntl.LOCK_SH)
        if handle is None:
            return None
        if all(_size(folder / file.name) == file.size for file in files):
            os.utime(folder)
            return Held(folder, version, handle)
        os.close(handle)
        with take_turn(self._folder):
            self._evict(folder)
        return None

    def _reserve(self, version: str, size: int) -> int | None:
        """Make room and count a copy in the making; None where others have the room, or make it."""
        with take_turn(self._folder):
            if (self._folder / version).exists():
                return None
            units, promised = self._units(), self._promised()
            used = sum(units.values()) + promised
            room = min(self._budget, sum(units.values()) + _FULL * self._free())
            for unit in sorted(units, key=_last_used):
                if used + size > room and self._evict(unit):
                    used -= units[unit]
            if used + size <= room:
                return self._open_part(version, size)
            if used:
                return None
        raise TooLargeError(
            f"There is no room for {size / 2**30:.1f} GiB in {self._folder}: the disk has "
            f"{self._free() / 2**30:.1f} GiB free."
        )

    def _open_part(self, version: str, size: int) -> int | None:
        path = self._folder / f"{version}{_PART}"
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # somebody else makes it
            os.close(handle)
            return None
        os.write(handle, str(size).encode())
        return handle

    def _unreserve(self, version: str, part: int) -> None:
        with take_turn(self._folder):
            (self._folder / f"{version}{_PART}").unlink(missing_ok=True)
            os.close(part)

    def _fill(self, version: str, source: Source, files: Sequence[SourceFile], tick: Tick) -> Held:
        """Copy a slide under a private name, and publish it if it is what was announced."""
        folder = self._folder / version
        private = private_path(folder)
        try:
            private.mkdir()
            for file in files:
                _copy(source, file, private / file.name, tick)
            if _version(source, source.files()) != version:
                raise SlideOpenError(
                    f"{source.name} changed while it was copied. Run it again when it is complete."
                )
            flush(private)
            handle = os.open(private, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_SH)  # held before anybody can see it
            private.rename(folder)
            return Held(folder, version, handle)
        finally:
            remove(private)

    def _units(self) -> dict[Path, int]:
        """Measure the units."""
        units = (p for p in self._folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        return {unit: sum(_size(path) for path in unit.rglob("*")) for unit in units}

    def _promised(self) -> int:
        """Measure the copies in the making; forget those whose makers are gone."""
        total = 0
        for path in self._folder.glob(f"*{_PART}"):
            handle = _lock(path, fcntl.LOCK_EX)
            if handle is None:
                with suppress(ValueError):
                    total += int(path.read_text() or 0)
                continue
            path.unlink()
            os.close(handle)
        return total

    def _evict(self, unit: Path) -> bool:
        handle = _lock(unit, fcntl.LOCK_EX)
        if handle is None:
            return False
        aside = private_path(unit)
        unit.rename(aside)
        os.close(handle)
        remove(aside)
        return True

    def _free(self) -> int:
        return shutil.disk_usage(self._folder).free


def _copy(source: Source, file: SourceFile, target: Path, tick: Tick) -> None:
    """Copy a file, and try again what a network may have cut short."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in reversed(range(_TRIES)):
        copied = 0

        def hear(count: int) -> None:
            nonlocal copied
            copied += count
            tick(count)

        try:
            source.copy(file, target, hear)
            came = _size(target)
            if came == file.size:
                return
            raise SlideOpenError(
                f"{source.name} cannot be copied: {came:,} of the {file.size:,} bytes of "
                f"{file.name} came."
            )
        except OSError as error:
            if not left or isinstance(error, FileNotFoundError | PermissionError):
                raise
            tick(-copied)
            time.sleep(_POLL)


def _version(source: Source, files: Sequence[SourceFile]) -> str:
    told = "\n".join(f"{file.name}\0{file.size}\0{file.version}" for file in files)
    text = f"{source.name}\n{told}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _lock(path: Path, kind: int) -> int | None:
    """Lock a file or folder without waiting; None where that cannot be, or it is not there."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), path.stat()):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(handle)
    return None


def _size(path: Path) -> int:
    """Give a file's size; 0 for a folder, -1 for what is not there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _last_used(unit: Path) -> float:
    return unit.stat().st_mtime
