"""Fields of the settings that slide2vec's users know, each with what it is among ours.

One declaration serves the mapping, its errors and the page that tells of it, so that none of the
three can say something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from microtome.errors import ConfigError
from microtome.plugin.wording import unknown

_ONTO, _SAYS, _INSTEAD = "microtome.onto", "microtome.says", "microtome.instead"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """A field as the documentation tells of it.

    Attributes:
        owner: The class.
        name: The field.
        default: Its default, as written.
        onto: The keys of a run that it sets; empty where it sets none.
        says: What it does, in a sentence.
        refused: Whether any other value than the default is refused.
    """

    owner: str
    name: str
    default: str
    onto: tuple[str, ...]
    says: str
    refused: bool


def mapped(default: Any, *onto: str, says: str) -> Any:
    """Declare a field that sets keys of a run.

    Args:
        default: Immutable; or a type, which is called without arguments.
        *onto: The keys, as on a command line: ``tiler.mpp``.
        says: A sentence for the documentation.
    """
    return _declare(default, {_ONTO: onto, _SAYS: says})


def hint(default: Any, *, says: str) -> Any:
    """Declare a field that is accepted and changes no result, with the reason.

    A run notes it where it is not at its default.
    """
    return _declare(default, {_ONTO: (), _SAYS: says})


def refused(default: Any, *, instead: str) -> Any:
    """Declare a field that has no counterpart: any other value is refused, naming what has."""
    return _declare(default, {_ONTO: (), _SAYS: instead, _INSTEAD: True})


def _declare(default: Any, metadata: Mapping[str, Any]) -> Any:
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def describe(owner: type) -> Iterator[Mapped]:
    """Tell of every field of a class."""
    for each in fields(owner):
        yield Mapped(
            owner=owner.__name__,
            name=each.name,
            default=_default(each),
            onto=tuple(each.metadata[_ONTO]),
            says=each.metadata[_SAYS],
            refused=_INSTEAD in each.metadata,
        )


def _default(each: Field[Any]) -> str:
    made: Any = each.default_factory
    return repr(each.default) if made is MISSING else f"{made.__name__}()"


def named_fields(owner: type[T]) -> type[T]:
    """Have a dataclass refuse a misspelt field as everything else is refused, with a near one."""
    known = [each.name for each in fields(owner)]  # type: ignore[arg-type]
    made = owner.__init__

    @wraps(made)
    def init(self: Any, **given: Any) -> None:
        for name in given:
            if name not in known:
                raise ConfigError(unknown(f"field of {owner.__name__}", name, known))
        made(self, **given)

    owner.__init__ = init  # type: ignore[method-assign]
    return owner


def check(settings: Any) -> None:
    """Refuse fields that have no counterpart, and values that are not of their field's type.

    Numbers of numpy become Python's.

    Raises:
        ConfigError: Naming the field, and what does it here or what it may be.
    """
    types = get_type_hints(type(settings))
    for each in fields(settings):
        value = getattr(settings, each.name)
        if _INSTEAD not in each.metadata:
            where = f"{type(settings).__name__}.{each.name}"
            object.__setattr__(settings, each.name, _typed(where, value, types[each.name]))
        elif value != each.default:
            raise ConfigError(
                f"{type(settings).__name__}.{each.name}={value!r} has no counterpart: "
                f"{each.metadata[_SAYS]}"
            )


_TOLD = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    Path: "a path",
    Mapping: "a mapping",
    NoneType: "None",
}


def _typed(where: str, value: Any, wanted: Any) -> Any:
    kinds = [get_origin(kind) or kind for kind in get_args(wanted) or (wanted,)]
    if get_origin(wanted) is Mapping:
        kinds = [Mapping]
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if int in kinds and is_number and isinstance(value, Integral):
        return int(value)
    if float in kinds and is_number and math.isfinite(value):
        return float(value)
    if isinstance(value, tuple(kind for kind in kinds if kind not in (int, float))):
        return value
    told = " or ".join(_TOLD.get(kind, kind.__name__) for kind in kinds)
    raise ConfigError(f"{where}={value!r} must be {told}.")


def refuse_twice(settings: Any, node: str, given: Mapping[str, Any], name: str) -> None:
    """Refuse options that a field of the same settings sets, too.

    Args:
        settings: With fields that are mapped onto keys of the node.
        node: Of a run: ``"tiler"``.
        given: Options by our names.
        name: The field that they are given by.

    Raises:
        ConfigError: Naming both.
    """
    for each in fields(settings):
        value = getattr(settings, each.name)
        for key in given if value != each.default else ():
            if f"{node}.{key}" in each.metadata[_ONTO]:
                raise ConfigError(
                    f"{type(settings).__name__}: {name}={{{key!r}: {given[key]!r}}} and "
                    f"{each.name}={value!r} set the same option: give one of them."
                )


def notes(settings: Any) -> Iterator[str]:
    """Say which fields were given and change nothing, and why."""
    for each in fields(settings):
        if each.metadata[_ONTO] or _INSTEAD in each.metadata or each.default_factory is not MISSING:
            continue
        if (value := getattr(settings, each.name)) != each.default:
            name = f"{type(settings).__name__}.{each.name}"
            yield f"{name}={value!r} changes nothing: {each.metadata[_SAYS]}"


def given(settings: Any) -> list[str]:
    """Name the fields that are not at their defaults."""
    plain = type(settings)()
    return [f.name for f in fields(settings) if getattr(settings, f.name) != getattr(plain, f.name)]


def coerced(owner: type[T], value: T | Mapping[str, Any]) -> T:
    """Make a section of settings out of a mapping; one that is made already is given back.

    Raises:
        ConfigError: If it names a field that there is not.
    """
    if isinstance(value, owner):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{value!r} is no {owner.__name__}: give one, or a mapping of its fields."
        )
    return owner(**{str(name): given for name, given in value.items()})


def one_of(settings: Any, name: str, allowed: tuple[Any, ...]) -> None:
    """See that a field is one of some values.

    Raises:
        ConfigError: If it is not.
    """
    if (value := getattr(settings, name)) not in allowed:
        told = ", ".join(map(str, allowed))
        raise ConfigError(f"{type(settings).__name__}.{name}={value!r} is not one of {told}.")


def at_least(settings: Any, name: str, least: float, most: float = math.inf) -> None:
    """See that a field is None, or a number that is neither too small nor too large.

    Raises:
        ConfigError: If it is.
    """
    value = getattr(settings, name)
    if value is None or least <= value <= most:
        return
    allowed = f"of {least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"
    raise ConfigError(f"{type(settings).__name__}.{name}={value!r} must be a number {allowed}.")
