"""Models by name: ours, and what other tools call them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import cast

from microtome.errors import ConfigError, UnknownPluginError
from microtome.plugin.aliases import listed, plain
from microtome.plugin.registry import Registry, get_registry, unknown
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
        told = "; ".join(f"{b.name} of {b.distribution}: {b.reason}" for b in registry.broken)
        warnings.warn(f"Plugins that cannot be loaded: {told}", RuntimeWarning, stacklevel=2)
    return sorted({name for kind in _kinds(level) for name in registry.names(kind)})


def find_model(name: str, level: str | None, registry: Registry) -> ModelSpec:
    """Find a model by our name or another tool's.

    Args:
        name: In any case, with hyphens or underscores.
        level: Of the model; None for whatever it is.
        registry: The plugins.

    Raises:
        ConfigError: If the name means several; says which.
        UnknownPluginError: If it means none; says what there is.
    """
    specs = [cast("ModelSpec", e.spec) for k in _kinds(level) for e in registry.entries(k)]
    own = [spec for spec in specs if plain(spec.name) == plain(name)]
    found = own or [s for s in specs if any(plain(n) == plain(name) for n in s.names.values())]
    if len(found) > 1 and len({spec.kind for spec in found}) == len(found):
        theirs = [s for s in found if plain(s.names.get(_ORIGIN, "")) == plain(name)]
        found = theirs if len(theirs) == 1 else found
    if not found:
        names = sorted({spec.name for spec in specs})
        raise UnknownPluginError(unknown("model", name, names))
    if len(found) > 1:
        raise ConfigError(_ambiguous(name, found))
    return found[0]


def _kinds(level: str | None) -> Sequence[str]:
    if level is None:
        return list(KINDS.values())
    if level not in KINDS:
        raise ConfigError(f"level={level!r} is not one of {', '.join(KINDS)}.")
    return [KINDS[level]]


def _ambiguous(name: str, found: Sequence[ModelSpec]) -> str:
    if len({spec.name for spec in found}) == 1:
        levels = [level for level, kind in KINDS.items() if kind in {s.kind for s in found}]
        told = listed([f"level={level!r}" for level in levels])
        return f"{name!r} is a model of {len(levels)} levels: say which, {told}."
    whose = [
        f"{spec.name} ({listed([t for t, n in spec.names.items() if plain(n) == plain(name)])})"
        for spec in found
    ]
    return f"{name!r} means several models: {listed(whose)}. Give our name of the one you mean."
