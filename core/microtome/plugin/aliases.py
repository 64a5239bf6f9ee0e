"""Encoders by the names that other tools have for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from microtome.plugin.specs import BagEncoderSpec, EncoderSpec


def plain(text: str) -> str:
    """Give a name without the differences of spelling: lower case, underscores."""
    return re.sub(r"[-_\s]+", "_", text.strip().lower())


def meant(name: str, specs: Iterable[EncoderSpec | BagEncoderSpec]) -> dict[str, list[str]]:
    """Give the tools that call encoders so, each with what it means.

    Args:
        name: In any spelling.
        specs: Of the encoders.
    """
    found: dict[str, list[str]] = {}
    for spec in specs:
        for tool, known in spec.names.items():
            if plain(known) == plain(name):
                found.setdefault(tool, []).append(spec.name)
    return found


def told(found: Mapping[str, Sequence[str]]) -> str:
    """Phrase what `meant` gives: ``trident means a; lazyslide and stamp mean b``."""
    tools: dict[str, list[str]] = {}
    for tool, names in found.items():
        tools.setdefault(listed(names), []).append(tool)
    return "; ".join(
        f"{listed(who)} {'means' if len(who) == 1 else 'mean'} {names}"
        for names, who in tools.items()
    )


def listed(names: Sequence[str]) -> str:
    """Write names as a sentence does: ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
