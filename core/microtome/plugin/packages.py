"""Looks up what is installed: modules, distributions' entry points, what a spec names.

The only file that imports by string.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from importlib.util import find_spec
from typing import Any

GROUP = "microtome"


def entry_points() -> list[importlib.metadata.EntryPoint]:
    """List the entry points of all distributions with plugins, each once."""
    points = {
        (p.dist.name if p.dist else "", p.name, p.value): p
        for p in importlib.metadata.entry_points(group=GROUP)
    }
    # Our own first, so that a clash is told of the newcomer.
    return [points[key] for key in sorted(points, key=lambda k: (k[0] != GROUP, *k))]


def canonical(name: str) -> str:
    """Give a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def installed(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def resolve(target: str) -> Any:
    """Import what a spec names: ``"package.module:Name"``."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
