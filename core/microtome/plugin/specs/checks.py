"""What a spec must be for the registry to take it."""

from __future__ import annotations

import re
from dataclasses import is_dataclass

from microtome.plugin.specs.base import PluginSpec

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def check(spec: object, spec_type: type[PluginSpec]) -> None:
    """Refuse what a hook gave if it is no spec that the registry can use.

    Args:
        spec: What the hook gave.
        spec_type: What it has to be.

    Raises:
        TypeError: If it is no such spec, or its configuration is no plain dataclass.
        ValueError: If its name or its target is malformed.
    """
    if not isinstance(spec, spec_type):
        raise TypeError(
            f"microtome_{spec_type.kind}s gave {spec!r}, which is no {spec_type.__name__}"
        )
    if not _NAME.fullmatch(spec.name):
        raise ValueError(
            f"the name {spec.name!r} is not lower case letters, digits and underscores"
        )
    if spec.target.count(":") != 1:
        raise ValueError(
            f"the target {spec.target!r} of {spec.name!r} is not 'package.module:Name'"
        )
    if not is_dataclass(spec.config):
        raise TypeError(f"the config of {spec.name!r} is no dataclass")
    if getattr(spec.config, "__dataclass_params__").frozen:  # noqa: B009
        raise TypeError(f"the config of {spec.name!r} is frozen, which makes every override fail")
