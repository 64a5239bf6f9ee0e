"""How much memory a process has, and how much there is for it."""

from __future__ import annotations

import os
import re
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc")

_SHARE = 0.9
"""Of the machine's memory for all workers: beyond it the system kills what it likes."""

_OWN = re.compile(r"^(?:RssAnon|RssShmem):\s*(\d+) kB$", re.MULTILINE)


def memory_of(pid: int) -> int:
    """Measure a process's memory in bytes: its own, without files that it only looks into.

    0 where the system does not say.
    """
    try:
        status = (PROC / str(pid) / "status").read_text()
    except OSError:
        return 0
    return 1024 * sum(map(int, _OWN.findall(status)))


def memory_share(workers: int) -> float:
    """Share the memory of the machine, or what its scheduler granted, among workers: bytes each."""
    limits = [_machine()]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (CGROUP / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    slurm = os.environ.get("SLURM_MEM_PER_NODE", "")
    if slurm.isdigit() and int(slurm):
        limits.append(int(slurm) << 20)
    return _SHARE * min(limits) / workers


def _machine() -> float:
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        return float("inf")
