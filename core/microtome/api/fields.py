"""Fields of the settings that slide2vec's users know, each with what it is among ours.

One declaration serves the mapping, its errors and the page that tells of it, so that none of the
three can say something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar

from microtome.errors import ConfigError
from microtome.plugin.registry import unknown

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


def check(settings: Any) -> None:
    """Refuse fields that have no counterpart.

    Raises:
        ConfigError: Naming the field and what does it here.
    """
    for each in fields(settings):
        value = getattr(settings, each.name)
        if _INSTEAD in each.metadata and value != each.default:
            raise ConfigError(
                f"{type(settings).__name__}.{each.name}={value!r} has no counterpart: "
                f"{each.metadata[_SAYS]}"
            )


def notes(settings: Any) -> Iterator[str]:
    """Say which fields were given and change nothing, and why."""
    for each in fields(settings):
        if each.metadata[_ONTO] or _INSTEAD in each.metadata or each.default_factory is not MISSING:
            continue
        if (value := getattr(settings, each.name)) != each.default:
            name = f"{type(settings).__name__}.{each.name}"
            yield f"{name}={value!r} changes nothing: {each.metadata[_SAYS]}"


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
    known = [each.name for each in fields(owner)]  # type: ignore[arg-type]
    for name in value:
        if name not in known:
            raise ConfigError(unknown(f"field of {owner.__name__}", str(name), known))
    return owner(**value)


def one_of(settings: Any, name: str, allowed: tuple[Any, ...]) -> None:
    """See that a field is one of some values.

    Raises:
        ConfigError: If it is not.
    """
    if (value := getattr(settings, name)) not in allowed:
        told = ", ".join(map(str, allowed))
        raise ConfigError(f"{type(settings).__name__}.{name}={value!r} is not one of {told}.")


def at_least(settings: Any, name: str, least: float) -> None:
    """See that a field is None, or a number that is not too small.

    Raises:
        ConfigError: If it is.
    """
    value = getattr(settings, name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise ConfigError(
            f"{type(settings).__name__}.{name}={value!r} must be a number of {least:g} or more."
        )
