"""Workers in processes of their own on this machine, each watched over by the driver.

Whatever a native library does to its process, it does to one worker and one slide. The driver
holds the claims, hands out slides, notices deaths, hangs and hunger for memory, and starts a new
worker in place of each that is gone.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import replace
from multiprocessing.connection import wait

from microtome.errors import ConfigError, EngineError, MicrotomeError
from microtome.run.events import open_log
from microtome.run.inputs.staging import StagedQueue
from microtome.run.job import Job
from microtome.run.loading import needs_encoders
from microtome.run.planning.budget import cpu_budget
from microtome.run.progress import Reporter, TeeReporter
from microtome.store.status import SlideStatus
from microtome_engines import LocalConfig
from microtome_engines.memory import memory_share
from microtome_engines.process import WorkerProcess
from microtome_engines.worker import Orders

_LOOK = 0.2
"""Seconds between two looks at workers that say nothing."""

_STARTS = 2
"""Workers in one place that may be lost before their first slide; of the next, the run ends."""

_SUSPENDED = 5.0
"""Seconds between two looks that only a suspended driver takes."""

_GRACE = 10.0
"""Seconds that a worker has to drop its slide before it is killed."""


class LocalEngine:
    """Works through a job in supervised processes.

    Args:
        config: How many, where, and for how long to wait for them.

    Raises:
        ConfigError: If one of its numbers makes no sense.
    """

    def __init__(self, config: LocalConfig) -> None:
        for name in ("workers", "patience", "memory_gb"):
            value = getattr(config, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"engine.{name}={value:g} must be above 0.")
        self._config = config

    def run(self, job: Job) -> Generator[SlideStatus]:
        """Work through a job's slides, largest first unless one worker does them all.

        Yields:
            One status a slide.

        Raises:
            MicrotomeError: If no worker can start, or an encoder's weights cannot be had.
            ConfigError: If both slides and tiles of a slide are to be spread over GPUs.
        """
        if not job.slides:
            return
        tile_devices = job.plan.config.tile_devices
        if tile_devices and self._config.devices:
            raise ConfigError(
                f"engine.devices={self._config.devices} lets each worker see one GPU, and "
                f"tile_devices=[{','.join(tile_devices)}] wants all of them in one: leave one of "
                "the two out."
            )
        with open_log(job.plan.config.run_dir) as log:
            driver = _Driver(self._config, job, log)
            try:
                yield from driver.statuses()
            finally:
                driver.stop()


class _Driver:
    """A run's workers and what each of them does."""

    def __init__(self, config: LocalConfig, job: Job, log: Reporter) -> None:
        wanted = config.workers or len(config.devices) or 1
        self._count = max(1, min(wanted, len(job.slides)))
        self._config = config
        self._job = job
        self._log = log  # of what no worker tells
        self._reporter = TeeReporter(job.reporter, log)
        self._queue = StagedQueue(
            job.plan,
            job.slides,
            self._reporter,
            workers=self._count,
            keep_order=self._count == 1 and not job.plan.round,
        )
        self._memory = _memory(config, self._count)
        # Small enough for the pipe to hold, so that no worker that hangs at its start holds us up.
        bare = replace(job.plan.config, slides=(), resolved={}, threads=_threads(job, self._count))
        self._orders = Orders(
            config=bare,
            load=needs_encoders(job.plan, job.slides),
            round=job.plan.round,
            driver=os.getpid(),
        )
        self._workers: list[WorkerProcess] = []
        self._failed_starts: Counter[int] = Counter()
        self._looked = time.monotonic()

    def statuses(self) -> Iterator[SlideStatus]:
        """Give each slide's status as it ends."""
        for number in range(self._count):
            self._workers.append(self._start(number))
        while not self._queue.finished:
            yield from self._hand_out()
            for worker in self._workers_with_news():
                yield from self._listen(worker)
            self._excuse()
            for worker in list(self._workers):
                yield from self._look_after(worker)

    def _excuse(self) -> None:
        """Hold nobody's silence against them while all of us were suspended."""
        now = time.monotonic()
        if now - self._looked > _SUSPENDED:
            for worker in self._workers:
                worker.excuse(now - self._looked)
        self._looked = now

    def stop(self) -> None:
        """End all workers: those that work on a slide drop it."""
        for worker in self._workers:
            worker.ask_to_stop()
        deadline = time.monotonic() + _GRACE
        for worker in self._workers:
            worker.end(deadline)
            if worker.task is not None:
                self._queue.drop(worker.task)
                worker.task = None
        self._queue.close()

    def _start(self, number: int) -> WorkerProcess:
        devices = self._config.devices
        device = devices[number % len(devices)] if devices else None
        return WorkerProcess(number, self._orders, device)

    def _hand_out(self) -> Iterator[SlideStatus]:
        for worker in self._workers:
            while worker.idle and not self._queue.finished:
                taken = self._queue.take()
                if isinstance(taken, SlideStatus):
                    self._log.finished(taken)
                    yield taken
                    continue
                if taken is None:
                    return
                worker.give(taken, self._queue.company(taken, workers=self._count))

    def _workers_with_news(self) -> list[WorkerProcess]:
        pipes = wait([worker.pipe for worker in self._workers], _LOOK)
        return [worker for worker in self._workers if worker.pipe in pipes]

    def _listen(self, worker: WorkerProcess) -> Iterator[SlideStatus]:
        for message in worker.messages():
            match message:
                case ("ready",):
                    self._failed_starts[worker.number] = 0
                case ("finished", record):
                    if worker.task is not None:
                        self._queue.done(worker.task)
                        worker.task = None
                    yield SlideStatus.from_record(record)
                case ("stage", slide_id, stage, tiles):
                    worker.stage = stage
                    self._job.reporter.stage(slide_id, stage, tiles)
                case ("advance", slide_id, tiles):
                    self._job.reporter.advance(slide_id, tiles)
                case ("trying", reader):
                    if worker.task is not None:
                        worker.task.claim.note(reader=reader)
                case ("note", text):
                    self._job.reporter.note(text)
                case ("cannot", MicrotomeError() as error):
                    raise error

    def _look_after(self, worker: WorkerProcess) -> Iterator[SlideStatus]:
        how = worker.check(self._config.patience, self._memory)
        if not how:
            return
        yield from self._listen(worker)  # what it still said
        status = self._take_back(worker, how)
        self._workers[self._workers.index(worker)] = self._start(worker.number)
        if status is not None:
            self._log.finished(status)
            yield status

    def _take_back(self, worker: WorkerProcess, how: str) -> SlideStatus | None:
        """Take the slide of a worker that is gone, and say so if it is not tried again."""
        task, worker.task = worker.task, None
        innocent = worker.was_told_to_end or not worker.stage  # the worker never heard of it
        if task is not None and innocent:
            self._queue.give_back(task)
        if not worker.ready or (task is not None and not worker.stage):
            self._failed_starts[worker.number] += 1
            if self._failed_starts[worker.number] > _STARTS:
                raise EngineError(f"A worker cannot start: it {how}. engine=inline shows why.")
        if task is None or innocent:
            return None
        task.claim.note(stage=worker.stage)
        status = self._queue.died(task, how)
        if status is not None:
            return status
        self._reporter.note(
            f"{task.ref.slide_id}: its worker {how} at {worker.stage}; it is tried again, with "
            "smaller batches and another reader if there is one."
        )
        return None


def _memory(config: LocalConfig, workers: int) -> float:
    if config.memory_gb is not None:
        return config.memory_gb * 2**30
    return memory_share(workers)


def _threads(job: Job, workers: int) -> int:
    """Share out the run's CPUs."""
    return max(1, cpu_budget(job.plan.config.threads) // workers)
