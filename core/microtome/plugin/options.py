"""Makes a plugin's configuration of options that come by name."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from microtome.errors import PluginError
from microtome.plugin.specs import PluginSpec
from microtome.plugin.wording import sentence, unknown

if TYPE_CHECKING:
    from microtome.plugin.registry import Registry


def configure(spec: PluginSpec, **options: Any) -> Any:
    """Make a plugin's configuration from keyword options.

    An option that is an ``Enum`` also takes the member's value or name as text, and one with
    options of its own a mapping of these.

    Raises:
        PluginError: If the plugin has no such option, an ``Enum`` no such member, or a number, a
            text, a word for yes or no, or a list of these is none.
    """
    return _make(spec.config, options, f"{spec.kind} {spec.name}")


def tasks_with(key: str, registry: Registry) -> list[str]:
    """Name the tasks that a key of a run is the name, or an option, of."""
    specs = [entry.spec for entry in registry.entries("task")]
    return [s.name for s in specs if key == s.name or key in {f.name for f in fields(s.config)}]


def _make(schema: type, options: Mapping[str, Any], owner: str) -> Any:
    defaults, made = schema(), dict(options)
    hints = get_type_hints(schema) if options else {}
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
        elif not _fits(hints[name], value):
            raise PluginError(f"{key}={value!r} does not fit: it takes {sentence(hints[name])}.")
    return schema(**made)


def _fits(hint: Any, value: object) -> bool:
    """Whether a value is of a type; what is no number, text or list of these its plugin judges."""
    arguments, is_bool = get_args(hint), isinstance(value, bool)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(each, value) for each in arguments)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not is_bool
    if hint in (bool, NoneType):
        return is_bool if hint is bool else value is None
    if hint is str:
        return isinstance(value, str | os.PathLike)
    if get_origin(hint) in (list, tuple) and len({*arguments} - {...}) == 1:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
            return False
        return all(_fits(arguments[0], each) for each in value)
    return True


def _member(enum: type[Enum], value: object, where: str) -> Enum:
    for member in enum:
        if value in (member.value, member.name):
            return member
    choices = ", ".join(str(member.value) for member in enum)
    raise PluginError(f"{where}={value} is not one of {choices}.")
