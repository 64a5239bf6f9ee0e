"""Models by name: ours, and what other tools call them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import cast

from microtome.errors import ConfigError, UnknownPluginError
from microtome.plugin.aliases import listed, meant, plain, told
from microtome.plugin.registry import Registry, get_registry
from microtome.plugin.specs import BagEncoderSpec, EncoderSpec

KINDS = {"tile": "encoder", "slide": "slide_encoder", "patient": "patient_encoder"}
"""The kind of plugin of each level."""

_ORIGIN = "slide2vec"
"""The tool whose word counts where one name is a model of several levels."""

ModelSpec = EncoderSpec | BagEncoderSpec


def list_models(level: str | None = None) -> list[str]:
    """List the names that `Model.from_preset` takes, sorted.

    Plugins that cannot be loaded are told by a ``RuntimeWarning``.

    Args:
        level: ``"tile"``, ``"slide"`` or ``"patient"``; all if None.

    Raises:
        ConfigError: A ``ValueError``: if there is no such level.
    """
    registry = get_registry()
    if registry.broken:
        broken = "; ".join(f"{b.name} of {b.distribution}: {b.reason}" for b in registry.broken)
        warnings.warn(f"Plugins that cannot be loaded: {broken}", RuntimeWarning, stacklevel=2)
    return sorted({name for kind in _kinds(level) for name in registry.names(kind)})


def find_model(name: str, level: str | None, registry: Registry) -> ModelSpec:
    """Find a model by our name or another tool's.

    Our own name wins; where other tools mean another model by it, a ``RuntimeWarning`` says so.

    Args:
        name: Ours, another tool's or the hub's, in any case, with hyphens or underscores.
        level: Of the model; None for whatever it is.
        registry: The plugins.

    Raises:
        ConfigError: If the name means several; says which.
        UnknownPluginError: If it means none; says what there is.
    """
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{name!r} is no name of a model: microtome.list_models() lists them.")
    specs = [cast("ModelSpec", e.spec) for k in _kinds(level) for e in registry.entries(k)]
    own = [spec for spec in specs if plain(spec.name) == plain(name)]
    found = own or [s for s in specs if any(plain(n) == plain(name) for n in s.names.values())]
    found = found or [s for s in specs if plain(_hub_id(s)) == plain(name)]
    if len(found) > 1 and len({spec.kind for spec in found}) == len(found):
        theirs = [s for s in found if plain(s.names.get(_ORIGIN, "")) == plain(name)]
        found = theirs if len(theirs) == 1 else found
    if not found:
        raise UnknownPluginError(_unknown(name, specs))
    if len(found) > 1:
        raise ConfigError(_ambiguous(name, found))
    if own and (others := meant(name, (spec for spec in specs if spec not in own))):
        warnings.warn(_another(name, own[0], others), RuntimeWarning, stacklevel=3)
    return found[0]


def _another(name: str, own: ModelSpec, others: Mapping[str, Sequence[str]]) -> str:
    level = next(level for level, kind in KINDS.items() if kind == own.kind)
    names = dict.fromkeys(each for several in others.values() for each in several)
    return (
        f"{name!r} is the {level} model {own.name} here; {told(others)}. Ask for "
        f"{' or '.join(names)} if you mean that."
    )


def _unknown(name: str, specs: Sequence[ModelSpec]) -> str:
    names = {spec.name: spec.name for spec in specs}
    for spec in specs:
        theirs = filter(None, (*spec.names.values(), _hub_id(spec)))
        names |= {plain(known): spec.name for known in theirs}
    near = dict.fromkeys(names[each] for each in get_close_matches(plain(name), names, 5))
    hint = f" Near it are {listed([repr(each) for each in near])}." if near else ""
    return f"There is no model named {name!r}.{hint} microtome.list_models() lists them all."


def _hub_id(spec: ModelSpec) -> str:
    return getattr(spec.card, "hub_id", None) or ""


def _kinds(level: str | None) -> Sequence[str]:
    if level is None:
        return list(KINDS.values())
    if level not in KINDS:
        raise ConfigError(f"level={level!r} is not one of {', '.join(KINDS)}.")
    return [KINDS[level]]


def _ambiguous(name: str, found: Sequence[ModelSpec]) -> str:
    if len({spec.name for spec in found}) == 1:
        levels = [level for level, kind in KINDS.items() if kind in {s.kind for s in found}]
        choices = listed([f"level={level!r}" for level in levels])
        return f"{name!r} is a model of {len(levels)} levels: say which, {choices}."
    whose = []
    for spec in found:
        tools = [tool for tool, known in spec.names.items() if plain(known) == plain(name)]
        whose.append(f"{spec.name} ({listed(tools or ['the hub'])})")
    return f"{name!r} means several models: {listed(whose)}. Give our name of the one you mean."
