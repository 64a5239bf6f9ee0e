"""Shares of a run as actors of a Ray cluster."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from microtome.errors import EngineError
from microtome.run.job import Job
from microtome.store.status import SlideStatus
from microtome_engines import RayConfig
from microtome_engines.shares import Share, gather, make_shares, send

_GRACE = 15.0
"""Seconds that a share has to drop its slides."""

_RESTARTS = 20
"""How often one share may be lost before the cluster is given up."""

_START = "import sys; from microtome_engines.shares import main; sys.exit(main({}))"


class RayEngine:
    """Works through a job in actors.

    Args:
        config: Which cluster, how many actors, and what each of them asks for.
    """

    def __init__(self, config: RayConfig) -> None:
        self._config = config

    def run(self, job: Job) -> Generator[SlideStatus]:
        """Start the actors, and follow what becomes of the slides.

        Yields:
            One status a slide.

        Raises:
            EngineError: If there is no such cluster, or its nodes keep being lost.
        """
        shares = make_shares(job, self._config, self._config.workers)
        with _connected(self._config.address):
            yield from gather(job, shares, _Actors(self._config, shares))


class ShareHost:
    """An actor: a share in a process of its own, which signals reach and crashes leave alone.

    Args:
        share: The share.
    """

    def __init__(self, share: Share) -> None:
        share.folder.mkdir(parents=True, exist_ok=True)
        with (share.folder / f"{share.number:03d}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START.format(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        with suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.write(send(share))
                self._process.stdin.close()

    def poll(self) -> int | None:
        """Give the share's exit code; None while it works."""
        return self._process.poll()

    def stop(self) -> None:
        """Let it drop its slides, and wait until it has."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._process.kill()


class _Actors:
    """The actors as their driver sees them.

    Args:
        config: What each of them asks for.
        shares: One for each.
    """

    def __init__(self, config: RayConfig, shares: Sequence[Share]) -> None:
        self._host = ray.remote(ShareHost).options(
            num_cpus=config.cpus or 1,
            num_gpus=config.gpus,
            memory=None if config.memory_gb is None else int(config.memory_gb * 2**30),
        )
        self._shares = {share.number: share for share in shares}
        self._losses = dict.fromkeys(self._shares, 0)
        self._actors: dict[int, Any] = {}
        self._polls: dict[int, Any] = {}
        self._heard: set[int] = set()  # the others wait for a node
        for number in self._shares:
            self._start(number)

    @property
    def alive(self) -> bool:
        """Whether any share is worked on, or waits for a node."""
        return bool(self._actors)

    def look_after(self) -> Iterator[str]:
        """Start shares again that were lost, and say so."""
        if not self._polls:
            return
        ready, _ = ray.wait(list(self._polls.values()), num_returns=len(self._polls), timeout=0)
        for number, poll in list(self._polls.items()):
            if poll in ready:
                yield from self._hear(number, poll)

    def stop(self, *, done: bool) -> None:
        """End every share; those that are done do not mind."""
        with suppress(RayError):
            stops = [self._actors[number].stop.remote() for number in self._heard]
            ray.get(stops, timeout=_GRACE + 1)
        for actor in self._actors.values():
            ray.kill(actor)

    def _start(self, number: int) -> None:
        self._actors[number] = self._host.remote(self._shares[number])
        self._polls[number] = self._actors[number].poll.remote()

    def _hear(self, number: int, poll: Any) -> Iterator[str]:
        try:
            code = ray.get(poll)
            self._heard.add(number)
        except ActorUnavailableError:
            code = None
        except RayActorError:
            yield from self._replace(number, "was lost with its node")
            return
        if code is None:
            self._polls[number] = self._actors[number].poll.remote()
        elif code in (0, 1):  # all is done, or it said why it cannot work
            self._forget(number)
        else:
            yield from self._replace(number, f"ended with exit code {code}")

    def _forget(self, number: int) -> None:
        del self._actors[number], self._polls[number]
        self._heard.discard(number)

    def _replace(self, number: int, how: str) -> Iterator[str]:
        self._losses[number] += 1
        if self._losses[number] > _RESTARTS:
            self._forget(number)
            yield f"Actor {number} {how} for the {_RESTARTS + 1}th time; it is given up."
            return
        ray.kill(self._actors[number])
        self._heard.discard(number)
        self._start(number)
        yield f"Actor {number} {how}; it is started again on a node that lives."


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Join a cluster, or start one, unless the process has one already."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # a bare one where a node starts too slowly
        said = " ".join(str(error).split())
        if address:
            raise EngineError(
                f"No Ray cluster answers at engine.address={address}; `ray status` shows those "
                f"that run. {said}"
            ) from error
        raise EngineError(
            f"Ray cannot start a cluster of its own on this machine. {said}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
