"""How much memory a process has, and how much there is for it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from microtome.run.planning.budget import cpu_budget

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
    for path in _limits():
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    for name, times in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", cpu_budget())):
        mebibytes = os.environ.get(name, "")
        if mebibytes.isdigit() and int(mebibytes):
            limits.append((int(mebibytes) << 20) * times)
    return _SHARE * min(limits) / workers


def _limits() -> Iterator[Path]:
    """Give where the limits of this process's control group may stand, and of those around it."""
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in (*lines, "0::/", "0:memory:/"):
        _, controllers, group = line.split(":", 2)
        name = "memory.limit_in_bytes" if "memory" in controllers.split(",") else "memory.max"
        if controllers and name == "memory.max":
            continue
        root = CGROUP / "memory" if controllers else CGROUP
        folder = root / group.lstrip("/")
        yield from (each / name for each in (folder, *folder.parents) if each.is_relative_to(root))


def _machine() -> float:
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        return float("inf")
