"""Completes a line by what Hydra offers and by what it does not know: members, lists, verbs."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from microtome.config.argv import chosen_task, head_of, keep_overrides
from microtome.config.options import SEVERAL, SINGLE, RunOptions
from microtome.config.schema import RUN_OWNS, SECTIONS
from microtome.plugin import NoConfig
from microtome.plugin.registry import Registry

_LIST = re.compile(r"(?P<key>\+?\w+)=(?P<before>\[(?:[^][,]*,)*)(?P<last>[^][,]*)")
_INNER = re.compile(r"slides[.=]|(.*\.)?plugin=")


def complete(
    line: str, offers: Callable[[str], list[str]], registry: Registry, verbs: Collection[str]
) -> list[str]:
    """Complete the last word of a line.

    Args:
        line: The program's name and the words so far, the last one perhaps unfinished.
        offers: Hydra's completion of such a line.
        registry: The plugins.
        verbs: What the first word may be.
    """
    words = re.split(r"\s+", line.lstrip())
    word = words[-1] if len(words) > 1 else ""
    task = chosen_task(words[1:-1])
    if task not in registry.names("task"):
        return _complete(line, offers, registry, verbs)
    # Options of the task need not say whose they are: Hydra, whose words they become, must hear.
    own = {field.name for field in fields(registry.find("task", task).spec.config)}
    kept = keep_overrides(line).split(" ")[1:-1]
    before = " ".join([words[0], *(f"{task}.{w}" if head_of(w) in own else w for w in kept), ""])
    found = []
    if head_of(word) not in own or head_of(word) == word:
        found = _complete(before + word, offers, registry, verbs)
    if not word.startswith(f"{task}."):
        prefix = f"{task}."
        inner = _complete(f"{before}{prefix}{word}", offers, registry, verbs)
        found += [each.removeprefix(prefix) for each in inner if each.startswith(prefix)]
    return list(dict.fromkeys(found))


def _complete(
    line: str, offers: Callable[[str], list[str]], registry: Registry, verbs: Collection[str]
) -> list[str]:
    """Complete the last word of a line, as it stands."""
    words = re.split(r"\s+", line.lstrip())
    word = words[-1] if len(words) > 1 else ""
    line = keep_overrides(line)
    before = line[: len(line) - len(word)]
    if match := _LIST.fullmatch(word):
        start = f"{match['key']}="
        found = offers(f"{before}{start}{match['last']}")
        return [start + match["before"] + each.removeprefix(start) for each in found]
    key, equals, value = word.partition("=")
    if equals and (
        members := sorted({m for hint in _hints(key, registry) for m in _members(hint)})
    ):
        return [f"{key}={member}" for member in members if member.startswith(value)]
    found = [each for each in offers(line) if not _INNER.match(each)]
    if len(words) == 2:
        found += [verb for verb in verbs if verb.startswith(word)]
    return found + (list(_paths(word)) if word and not equals else [])


def _hints(key: str, registry: Registry) -> Iterator[Any]:
    """Give the types that an option has, which depend on the plugin where none is named."""
    where, _, name = key.rpartition(".")
    for schema in _schemas(where, registry):
        yield get_type_hints(schema).get(name)


def _schemas(where: str, registry: Registry) -> Iterator[type]:
    kind, _, plugin = where.partition(".")
    if not where:
        yield RunOptions
    elif where in SECTIONS:
        yield SECTIONS[where]
    elif kind in SINGLE and not plugin:
        yield from (entry.spec.config for entry in registry.entries(kind))
    elif kind in registry.names("task"):
        schema: Any = registry.find("task", kind).spec.config
        for part in filter(None, plugin.split(".")):
            schema = get_type_hints(schema).get(part) if is_dataclass(schema) else None
        if is_dataclass(schema) and isinstance(schema, type):
            yield schema
    elif kind in SEVERAL and plugin in registry.names(kind):
        yield registry.find(kind, plugin).spec.config
        yield RUN_OWNS.get(kind, NoConfig)


def _members(hint: Any) -> Iterator[str]:
    """Give the words that a type takes, if it takes only some."""
    if hint is bool:
        yield from ("true", "false")
    elif isinstance(hint, type) and issubclass(hint, Enum):
        yield from hint.__members__
    else:
        for argument in get_args(hint):
            yield from _members(argument)


def _paths(word: str) -> Iterator[str]:
    """Find files and folders, which a shell only offers where there is nothing else.

    Not those with a blank, which would come apart.
    """
    for name in sorted(glob.glob(glob.escape(word) + "*")):  # noqa: PTH207 - keeps `./`
        if not re.search(r"\s", name):
            yield f"{name}/" if Path(name).is_dir() else name
