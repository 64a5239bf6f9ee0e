"""Shares: whole runs over one list of slides, each in a process, a job or on a host of its own.

Every share goes through the whole list. Claims sort out who works on what, and what becomes of a
slide in one of them holds for all, since they are one round. So shares may start late, be lost or
come back: those that are left do the rest. Each writes a log that its driver follows.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from microtome.errors import EngineError, MicrotomeError, StoreError
from microtome.plugin.files import add_files
from microtome.plugin.registry import get_registry
from microtome.run.events import Event, EventFollower, EventLog
from microtome.run.job import Job
from microtome.run.planning.plan import make_plan, name_round
from microtome.run.settings import RunConfig
from microtome.run.signals import Terminated, signals_interrupt
from microtome.slide.types import SlideRef
from microtome.store.claims import forget_attempts
from microtome.store.status import FAILED, SlideStatus, read_status
from microtome_engines import LocalConfig, ShareConfig
from microtome_engines.local import LocalEngine
from microtome_engines.worker import die_with

_LOOK = 0.5
"""Seconds between two looks at what shares wrote."""

_LAG = 5.0
"""Seconds that a shared file system may take to show what a host that has ended wrote last."""

_CANNOT = "A worker cannot go on: "


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one host does of a run. Can be pickled.

    Attributes:
        number: Its place among the shares.
        config: The run.
        engine: How many workers it starts.
        slides: All slides of the run.
        folder: Of the logs.
        cwd: What relative paths are relative to.
    """

    number: int
    config: RunConfig
    engine: LocalConfig
    slides: tuple[SlideRef, ...]
    folder: Path
    cwd: Path

    def work(self) -> None:
        """Go through the slides until every one of them is finished, here or elsewhere.

        Raises:
            MicrotomeError: If this host cannot work at all.
            KeyboardInterrupt: If it was interrupted.
        """
        if not self.cwd.is_dir():
            raise EngineError(
                f"{socket.gethostname()} has no folder {self.cwd}. Start the run in a folder that "
                "all its hosts see."
            )
        os.chdir(self.cwd)
        name = f"{self.number:03d}-{socket.gethostname()}-{os.getpid()}.jsonl"
        with _ShareLog(self.folder / name) as log:
            try:
                registry = add_files(get_registry(), self.config.encoder_plugin)
                plan = make_plan(self.config, registry)
                job = Job(plan=plan, slides=self.slides, reporter=log)
                with closing(LocalEngine(self.engine).run(job)) as statuses:
                    for status in statuses:
                        log.finished(status)
            except MicrotomeError as error:
                log.note(f"{_CANNOT}{error}")
                raise


class _ShareLog(EventLog):
    """Leaves out slides that another share finished."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._own: set[str] = set()

    def stage(self, slide_id: str, stage: str, tiles: int = 0) -> None:
        """Log it, and know the slide for one of this share's."""
        self._own.add(slide_id)
        super().stage(slide_id, stage, tiles)

    def finished(self, status: SlideStatus) -> None:
        """Log the end of one of this share's slides, and of what never was begun."""
        if status.slide_id in self._own or status.state in FAILED:
            super().finished(status)


class Fleet(Protocol):
    """What shares run in, as their driver sees it."""

    @property
    def alive(self) -> bool:
        """Whether any share is worked on, or waits for its turn."""

    def look_after(self) -> Iterator[str]:
        """Replace what was lost, and say so."""

    def stop(self, *, done: bool) -> None:
        """End every share: slides that are worked on are dropped.

        Args:
            done: Whether all slides are finished, so that shares are about to end by themselves.
        """


def make_shares(
    job: Job, settings: ShareConfig, count: int, *, workers: int | None = None
) -> list[Share]:
    """Make the shares of a run.

    Args:
        job: The run's plan and slides.
        settings: What each share has.
        count: How many; no more are made than there are slides.
        workers: Processes in each; one for each GPU, else one, if None.
    """
    config = job.plan.config
    run_dir = config.run_dir or job.plan.layout.runs_folder / uuid4().hex[:12]
    if config.claims.retry:  # once: what a share dies of in this run counts for all
        for ref in job.slides:
            forget_attempts(job.plan.layout, ref.slide_id)
    claims = replace(
        config.claims, wait=True, retry=False, round=config.claims.round or uuid4().hex
    )
    engine = LocalConfig(
        workers=workers,
        devices=list(range(settings.gpus)) if settings.gpus > 1 else [],
        patience=settings.patience,
        memory_gb=_worker_memory(settings, workers),
    )
    return [
        Share(
            number=number,
            config=replace(config, claims=claims, threads=config.threads or settings.cpus),
            engine=engine,
            slides=job.slides,
            folder=run_dir / "shares",
            cwd=Path.cwd(),
        )
        for number in range(max(1, min(count, len(job.slides))))
    ]


def _worker_memory(settings: ShareConfig, workers: int | None) -> float | None:
    """Share out what a job is granted; less than all, since its supervisor needs some."""
    if settings.memory_gb is None:
        return None
    return 0.9 * settings.memory_gb / (workers or settings.gpus or 1)


def gather(job: Job, shares: Sequence[Share], fleet: Fleet) -> Generator[SlideStatus]:
    """Follow shares, and tell of each slide once.

    Args:
        job: The run's plan and slides, and who is told.
        shares: All of them.
        fleet: What they run in; stopped when this ends.

    Yields:
        One status a slide, that of the share which finished it.

    Raises:
        EngineError: If all shares end before the slides do.
    """
    done = False
    try:
        yield from _Gathering(job, shares[0]).statuses(fleet)
        done = True
    finally:
        fleet.stop(done=done)


class _Gathering:
    """What is known of a run's slides.

    Args:
        job: The run.
        share: Any of its shares.
    """

    def __init__(self, job: Job, share: Share) -> None:
        self._job = job
        self._missing = {ref.slide_id: ref for ref in job.slides}
        self._follower = EventFollower(share.folder)
        self._round = name_round(share.config)
        self._folder = share.folder
        self._why = ""

    def statuses(self, fleet: Fleet) -> Iterator[SlideStatus]:
        """Give what shares log, until every slide is told of."""
        ended: float | None = None
        while self._missing:
            if fleet.alive:  # asked before the last look
                ended = None
            elif ended is None:
                ended = time.monotonic()
            for event in self._follower.poll():
                yield from self._hear(event)
            if ended is not None and time.monotonic() - ended > _LAG:
                yield from self._recorded()
                self._refuse_missing()
            for text in fleet.look_after():
                self._job.reporter.note(text)
            if self._missing:
                time.sleep(_LOOK)

    def _hear(self, event: Event) -> Iterator[SlideStatus]:
        if event.text.startswith(_CANNOT):
            self._why = f" {event.text}"
        if event.status is None:
            event.tell(self._job.reporter)
        elif event.status.round == self._round and event.slide_id in self._missing:
            del self._missing[event.slide_id]
            yield event.status

    def _recorded(self) -> Iterator[SlideStatus]:
        """Give what was recorded of slides whose share was lost before it could log them."""
        for slide_id in list(self._missing):
            with suppress(StoreError):
                status = read_status(self._job.plan.layout.status(slide_id))
                if status.round == self._round:
                    del self._missing[slide_id]
                    yield status

    def _refuse_missing(self) -> None:
        if self._missing:
            raise EngineError(
                f"All workers ended with {len(self._missing)} slides unfinished; the same command "
                f"goes on. What they said is in {self._folder}.{self._why}"
            )


def send(share: Share) -> bytes:
    """Give what `main` reads."""
    return pickle.dumps(list(sys.path)) + pickle.dumps(share)


def main(driver: int) -> int:
    """Work on a share that comes through the standard input.

    Args:
        driver: The process that it must not outlive.

    Returns:
        The exit code: 0, 1 if this host cannot work, or that of the signal that ended it.
    """
    die_with(driver)
    sys.path[:] = pickle.load(sys.stdin.buffer)
    try:
        share: Share = pickle.load(sys.stdin.buffer)
        with signals_interrupt():
            share.work()
    except Terminated as ended:
        return ended.exit_code
    except MicrotomeError as error:
        sys.stderr.write(f"microtome: {error}\n")
        return 1
    return 0
