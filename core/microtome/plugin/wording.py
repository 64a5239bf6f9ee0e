"""Phrases what went wrong with a plugin, and what its options take."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any, get_args

_PHRASES = {
    "str": "text", "Path": "path", "int": "whole number", "float": "number",
    "bool": "true | false",
}  # fmt: skip
_SENTENCES = {
    str: "a text", Path: "a path", int: "a whole number", float: "a number",
    bool: "true or false", Any: "a word or a list",
}  # fmt: skip
_PLURALS = {str: "texts", Path: "paths", int: "whole numbers", float: "numbers"}


def unknown(what: str, name: str, available: Iterable[str], *, hint: str = "") -> str:
    """Phrase the error for a name that does not exist, with a near one if there is one.

    Args:
        what: The kind of thing.
        name: What there is none of.
        available: What there is.
        hint: A better sentence than the near name.
    """
    available = list(available)
    near = difflib.get_close_matches(name.lower(), available, 1)
    hint = hint or (f"Did you mean {near[0]!r}?" if near else "")
    told = f"Available: {', '.join(available) or 'none'}."
    return " ".join(filter(None, [f"There is no {what} named {name!r}.", hint, told]))


def of_task(key: str, tasks: Iterable[str], chosen: str) -> str:
    """Phrase the error for an option of another task than the one that is chosen."""
    return f"The option {key} goes with task={' or task='.join(tasks)}; this run is {chosen}."


def reason(error: BaseException) -> str:
    """Say why a stranger's code failed."""
    return f"{type(error).__name__}: {error}"


def phrase(hint: Any) -> str:
    """Phrase a type for people."""
    if hint is Any:
        return "word or list"
    if hint is type(None):
        return "null"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " | ".join(hint.__members__)
    arguments = get_args(hint)
    if arguments and getattr(hint, "__origin__", None) in (list, tuple):
        return f"list of {phrase(arguments[0])}"
    if arguments and getattr(hint, "__origin__", None) is dict:
        return "mapping"
    if arguments:
        return " or ".join(phrase(argument) for argument in arguments)
    name = str(hint.__name__)
    return _PHRASES.get(name, name)


def sentence(hint: Any) -> str:
    """Phrase a type as what an option takes: ``"a whole number, or null for the default"``."""
    arguments = get_args(hint)
    if type(None) in arguments:
        others = " or ".join(sentence(other) for other in arguments if other is not type(None))
        return f"{others}, or null for the default"
    if arguments and getattr(hint, "__origin__", None) in (list, tuple):
        return f"a list of {_PLURALS.get(arguments[0], phrase(arguments[0]))}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(hint.__members__)}"
    return _SENTENCES.get(hint, phrase(hint))
