"""Makes a plugin's configuration of options that come by name."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from typing import Any

from microtome.errors import PluginError
from microtome.plugin.specs import PluginSpec
from microtome.plugin.wording import unknown


def configure(spec: PluginSpec, **options: Any) -> Any:
    """Make a plugin's configuration from keyword options.

    An option that is an ``Enum`` also takes the member's value or name as text.

    Raises:
        PluginError: If the plugin has no such option, or an ``Enum`` no such member.
    """
    defaults = spec.config()
    known = [f.name for f in fields(spec.config)]
    for name, value in options.items():
        if name not in known:
            raise PluginError(unknown(f"option of {spec.kind} {spec.name}", name, known))
        default = getattr(defaults, name)
        if isinstance(default, Enum) and not isinstance(value, Enum):
            options[name] = _member(type(default), value, f"{spec.kind}.{spec.name}.{name}")
    return spec.config(**options)


def _member(enum: type[Enum], value: object, where: str) -> Enum:
    for member in enum:
        if value in (member.value, member.name):
            return member
    choices = ", ".join(str(member.value) for member in enum)
    raise PluginError(f"{where}={value} is not one of {choices}.")
