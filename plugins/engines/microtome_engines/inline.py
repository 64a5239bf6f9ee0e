"""The engine without workers: the calling process does it all, slide by slide."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing

from microtome.plugin import NoConfig
from microtome.run.events import open_log
from microtome.run.inputs.staging import StagedQueue
from microtome.run.job import Job
from microtome.run.loading import load_needed
from microtome.run.planning.plan import RunPlan
from microtome.run.progress import Reporter, TeeReporter
from microtome.run.queue import Assignment
from microtome.run.working import work_on
from microtome.store.status import SlideStatus

_POLL = 0.2
"""Seconds between two looks for slides that others gave back, or that are being copied."""


class InlineEngine:
    """Works through a job in the calling process.

    Args:
        config: Nothing.
    """

    def __init__(self, config: NoConfig) -> None:
        """Do nothing: there is nothing to configure."""

    def run(self, job: Job) -> Generator[SlideStatus]:
        """Work through a job's slides, in the order given.

        Yields:
            One status a slide.

        Raises:
            MicrotomeError: If an encoder's weights cannot be had.
        """
        plan = job.plan
        load_needed(plan, job.slides)
        with open_log(plan.config.run_dir) as log:
            reporter = TeeReporter(job.reporter, log)
            queue = StagedQueue(plan, job.slides, reporter, keep_order=True)
            with closing(queue):
                for status in _statuses(plan, queue, reporter):
                    log.finished(status)
                    yield status


def _statuses(plan: RunPlan, queue: StagedQueue, reporter: Reporter) -> Iterator[SlideStatus]:
    while not queue.finished:
        taken = queue.take()
        if isinstance(taken, SlideStatus):
            yield taken
        elif taken is not None:
            yield _work(plan, queue, taken, reporter)
        else:
            time.sleep(_POLL)


def _work(plan: RunPlan, queue: StagedQueue, taken: Assignment, reporter: Reporter) -> SlideStatus:
    finished = False
    try:
        status = work_on(
            plan,
            taken.ref,
            taken.history,
            reporter,
            trying=lambda reader: taken.claim.note(reader=reader),
            company=queue.company(taken),
        )
        finished = True
        return status
    finally:
        (queue.done if finished else queue.drop)(taken)
