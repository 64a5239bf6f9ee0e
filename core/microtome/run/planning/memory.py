"""How much memory is free where a model runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc")

_AVAILABLE = re.compile(r"^MemAvailable:\s*(\d+) kB$", re.MULTILINE)
_CACHE = re.compile(r"^(?:total_)?inactive_file (\d+)$", re.MULTILINE)
_FILES = (
    ("", "memory.max", "memory.current"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Of a control group, version 2 and 1: its folder, the limit, and what it uses."""


def free_memory(device: str) -> int | None:
    """Measure what a model may still take on a device, in bytes; None where nobody says.

    On a GPU what torch holds in reserve counts as free; elsewhere it is the smaller of what the
    machine has available and what control groups still grant.
    """
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None:
        free, _ = torch.cuda.mem_get_info(device)
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + reserve)
    return min(_system(), default=None)


def _system() -> Iterator[int]:
    try:
        found = _AVAILABLE.search((PROC / "meminfo").read_text())
    except OSError:
        found = None
    if found:
        yield 1024 * int(found[1])
    for controller, limit, used in _FILES:
        folder = CGROUP / controller
        try:
            granted, taken = ((folder / name).read_text().strip() for name in (limit, used))
            cache = _CACHE.search((folder / "memory.stat").read_text())
        except OSError:
            continue
        if granted.isdigit():
            yield int(granted) - int(taken) + (int(cache[1]) if cache else 0)
