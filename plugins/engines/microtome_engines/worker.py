"""What runs in a worker process of the ``local`` engine: takes slides from a pipe, one by one."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from microtome.errors import MicrotomeError
from microtome.plugin.files import add_files
from microtome.plugin.registry import get_registry
from microtome.run.events import open_log
from microtome.run.planning.budget import keep_memory
from microtome.run.planning.plan import make_plan
from microtome.run.progress import SilentReporter, TeeReporter
from microtome.run.settings import RunConfig
from microtome.run.signals import Terminated, signals_interrupt
from microtome.run.working import History, work_on
from microtome.slide.types import SlideRef

_PR_SET_PDEATHSIG = 1
_LIKELY = (("writer", "hdf5"), ("segmenter", "classic"), ("reader", "tiff"))
"""The plugins that most runs use: their libraries take longest to import."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A slide for a worker.

    Attributes:
        ref: Which.
        history: What happened to it before.
        company: Slides that are segmented with it.
    """

    ref: SlideRef
    history: History
    company: tuple[SlideRef, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What a worker is told when it starts.

    Attributes:
        config: The run, without its slides.
        load: Whether any slide is sure to need the encoders.
        round: Of the run.
        driver: The process that it must not outlive.
    """

    config: RunConfig
    load: bool
    round: str
    driver: int


class PipeReporter(SilentReporter):
    """Tells the driver how a slide goes.

    Args:
        pipe: To the driver.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def note(self, text: str) -> None:
        """Pass it on."""
        self._send(("note", text))

    def stage(self, slide_id: str, stage: str, tiles: int = 0) -> None:
        """Pass it on."""
        self._send(("stage", slide_id, stage, tiles))

    def advance(self, slide_id: str, tiles: int) -> None:
        """Pass it on."""
        self._send(("advance", slide_id, tiles))

    def trying(self, reader: str) -> None:
        """Pass on which reader is about to be given the slide."""
        self._send(("trying", reader))

    def _send(self, message: tuple[object, ...]) -> None:
        try:
            self._pipe.send(message)
        except OSError as error:
            # Not an error of the slide, which would leave a record of it.
            raise Terminated from error


def main(descriptor: int) -> int:
    """Work for a driver until it says stop.

    Args:
        descriptor: Of the worker's end of the pipe.

    Returns:
        The exit code: 0, or that of the signal that ended it.
    """
    # Ctrl-C in a terminal reaches the whole group; the driver decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(descriptor) as pipe, suppress(EOFError, BrokenPipeError):
        sys.path[:] = pipe.recv()
        _import_ahead(pipe)
        try:
            orders: Orders = pipe.recv()
            die_with(orders.driver)
            with signals_interrupt():
                _work(orders, pipe)
        except Terminated as ended:
            return ended.exit_code
        except MicrotomeError as error:
            pipe.send(("cannot", error))
            return 1
    return 0


def _import_ahead(pipe: Connection) -> None:
    """Import what will most likely be needed, until there are orders."""
    for kind, name in _LIKELY:
        if not pipe.poll():
            with suppress(MicrotomeError):  # told when it is chosen
                get_registry().load(kind, name)


def _work(orders: Orders, pipe: Connection) -> None:
    registry = add_files(get_registry(), orders.config.encoder_plugin)
    plan = replace(make_plan(orders.config, registry), round=orders.round)
    driver = PipeReporter(pipe)
    with keep_memory(plan.encoders), open_log(plan.config.run_dir) as log:
        reporter = TeeReporter(driver, log)
        if orders.load:
            for encoder in plan.encoders:
                encoder.ensure_loaded()
            for model in plan.slide_encoders:
                model.ensure_loaded()
        pipe.send(("ready",))
        while (task := pipe.recv()) is not None:
            status = work_on(
                plan,
                task.ref,
                task.history,
                reporter,
                trying=driver.trying,
                company=task.company,
            )
            log.finished(status)
            pipe.send(("finished", status.record()))


def die_with(driver: int) -> None:
    """Be killed when the driver is: two drivers' workers must not meet on one slide."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:
        os._exit(1)
