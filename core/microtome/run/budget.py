"""How many CPUs this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


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
