"""Starts the command in a process that can be killed, without waiting for its imports.

``python -m bench.kills.launch`` is the nursery: it imports what a run needs, without a thread, and
forks a process for each line of standard input.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from select import select
from typing import Any

from PIL import Image

from bench.kills import points
from bench.results import ROOT
from microtome.plugin.registry import get_registry

_IMPORTS = (
    "microtome.run.runner",
    "microtome.config.hydra_bridge",
    "microtome_readers.openslide_reader",
    "microtome_readers.tiff.reader",
    "microtome_segmenters.classic",
    "microtome_encoders.patch.handcrafted",
    "microtome_writers.hdf5",
    "microtome_writers.zarr",
    "microtome_writers.png",
    "microtome_engines.local",
    "omegaconf.grammar_parser",
    "cv2",
)

_WITHOUT_THREADS = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""Variables that keep libraries from starting threads when they are imported."""

_IMPORTING = 240
"""Seconds that a nursery may take for its imports."""


class Stuck(RuntimeError):  # noqa: N818 - what happened, not a class of errors
    """A process that should have ended did not."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """A command that runs.

    Attributes:
        pid: Of its driver.
        mark: What tells its workers from others': the file that a trap leaves.
        said: Where its output goes.
    """

    pid: int
    mark: Path
    said: Path

    def workers(self) -> list[int]:
        """List the processes that it started."""
        wanted = f"{points.TRAP}_MARK={self.mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return [pid for pid in found if _lives(pid)]

    def kill(self, pids: Sequence[int]) -> None:
        """Kill some of its processes."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    """Tell whether a process runs; one that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Nursery:
    """Starts commands, one at a time.

    Args:
        folder: For what it needs; made if missing.
        imports: Modules that its commands need, beside those that every run does.
    """

    def __init__(self, folder: Path, imports: Sequence[str] = ()) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.kills.launch", *imports],
            cwd=ROOT,
            env=environment(folder, **_WITHOUT_THREADS),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._count = 0
        self._heard = b""
        self._line(_IMPORTING)

    def start(self, words: Sequence[str], trap: points.Trap | None = None) -> Started:
        """Start a command.

        Args:
            words: Without the program's name.
            trap: Where it is to end; its ``mark`` is given here.
        """
        self._count += 1
        mark, said = self._folder / f"{self._count}.mark", self._folder / f"{self._count}.txt"
        order: dict[str, Any] = {"words": list(words), "said": str(said), "mark": str(mark)}
        if trap is not None:
            order["trap"] = {**vars(trap), "mark": str(mark)}
        pipe: Any = self._process.stdin
        pipe.write(f"{json.dumps(order)}\n".encode())
        return Started(pid=int(self._line(60)), mark=mark, said=said)

    def wait(self, started: Started, seconds: float) -> int:
        """Wait until a command and all its workers have ended.

        Returns:
            The exit code; negative for the signal that ended it.

        Raises:
            Stuck: If one of them has not; they are killed.
        """
        try:
            code = int(self._line(seconds))
        except Stuck:
            started.kill([started.pid, *started.workers()])
            self._line(60)
            raise Stuck(f"the command did not end in {seconds:.0f} s") from None
        deadline = time.monotonic() + 20
        while left := started.workers():
            if time.monotonic() > deadline:
                started.kill(left)
                raise Stuck("a worker outlived its driver by 20 s")
            time.sleep(0.02)
        return code

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.communicate()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _line(self, seconds: float) -> bytes:
        pipe: Any = self._process.stdout
        deadline = time.monotonic() + seconds
        while b"\n" not in self._heard:
            if not select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Stuck("the nursery says nothing")
            read = pipe.read(4096)
            if not read:
                raise Stuck("the nursery ended")
            self._heard += read
        line, self._heard = self._heard.split(b"\n", 1)
        return line


def hooks(folder: Path) -> Path:
    """Make the folder for ``PYTHONPATH`` that puts `points` into every interpreter."""
    target = folder / "hooks"
    target.mkdir(parents=True, exist_ok=True)
    (target / "sitecustomize.py").write_text(Path(points.__file__).read_text("utf-8"), "utf-8")
    return target


def environment(folder: Path, **variables: str) -> Mapping[str, str]:
    """Give the environment of a command that `points` is to watch, with more variables."""
    path = os.pathsep.join(filter(None, [str(hooks(folder)), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **variables}


def main() -> None:
    """Fork a process for each order, and say how it ended."""
    for name in (*_IMPORTS, *sys.argv[1:]):
        import_module(name)
    Image.init()
    get_registry()
    if len([*Path("/proc/self/task").iterdir()]) != 1:
        sys.exit("an import started a thread: a fork would not be safe")
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            with _ended_by():
                _child(order)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


@contextmanager
def _ended_by() -> Iterator[None]:
    """Never come back from a child."""
    try:
        yield
    finally:
        traceback.print_exc()
        os._exit(99)


def _child(order: dict[str, Any]) -> None:
    from microtome.__main__ import main as microtome

    os.setsid()
    said = os.open(order["said"], os.O_WRONLY | os.O_CREAT)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (said, 1), (said, 2)):
        os.dup2(source, target)
    os.environ[f"{points.TRAP}_MARK"] = order["mark"]
    if "trap" in order:
        trap = points.Trap(**{**order["trap"], "driver": os.getpid()})
        os.environ[points.TRAP] = trap.as_json()
        points.arm()
    code = microtome(order["words"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
