"""Makes a plugin's configuration of options that come by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from microtome.errors import PluginError
from microtome.plugin.specs import PluginSpec
from microtome.plugin.wording import unknown


def configure(spec: PluginSpec, **options: Any) -> Any:
    """Make a plugin's configuration from keyword options.

    An option that is an ``Enum`` also takes the member's value or name as text, and one with
    options of its own a mapping of these.

    Raises:
        PluginError: If the plugin has no such option, or an ``Enum`` no such member.
    """
    return _make(spec.config, options, f"{spec.kind} {spec.name}")


def _make(schema: type, options: Mapping[str, Any], owner: str) -> Any:
    defaults, made = schema(), dict(options)
    known = [f.name for f in fields(schema)]
    for name, value in options.items():
        if name not in known:
            raise PluginError(unknown(f"option of {owner}", name, known))
        default, key = getattr(defaults, name), f"{owner.replace(' ', '.')}.{name}"
        if isinstance(default, Enum) and not isinstance(value, Enum):
            made[name] = _member(type(default), value, key)
        elif is_dataclass(default) and not is_dataclass(value):
            if not isinstance(value, Mapping):
                raise PluginError(f"{key}={value!r} says nothing of its options: give a mapping.")
            made[name] = _make(type(default), value, f"{owner}.{name}")
    return schema(**made)


def _member(enum: type[Enum], value: object, where: str) -> Enum:
    for member in enum:
        if value in (member.value, member.name):
            return member
    choices = ", ".join(str(member.value) for member in enum)
    raise PluginError(f"{where}={value} is not one of {choices}.")
