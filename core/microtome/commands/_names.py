"""Encoders by the names that people know them by."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import cast

from microtome.errors import UnknownPluginError
from microtome.plugin.aliases import meant, plain, told
from microtome.plugin.registry import Registered, Registry
from microtome.plugin.specs import BagEncoderSpec, EncoderSpec

LEVELS: Mapping[str, str] = MappingProxyType(
    {"tile": "encoder", "slide": "slide_encoder", "patient": "patient_encoder"}
)
"""The kinds of encoders by what they embed."""

ModelSpec = EncoderSpec | BagEncoderSpec


def matches(spec: ModelSpec, word: str) -> bool:
    """Tell whether a word is in what is said of an encoder, whatever its case and hyphens."""
    card = spec.card
    texts = [spec.name, spec.summary, domain_of(spec), *spec.names.values()]
    texts += [card.hub_id or "", card.paper] if card else []
    return any(plain(word) in plain(text) for text in texts)


def domain_of(spec: ModelSpec) -> str:
    """Say what a patch encoder learned from; empty for what takes features."""
    return spec.domain if isinstance(spec, EncoderSpec) else ""


def resolve(name: str, registry: Registry, level: str = "") -> tuple[Registered, list[str]]:
    """Look an encoder up by its name here, or by the one that another tool has for it.

    Args:
        name: In any spelling.
        registry: The plugins.
        level: One of `LEVELS`; all if empty, tiles' before slides' before patients'.

    Returns:
        The encoder, and sentences about names that may mislead.

    Raises:
        UnknownPluginError: If there is none, or tools mean several by that name.
    """
    kinds = [LEVELS[level]] if level else [*LEVELS.values()]
    own = plain(name)
    here = [kind for kind in kinds if own in registry.names(kind)]
    if here:
        others = {tool: f for tool, f in _meant(name, registry, here[0]).items() if own not in f}
        notes = [f"Mind that {told(others)} by {name!r}."] if others else []
        notes += [
            f"There is a {kind.replace('_', ' ')} of that name, too: --level {_level(kind)}."
            for kind in here[1:]
        ]
        return registry.find(here[0], own), notes
    for kind in kinds:
        meant_by = _meant(name, registry, kind)
        found = sorted({other for others in meant_by.values() for other in others})
        if len(found) > 1:
            raise UnknownPluginError(
                f"No encoder is named {name!r} here, and elsewhere it is not just one: "
                f"{told(meant_by)}."
            )
        if found:
            return registry.find(kind, found[0]), [f"By {name!r} {told(meant_by)}."]
    raise UnknownPluginError(_unknown(name, registry, kinds))


def _meant(name: str, registry: Registry, kind: str) -> dict[str, list[str]]:
    return meant(name, map(spec_of, registry.entries(kind)))


def _level(kind: str) -> str:
    return next(level for level, of_level in LEVELS.items() if of_level == kind)


def _unknown(name: str, registry: Registry, kinds: Sequence[str]) -> str:
    specs = [spec_of(entry) for kind in kinds for entry in registry.entries(kind)]
    known = {plain(other) for spec in specs for other in (spec.name, *spec.names.values())}
    near = difflib.get_close_matches(plain(name), sorted(known), 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    others = "" if len(kinds) == 1 else ", with --level slide or --level patient the others"
    level = f" --level {_level(kinds[0])}" if kinds[0] != "encoder" else ""
    count = len(registry.names(kinds[0]))
    return (
        f"There is no encoder named {name!r}.{hint} microtome encoders{level} lists all {count}"
        f"{others}."
    )


def spec_of(entry: Registered) -> ModelSpec:
    """Give an encoder's spec."""
    return cast(ModelSpec, entry.spec)
