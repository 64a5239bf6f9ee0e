"""Ends a process at a named point of its file operations, or logs them.

A copy of this file lies as ``sitecustomize.py`` in a folder on ``PYTHONPATH``: every interpreter
imports it when it starts, workers too. Without one of its environment variables it does nothing.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

TRAP = "MICROTOME_BENCH_TRAP"
"""Environment variable: a `Trap` as JSON."""

LOG = "MICROTOME_BENCH_LOG"
"""Environment variable: a file that gets a line for every rename, and for every claim's end."""

_TMP = r"\.[0-9a-f]{8}-\d+-[0-9a-f]{8}\.tmp"
_OTHERS = r"\.[0-9a-f]{8}-(?!OWN-)\d+-[0-9a-f]{8}\.tmp"
_ASIDE = r"\.aside\.tmp"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

BEFORE_ASIDE = "before a folder is moved aside"
ASIDE = "a folder moved aside, its successor not there"

POINTS = {
    "before a file's fsync": rf"fsync .*{_TMP}",
    "before a file's replace": rf"rename .*{_TMP} -> .*\.h5",
    "before a folder's rename": rf"(rename|exchange) .*{_TMP} -> .*(\.zarr|/images/[^/]*)",
    "after a rename, before its folder's fsync": rf"fsync (?!.*{_TMP}).*/",
    "before the status": rf"rename .*{_TMP} -> .*/status/.*\.json",
    "before the tissue": rf"rename .*{_TMP} -> .*/tissue/.*",
    "before an overlay": rf"rename .*{_TMP} -> .*/visualization/.*",
    "before the run's record": rf"rename .*{_TMP} -> .*/runs/.*\.json",
    "before a published file is copied": r"copy .*",
    "a published file copied, nothing added": r"copied .*",
    "before features go into a folder": rf"rename .*{_TMP}/features/[^/]* -> (?!.*{_TMP}).*",
    "before an array goes into a folder": (
        rf"rename .*{_TMP}/slide_features(/[^/]*)? -> (?!.*{_TMP}).*"
    ),
    "before a patient's embedding": rf"(rename|exchange) .*{_TMP}.* -> .*/patient_embeddings/.*",
    BEFORE_ASIDE: rf"rename .* -> .*{_ASIDE}",
    ASIDE: r"renew .*",
    "writing features to scratch": r"pwrite .*",
    "inside Zarr's writing": rf"(open|rename|mkdir) .*\.zarr{_TMP}/.*",
    "inside a folder of images": rf"open .*/images/[^/]*{_TMP}/.*",
    "a lease made, nothing in it": r"write .*\.lease",
    "before an attempt is on record": rf"rename .*{_TMP} -> .*\.attempts\.json",
    "giving a slide back": r"remove .*/\.claims/[^/]*\.(lease|attempts\.json)",
    "taking a slide over": r"(open|remove) .*\.lease\.break\..*",
    "sweeping": rf"(remove|rmdir|rmtree) .*{_OTHERS}.*",
    "before a store of patches": rf"rename .*{_TMP} -> .*/(lmdb|labelled|webdataset)/.*",
    "before a class gets images": rf"rename .*{_TMP}/[^/]* -> .*/imagefolder/images/.*",
    "before the record of images": rf"rename .*{_TMP}/.* -> .*/imagefolder/slides/.*",
    "before the record of images goes": r"remove .*/imagefolder/slides/[^/.][^/]*",
    "taking images from a class": rf"rename .*/imagefolder/images/.* -> .*{_TMP}/.*",
    "before a sample, or its record": rf"rename .*{_TMP} -> .*/samples/.*",
    "before a checkpoint": rf"rename .*{_TMP} -> .*/checkpoints/.*",
    "before a file of a training": rf"rename .*{_TMP} -> .*/training/[^/]*/[^/]*",
    "before a plot": rf"rename .*{_TMP} -> .*/plots/.*",
    "before a heatmap": rf"rename .*{_TMP} -> .*/heatmaps/.*",
    "before a training is moved away": rf"rename .*/training/[^/]* -> .*{_TMP}",
    "removing a training": rf"(remove|rmdir|rmtree) .*/training/\..*{_TMP}/.*",
    "before predictions go into a folder": rf"rename .*{_TMP}/predictions.* -> (?!.*{_TMP}).*",
    "before a table of predictions": rf"rename .*{_TMP} -> .*/predictions/[^/]*/[^/]*",
}
"""Regular expressions for whole operations: ``fsync PATH``, ``rename FROM -> TO``, ….

``OWN`` is the number of the process. A folder that is flushed ends in ``/``. ``renew`` is the
rename that follows a move aside, which is only where names cannot be exchanged: a trap for one of
these points refuses every exchange.
"""


@dataclass(frozen=True, kw_only=True)
class Trap:
    """Where a process is to end.

    Attributes:
        point: One of `POINTS`.
        count: At which passing of the point in one process, from 1.
        whom: ``"self"``, whoever passes; ``"driver"``; ``"both"``.
        driver: Process number of the run's driver; 0 for the process that passes.
        mark: A file made by the first process to pass: the others go on.
        signal: Name of the signal: SIGSTOP to find out who waits for whom.
    """

    point: str
    count: int = 1
    whom: str = "self"
    driver: int = 0
    mark: str
    signal: str = "SIGKILL"

    def as_json(self) -> str:
        """Write it for the environment variable."""
        return json.dumps(asdict(self))


class _Watch:
    """Sees file operations go by."""

    def __init__(self, trap: Trap | None, log: str | None) -> None:
        self._trap = trap
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if log else -1
        pattern = POINTS[trap.point] if trap else r"(?!)"
        self._pattern = re.compile(pattern.replace("OWN", str(os.getpid())), re.DOTALL)
        self._left = trap.count if trap else 0
        self._aside = False
        self._exchanges = trap is None or trap.point not in (BEFORE_ASIDE, ASIDE)
        self._busy = False

    def install(self) -> None:
        """Look over the shoulder of this process from now on."""
        sys.addaudithook(self._audit)
        os.fsync = self._before("fsync", os.fsync)
        os.pwrite = self._before("pwrite", os.pwrite)
        os.write = self._before("write", os.write)
        os.replace = self._after("renamed", os.replace)
        os.rename = self._after("renamed", os.rename)
        shutil.copyfile = self._after("copied", shutil.copyfile)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        match event:
            case "open" if isinstance(args[2], int) and args[2] & _WRITING:
                if isinstance(args[0], str | bytes | os.PathLike):
                    self._pass(f"open {_text(args[0])}")
            case "os.rename":
                self._rename(f"{_text(args[0], args[2])} -> {_text(args[1], args[3])}")
            case "microtome.exchange":
                if not self._exchanges:
                    raise OSError(errno.EINVAL, "names are not exchanged here")
                self._pass(f"exchange {args[0]} -> {args[1]}")
            case "os.mkdir":
                self._pass(f"mkdir {_text(args[0], args[2])}")
            case "os.remove" | "os.rmdir":
                self._pass(f"{event[3:]} {_text(args[0], args[1])}")
            case "shutil.rmtree":
                self._pass(f"rmtree {_text(args[0])}")
            case "shutil.copyfile":
                self._pass(f"copy {_text(args[0])} -> {_text(args[1])}")

    def _rename(self, names: str) -> None:
        if self._aside:
            self._pass(f"renew {names}")
        self._aside = bool(re.fullmatch(rf".* -> .*{_ASIDE}", names, re.DOTALL))
        self._pass(f"rename {names}")

    def _before(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(handle: int, *args: Any) -> Any:
            if not self._busy:
                self._pass(f"{name} {_named(handle)}")
            return real(handle, *args)

        return watched

    def _after(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(source: Any, target: Any, **options: Any) -> Any:
            result = real(source, target, **options)
            self._pass(f"{name} {_text(source)} -> {_text(target)}")
            return result

        return watched

    def _pass(self, operation: str) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            if self._log >= 0 and operation.startswith(("renamed", "remove")):
                line = f"{time.monotonic_ns()} {os.getpid()} {operation}\n"
                os.write(self._log, line.encode())
            if self._trap is not None and self._pattern.fullmatch(operation):
                self._left -= 1
                if not self._left:
                    _spring(self._trap, operation)
        finally:
            self._busy = False


def _text(path: Any, folder: int = -1) -> str:
    text = os.fsdecode(path)
    if folder < 0 or text.startswith("/"):
        return text
    return f"{_named(folder)}{text}"


def _named(handle: int) -> str:
    try:
        path = os.readlink(f"/proc/self/fd/{handle}")  # noqa: PTH115 - quick: it is everywhere
    except OSError:
        return "?"
    return f"{path}/" if os.path.isdir(path) else path  # noqa: PTH112


def _spring(trap: Trap, operation: str) -> None:
    try:
        handle = os.open(trap.mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    os.write(handle, f"{os.getpid()} {operation}".encode())
    os.close(handle)
    number = getattr(signal, trap.signal)
    own, driver = os.getpid(), trap.driver or os.getpid()
    if trap.whom != "self" and driver != own:
        os.kill(driver, number)
    if trap.whom != "driver" or driver == own:
        os.kill(own, number)


def arm() -> None:
    """Do what the environment variables of this process say."""
    trap, log = os.environ.get(TRAP), os.environ.get(LOG)
    if trap or log:
        _Watch(Trap(**json.loads(trap)) if trap else None, log).install()


if __name__ == "sitecustomize":
    arm()
