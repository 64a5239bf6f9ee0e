"""How many CPUs this process may really use, and how a run shares them out.

Readers, models and image writers compete for the same CPUs. More threads than CPUs are slower than
few, and worst where a library starts a pool of its own inside of each thread: so there is one
budget, and pools inside of workers have one thread.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microtome.run.planning.encoders import PlannedEncoder

CGROUP = Path("/sys/fs/cgroup")

_LIGHT_PARAMS = 1_000_000
"""A network of fewer parameters computes a tile in less time than reading one takes."""

_MODEL_SHARE = 4
"""CPUs a reading worker where a network needs them: a ResNet-18 takes ten times what reading does,
every larger one more."""


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1
_TRIM_THRESHOLD, _MMAP_MAX = 64 << 20, 65536
"""Of mallopt(3): parameters, and what glibc arrives at by itself once large blocks were freed."""


@dataclass(frozen=True)
class Threads:
    """How the CPUs are shared out.

    Attributes:
        workers: Threads that read, resample, filter, and write images.
        torch: Threads of torch in each thread that encodes.
    """

    workers: int
    torch: int


ONE_EACH = Threads(1, 1)


def share_threads(
    cpus: int,
    encoders: Iterable[PlannedEncoder],
    *,
    workers: int | None = None,
    torch: int | None = None,
    replicas: int = 1,
) -> Threads:
    """Give the CPUs to what is the bottleneck.

    That is decided by what the encoders' cards say and never by timing: how many threads torch has
    can change the last bits of features, and those must not depend on how busy a machine was.

    Args:
        cpus: All that there are.
        encoders: Those of the run.
        workers: What the user asked for, which wins.
        torch: What the user asked for, which wins.
        replicas: How many of a network compute at once, each with torch's threads.

    Returns:
        A network on the CPU gets every CPU, its replicas a share each, and a few workers come on
        top: they are idle most of the time, since what they read in a second keeps it busy for
        ten. Where the user says how many it is to have, the workers get the rest. Without a
        network the workers get all, and torch, which has little to do, one.
    """
    if any(_is_heavy(encoder) for encoder in encoders):
        rest = cpus // _MODEL_SHARE if torch is None else cpus - torch * replicas
        return Threads(workers or max(1, rest), torch or max(1, cpus // replicas))
    return Threads(workers or cpus, torch or 1)


def _is_heavy(encoder: PlannedEncoder) -> bool:
    params = encoder.card.params
    on_cpu = encoder.device == "cpu" and "torch" in encoder.spec.requires
    return on_cpu and (params is None or params >= _LIGHT_PARAMS)


@contextmanager
def hold_pools(threads: Threads) -> Iterator[None]:
    """Hold the pools of OpenCV, BLAS and torch to a run's threads for the time of a block.

    Must enclose the start of the workers, each of which calls `work_alone`.
    """
    import cv2
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with keep_torch_threads(), threadpool_limits(1, user_api="blas"):
            if torch is not None:
                torch.set_num_threads(threads.torch)
            yield
    finally:
        cv2.setNumThreads(before)


@contextmanager
def keep_memory(encoders: Iterable[PlannedEncoder]) -> Iterator[None]:
    """Let the allocator keep what a network on the CPU frees, for the time of a block.

    glibc gives every large block back to the system and asks for it again in the next layer, and
    the first touch of its pages costs a ResNet-50 on 2 cores a third of its time and more. It
    takes no more memory than before: what is kept is used by the next layer.
    """
    with hold_heap() if any(map(_is_heavy, encoders)) else nullcontext():
        yield


@contextmanager
def hold_heap() -> Iterator[None]:
    """Let glibc keep freed memory for the time of a block; nothing where there is no glibc."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import ctypes

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # musl
        yield
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_MAX, _MMAP_MAX)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
        libc.malloc_trim(0)


def work_alone() -> None:
    """Let torch use only the calling thread in it.

    Threads that have not used torch yet get one too, until `keep_torch_threads` ends.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@contextmanager
def keep_torch_threads() -> Iterator[None]:
    """Give torch the number of threads back that it had, whatever a block makes of it.

    torch has one number a thread, and one for threads that are new to it. Asking for it first
    makes the calling thread's its own, which no other then changes.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_budget(asked: int | None = None) -> int:
    """Count the CPUs that a run may use: never the machine's when less was granted.

    Args:
        asked: What the user asked for, which wins.

    Returns:
        The smallest of the scheduling affinity, the cgroup quota and ``SLURM_CPUS_PER_TASK``;
        at least 1.
    """
    if asked is not None:
        return max(1, asked)
    granted = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _all_cpus()]
    quota = cgroup_quota()
    if quota is not None:
        granted.append(quota)
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit():
        granted.append(int(slurm))
    return max(1, min(granted))


def _all_cpus() -> int:
    return os.cpu_count() or 1


def cgroup_quota() -> int | None:
    """Read the CPU quota of cgroup v2, else v1; None where there is no limit."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (CGROUP / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (CGROUP / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return max(1, math.ceil(int(quota) / int(period)))
