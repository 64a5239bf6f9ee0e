"""Make outputs appear whole: written under a private name, put on disk, then renamed.

At any instant, whatever is killed, a final name is absent or complete.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from microtome.errors import MicrotomeError, OutputError, StoreError
from microtome.store.folders import (
    aside_path,
    owner_of_aside,
    put_back,
    rename_new,
    replace_folder,
)

_PRIVATE = re.compile(r"\..*\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)
_NAME_BYTES = 200  # of a private name, so that the token still fits the usual limit of 255
_ADVICE = {
    errno.ENOSPC: "free some space, or choose another output",
    errno.EDQUOT: "free some of your quota, or choose another output",
    errno.EACCES: "change its permissions, or choose another output",
    errno.EPERM: "change its permissions, or choose another output",
    errno.EROFS: "choose another output",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or choose another output",
    errno.ENAMETOOLONG: "give the slide a shorter slide_id in a manifest",
}
_FORGOTTEN = 86400.0
"""Seconds after which a private name that nobody touched is nobody's."""

_TURN, _BETWEEN = 5.0, 0.002
"""Seconds to wait for one's turn, which takes milliseconds, and between two looks."""

_FOR_ALL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTCONN)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_HDF5_ERRNO = re.compile(r"\berrno = (\d+)\b")


@contextmanager
def publish(
    path: Path,
    *,
    layout: str = "file",
    replace: bool = True,
    confirm: Callable[[], None] | None = None,
    durable: bool = True,
) -> Iterator[Path]:
    """Write an output under a private name and publish it when the block ends.

    An existing file is replaced in one step, a folder too where the file system can exchange two
    names. Elsewhere a folder is moved aside first, so that readers see it absent for a moment,
    never partial; killed at that moment, it is put back by whoever looks next. If the block raises,
    nothing is published and what it wrote is removed.

    Args:
        path: The final name.
        layout: ``"file"`` or ``"directory"``.
        replace: Whether an existing folder is replaced; an error otherwise.
        confirm: Called when all is on disk, just before the rename, while other jobs wait for
            their turn. What it raises stops the publishing.
        durable: Whether it is put on disk before it is published, so that it is there and
            complete after a power cut, too.

    Yields:
        A path in the same folder that does not exist yet, for the block to write.

    Raises:
        StoreError: If it cannot be published, or the block wrote nothing.
        NameTakenError: If ``replace`` is false and there is a folder already.
    """
    with wrap_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    private, stale = private_path(path), private_path(path)
    try:
        yield private
        if not private.exists():
            raise StoreError(f"{path} was not written: nothing was left at its private path.")
        with wrap_errors(path):
            if durable:
                flush(private)
            with take_turn(path.parent):
                if layout == "directory":
                    put_back(path, stale)
                if confirm is not None:
                    confirm()
                if layout == "file":
                    os.replace(private, path)  # noqa: PTH105 - one name for tests to fail at
                elif replace:
                    replace_folder(private, path)
                else:
                    rename_new(private, path)
            if durable:
                flush_folder(path.parent)
    finally:
        remove(private)
        remove(stale)


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a small file atomically.

    Args:
        path: The final name.
        data: Its content.
        durable: As of `publish`.

    Raises:
        StoreError: If it cannot be written.
    """
    with publish(path, durable=durable) as private, wrap_errors(path):
        private.write_bytes(data)


def write_json(path: Path, data: Any, *, indent: int | None = 2, durable: bool = True) -> None:
    """Write plain values as JSON, atomically.

    Args:
        path: The final name.
        data: Plain values.
        indent: For people to read; None for one line, which is written five times as fast.
        durable: As of `publish`.

    Raises:
        StoreError: If it cannot be written.
    """
    text = json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)
    # A file name that is not UTF-8 comes as surrogates, which JSON holds as escapes.
    write_bytes(path, f"{text}\n".encode("utf-8", "backslashreplace"), durable=durable)


def restore(path: Path) -> None:
    """Put a folder back that was moved aside by a process that could not go on.

    Raises:
        StoreError: If it cannot be renamed.
    """
    if not os.path.lexists(aside_path(path)):
        return
    stale = private_path(path)
    with wrap_errors(path), take_turn(path.parent):
        put_back(path, stale)
    remove(stale)


def restore_below(top: Path, suffix: str) -> None:
    """Put back every folder that was moved aside by a process that could not go on.

    Args:
        top: Below which; need not be there.
        suffix: Of the folders, into which nobody looks.

    Raises:
        StoreError: If one cannot be renamed.
    """
    for here, names, _ in os.walk(top):
        for final in filter(None, [owner_of_aside(Path(here, name)) for name in names]):
            restore(final)
        names[:] = [n for n in names if not n.startswith(".") and not n.endswith(suffix)]


def sweep(folder: Path, *, below: bool = False) -> list[Path]:
    """Remove what dead processes left unfinished in a folder, and put back what they moved aside.

    Args:
        folder: The folder; need not be there.
        below: Whether in the folders below it, too.

    Returns:
        What was removed: leftovers of dead processes of this host; others' once nobody has touched
        them for a day, since their processes cannot be asked.
    """
    if below:
        return [path for each in _folders(folder) for path in sweep(each)]
    if not folder.is_dir():
        return []
    aside = {path: owner_of_aside(path) for path in sorted(folder.iterdir())}
    for final in filter(None, aside.values()):
        restore(final)
    leftovers = [path for path in aside if aside[path] is None and _is_leftover(path)]
    for path in leftovers:
        remove(path)
    return leftovers


def _folders(top: Path) -> Iterator[Path]:
    """Walk a folder and those below it that are nobody's private ones."""
    for folder, names, _ in os.walk(top):
        names[:] = sorted(name for name in names if not owner_of(name))
        yield Path(folder)


def private_path(path: Path) -> Path:
    """Name a path for this process alone, in the folder of a final name."""
    name = path.name.encode("utf-8", "surrogateescape")[:_NAME_BYTES].decode("utf-8", "ignore")
    return path.with_name(f".{name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def flush(path: Path) -> None:
    """Put a file, or a folder with everything in it, on disk."""
    if not path.is_dir():
        _fsync(path)
        return
    # Several at once, because a file system joins concurrent flushes into one.
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(_fsync, [path, *path.rglob("*")]):
            pass


def flush_folder(folder: Path) -> None:
    """Put a folder's names on disk."""
    _fsync(folder)


@contextmanager
def take_turn(folder: Path) -> Iterator[None]:
    """Let one job at a time look at a folder and rename something in it.

    The lock goes with the process, however that ends. Where the file system has none, or somebody
    does not go on (a stopped process, a lost host), a job may undo what another published in the
    same moment; the next run then does that again.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            _lock(handle)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    deadline = time.monotonic() + _TURN
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return None
            time.sleep(_BETWEEN)


def remove(path: Path) -> None:
    """Remove a private file or folder, if it is there. Never raises: sweeping comes later."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)


@contextmanager
def wrap_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal into a `StoreError` that says what to do.

    One that every other slide would meet, too, is an `OutputError`: no space, no quota, a
    read-only file system or folder.
    """
    try:
        yield
    except MicrotomeError:
        raise
    except (OSError, RuntimeError) as error:
        number = _number(error)
        if not number and not isinstance(error, OSError):
            raise
        reason = os.strerror(number) if number else str(error)
        advice = _ADVICE.get(number, "check the disk, or choose another output")
        kind = OutputError if _concerns_all(number, path) else StoreError
        raise kind(f"{path} cannot be written: {reason}; {advice}.") from error


def _number(error: BaseException | None) -> int:
    """Give the system's number of an error or of what led to it, 0 if there is none.

    HDF5 has it in its text alone, and closes a file that it could not write with another error.
    """
    while error is not None:
        if number := getattr(error, "errno", None):
            return int(number)
        if match := _HDF5_ERRNO.search(str(error)):
            return int(match[1])
        error = error.__cause__ or error.__context__
    return 0


def _concerns_all(number: int, path: Path) -> bool:
    """Whether no slide's output could be written there."""
    if number not in _FORBIDDEN:
        return number in _FOR_ALL
    # Not Path.is_dir, which raises where a folder cannot be looked into.
    there = [folder for folder in (path, *path.parents) if os.path.isdir(folder)]  # noqa: PTH112
    return not all(os.access(folder, os.W_OK | os.X_OK) for folder in there[:2])


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@cache
def _host() -> str:
    """Name the host and the space of its process numbers, which a container has of its own."""
    space = Path("/proc/self/ns/pid")
    pids = os.readlink(space) if space.exists() else ""  # noqa: PTH115 - the text, not a path
    return hashlib.sha256(f"{socket.gethostname()} {pids}".encode()).hexdigest()[:8]


def owner_of(name: str) -> str:
    """Tell whose a private name is.

    Returns:
        ``"dead"`` or ``"living"`` for a process of this host, ``"elsewhere"`` for another host's,
        empty for a name that is not private. What lies aside is for an instant, and then nobody's.
    """
    if owner_of_aside(Path(name)) is not None:
        return "dead"
    match = _PRIVATE.fullmatch(name)
    if match is None:
        return ""
    if match["host"] != _host():
        return "elsewhere"
    return "living" if is_alive(int(match["pid"])) else "dead"


def is_alive(pid: int) -> bool:
    """Tell whether this host runs a process of that number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    # In a container nobody may take notice of a death: the number stays, the process does not.
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state not in (b"Z", b"X")


def _is_leftover(path: Path) -> bool:
    owner = owner_of(path.name)
    if not owner or owner == "dead":
        return bool(owner)
    try:  # a living process may be another one of the same number
        return time.time() - path.lstat().st_mtime > _FORGOTTEN
    except OSError:
        return False
