"""Shares of a run as jobs of SLURM, submitted by submitit.

The jobs need no driver: it only looks on. Whoever ends it, or logs out, takes nothing from them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError
from submitit.helpers import Checkpointable

from microtome.errors import EngineError
from microtome.run.job import Job
from microtome.run.signals import Terminated, signals_interrupt
from microtome.store.status import SlideStatus
from microtome_engines import Cluster, SlurmConfig
from microtome_engines.shares import Share, gather, make_shares

_LINGER = 600.0
"""Seconds that a job does nothing after SIGTERM: by then its scheduler has ended it."""

_GRACE, _LOOK = 15.0, 0.2
"""Seconds that jobs have to end by themselves or drop their slides, and between two looks."""


class SlurmEngine:
    """Works through a job in an array of SLURM jobs.

    Args:
        config: How many, and what each of them is granted.
    """

    def __init__(self, config: SlurmConfig) -> None:
        self._config = config

    def run(self, job: Job) -> Generator[SlideStatus]:
        """Submit the array, and follow what becomes of the slides.

        Yields:
            One status a slide; none with ``engine.wait=false``.

        Raises:
            EngineError: If nothing can be submitted, or all jobs end before the slides do.
        """
        shares = make_shares(job, self._config, self._config.jobs, workers=self._config.workers)
        array = _Array(_submit(self._config, shares), self._config.cluster)
        output = job.plan.config.output
        job.reporter.note(
            f"Submitted {array}; their logs are in {shares[0].folder}. "
            f"`microtome status {output}` shows how they get on, also when this command has ended."
        )
        if self._config.wait:
            yield from gather(job, shares, array)


@dataclass(frozen=True)
class ShareJob(Checkpointable):
    """What a job of the array does.

    Attributes:
        share: Its share.
    """

    share: Share

    def __call__(self) -> None:
        """Work on the share; when the job's time is up, leave its slides to the next turn."""
        try:
            with signals_interrupt():
                self.share.work()
        except Terminated as ended:
            _make_way(ended.exit_code - 128)
            raise

    def checkpoint(self) -> DelayedSubmission:
        """Give what the job does at its next turn: the same, since all that is done is stored."""
        return DelayedSubmission(self)


def _make_way(signum: int) -> None:
    """Let submitit queue the job again, for which it has a handler of its own."""
    handlers = [signal.getsignal(number) for number in (signum, signal.SIGUSR2)]
    for handler in handlers:
        if callable(handler):
            handler(signum, None)
            break
    # submitit leaves SIGTERM to the scheduler, which queues a preempted job again, but only if
    # that has not ended by itself.
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        time.sleep(_LINGER)


def _submit(config: SlurmConfig, shares: Sequence[Share]) -> list[submitit.Job[None]]:
    if config.cluster is Cluster.slurm and shutil.which("srun") is None:
        raise EngineError(
            "This machine has no srun: start engine=slurm where sbatch and srun are, on a login "
            "node for instance. engine.cluster=local runs the jobs on this machine."
        )
    executor = submitit.AutoExecutor(
        folder=shares[0].folder,
        cluster=config.cluster.name,
        slurm_max_num_timeout=config.requeues,
        local_max_num_timeout=config.requeues,
    )
    executor.update_parameters(**_parameters(config))
    try:
        return list(executor.submit_array([ShareJob(share) for share in shares]))
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        said = " ".join(str(error).split())
        raise EngineError(f"The jobs cannot be submitted: {said}") from error


def _parameters(config: SlurmConfig) -> dict[str, Any]:
    extra = dict(word.lstrip("-").partition("=")[::2] for word in config.sbatch)
    return {
        "name": "microtome",
        "timeout_min": config.time_min,
        "cpus_per_task": config.cpus,
        "gpus_per_node": config.gpus or None,
        "mem_gb": config.memory_gb,
        "nodes": 1,
        "tasks_per_node": 1,
        "slurm_partition": config.partition,
        "slurm_account": config.account,
        "slurm_qos": config.qos,
        "slurm_array_parallelism": config.jobs,
        "slurm_setup": config.setup or None,
        "slurm_additional_parameters": {k: v or True for k, v in extra.items()} or None,
    }


class _Array:
    """The jobs as their driver sees them.

    Args:
        jobs: All of them.
        cluster: Where they run.
    """

    def __init__(self, jobs: list[submitit.Job[None]], cluster: Cluster) -> None:
        self._jobs = jobs
        self._cluster = cluster

    def __str__(self) -> str:
        ids = [job.job_id for job in self._jobs]
        first = ids[0].partition("_")[0]
        whole = first if all(name.startswith(f"{first}_") for name in ids) else ", ".join(ids)
        return f"{len(ids)} job{'s' if len(ids) > 1 else ''} ({whole})"

    @property
    def alive(self) -> bool:
        """Whether any job runs or waits for its turn."""
        return any(not job.done() for job in self._jobs)

    def look_after(self) -> Iterator[str]:
        """Do nothing: SLURM looks after its jobs."""
        return iter(())

    def stop(self, *, done: bool) -> None:
        """Take back what still waits or runs, which then drops its slides."""
        if done:
            self._wait_for(self._jobs)
        left = [job for job in self._jobs if not job.done()]
        if self._cluster is not Cluster.local:
            for job in left:
                with suppress(subprocess.SubprocessError, OSError):
                    job.cancel(check=False)
            return
        for job in left:  # what submitit sends leaves a second to clean up
            with suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)
        self._wait_for(left)

    def _wait_for(self, jobs: Sequence[submitit.Job[None]]) -> None:
        deadline = time.monotonic() + _GRACE
        while not all(job.done() for job in jobs) and time.monotonic() < deadline:
            time.sleep(_LOOK)
