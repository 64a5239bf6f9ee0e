"""Rewrites the command line into words that Hydra's grammar takes.

Real slide names (``slide (1).svs``, ``a,b.svs``, ``x=1.svs``, ``naïve 切片.svs``) break that
grammar or are changed by it, so paths are recognised first and quoted.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType

from microtome.config.options import SEVERAL, RunOptions, is_path_key
from microtome.errors import ConfigError

Names = Mapping[str, Collection[str]]
"""The installed plugins' names by kind."""

_NO_OPTIONS: Names = MappingProxyType({})

# Hydra's flags by what it wants behind them: nothing, any word, or one of some.
_ANY: tuple[str, ...] = ("",)
_CFG = ("job", "hydra", "all")
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_FLAGS: Mapping[str, tuple[str, ...]] = {
    "-m": (), "--multirun": (), "-r": (), "--run": (), "-c": _CFG, "--cfg": _CFG,
    "--resolve": (), "-p": _ANY, "--package": _ANY, "-i": _INFO, "--info": _INFO,
    "-cd": _ANY, "--config-dir": _ANY, "-cn": _ANY, "--config-name": _ANY,
    "-cp": _ANY, "--config-path": _ANY, "--hydra-help": (), "-sc": (), "--shell-completion": (),
}  # fmt: skip
# Of these, one at most: each says what Hydra is to do.
_DOES = {
    "-m": "--multirun", "-r": "--run", "-c": "--cfg", "-i": "--info", "-sc": "--shell-completion",
}  # fmt: skip
_KEY = re.compile(
    r"(?P<sign>\+{0,2}|~)(?P<key>[A-Za-z_][\w-]*(?:[./][\w-]+)*)(?P<package>@[\w.-]*)?=", re.ASCII
)
_PLUGIN_FILES = "encoder_plugin"
_SWEEP = re.compile(r".*,|(choice|range|interval|glob)\(", re.DOTALL)
# Characters that Hydra's grammar has no token for outside quotes.
_NO_TOKEN = re.compile(r"[^\x20-\x7e]|[&;<>#!^`]")
_LANDING = 0.7  # how alike two names are for one to be meant by the other


@dataclass(frozen=True)
class CommandLine:
    """The words that Hydra is given.

    Attributes:
        flags: Hydra's own.
        overrides: ``key=value``, paths quoted.
        multirun: Whether the run is a sweep.
    """

    flags: tuple[str, ...]
    overrides: tuple[str, ...]
    multirun: bool


def parse(words: Sequence[str], names: Names, task_options: Names = _NO_OPTIONS) -> CommandLine:
    """Tell flags, overrides and slides apart and quote what is a path.

    A word is a slide if it has no ``key=``, exists as a file or folder, is a pattern that
    matches some, or stands behind ``--``. The values of ``slides=`` and of ``encoder_plugin=``
    are gathered from all words that give some.

    Args:
        words: The command line without the program's name.
        names: The installed plugins.
        task_options: Names of options by task: those of the task that the line chooses need not
            say whose they are, and win over the run's own.

    Raises:
        ConfigError: If a flag is unknown or lacks its value, or a sweep goes over ``output``.
    """
    flags: list[str] = []
    overrides: list[str] = []
    slides: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            slides += rest
        elif _is_flag(word):
            flags += _flag(word, rest)
        elif (match := _KEY.match(word)) is None or _exists(word):
            slides.append(word)
        elif match["key"] == "slides":
            slides += _items(word[match.end() :])
        elif match["key"] != _PLUGIN_FILES:
            overrides.append(word)
    given = {name: _DOES.get(name, name) for name in (flag.partition("=")[0] for flag in flags)}
    _refuse_contradiction(set(given.values()))
    multirun = "--multirun" in given.values() or "hydra.mode=MULTIRUN" in overrides
    task = chosen_task(overrides)
    own = task_options.get(task, ())
    overrides = [f"{task}.{word}" if head_of(word) in own else word for word in overrides]
    overrides = [_override(word, names, multirun) for word in overrides]
    if slides:
        overrides.append(f"slides=[{','.join(map(literal, slides))}]")
    if (files := plugin_files(words)) is not None:
        overrides.append(f"{_PLUGIN_FILES}=[{','.join(map(literal, files))}]")
    return CommandLine(tuple(flags), tuple(overrides), multirun)


def plugin_files(words: Sequence[str]) -> list[str] | None:
    """Find the values of ``encoder_plugin=``, whose plugins' names must be known to `parse`.

    Args:
        words: The command line without the program's name.

    Returns:
        Absolute paths; None if the key is not given.
    """
    own = words[: words.index("--")] if "--" in words else words
    matches = [match for word in own if (match := _KEY.match(word)) and not _exists(word)]
    values = [match.string[match.end() :] for match in matches if match["key"] == _PLUGIN_FILES]
    paths = [path for value in values if value != "null" for path in _items(value)]
    return [str(Path(path).absolute()) for path in paths] if values else None


def chosen_task(words: Iterable[str]) -> str:
    """Give the task that words choose, the last one of several; empty if none."""
    chosen = [word.partition("=")[2].lower() for word in words if word.startswith("task=")]
    return chosen[-1] if chosen else ""


def keys_of(words: Iterable[str]) -> list[str]:
    """Give the keys of words, without signs and packages, in their order."""
    return [match["key"] for word in words if (match := _KEY.match(word))]


def head_of(word: str) -> str:
    """Give the first part of a word's key: ``ohem`` of ``ohem.ratio=3``."""
    return re.split(r"[.=]", word, maxsplit=1)[0]


def literal(text: str) -> str:
    """Quote a text so that Hydra and OmegaConf give back exactly that text."""
    return "'" + re.sub(r"(\\*)('|\Z)", _double, escape(text)) + "'"


def escape(text: str) -> str:
    """Escape interpolations, so that OmegaConf gives back exactly that text."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def keep_overrides(line: str) -> str:
    """Leave out the slides of a line that is being completed: Hydra cannot read them.

    Args:
        line: The program's name and the words so far, the last one perhaps unfinished.
    """
    words = re.split(r"\s+", line.lstrip())
    kept = [word for word in words[1:-1] if _KEY.match(word) or word in _FLAGS]
    return " ".join([*words[:1], *kept, words[-1]] if len(words) > 1 else words)


def refuse_lone_verb(word: str, verbs: Collection[str]) -> None:
    """Refuse a first word that is neither a slide nor a verb but almost a verb.

    Raises:
        ConfigError: With the verb that was meant.
    """
    near = difflib.get_close_matches(word, verbs, 1, _LANDING)
    if near and word.isidentifier() and not _exists(word):
        raise ConfigError(
            f"There is no command and no slide named {word!r}. Did you mean 'microtome {near[0]}'?"
        )


def _double(match: re.Match[str]) -> str:
    """Double the backslashes before a quote or the end, and escape the quote."""
    return match[1] * 2 + ("\\'" if match[2] else "")


def _exists(word: str) -> bool:
    """Tell whether a word names something on disk, itself or as a pattern."""
    if os.path.lexists(word):
        return True
    return glob.has_magic(word) and bool(glob.glob(word))  # noqa: PTH207 - absolute patterns too


def _is_flag(word: str) -> bool:
    """Tell a flag from a slide whose name starts with a dash; a known flag always wins."""
    if not word.startswith("-") or word == "-":
        return False
    return word.partition("=")[0] in _FLAGS or not _exists(word)


def _flag(word: str, rest: Iterator[str]) -> list[str]:
    name, equals, value = word.partition("=")
    if name not in _FLAGS:
        raise ConfigError(_unknown_flag(name))
    takes = _FLAGS[name]
    if not takes:
        return [word]
    if not equals:
        value = next(rest, "")
    if not value or (takes is not _ANY and value not in takes):
        wanted = "a word" if takes is _ANY else f"one of {', '.join(takes)}"
        raise ConfigError(f"The flag {name} wants {wanted} behind it, not {value or 'nothing'}.")
    return [name, value]


def _refuse_contradiction(flags: Collection[str]) -> None:
    does = sorted(set(_DOES.values()) & set(flags))
    if len(does) > 1:
        raise ConfigError(f"The flags {' and '.join(does)} exclude each other.")
    if "--resolve" in flags and "--cfg" not in flags:
        raise ConfigError("The flag --resolve goes with --cfg job: it shows, it does not run.")


def _unknown_flag(name: str) -> str:
    key = name.strip("-").replace("-", "_")
    keys = [option.name for option in fields(RunOptions)]
    if near := difflib.get_close_matches(key, keys, 1, _LANDING):
        return f"There is no flag {name}: options have no dashes, as in {near[0]}=…"
    known = [*_FLAGS, "--help", "--version"]
    near = difflib.get_close_matches(name, known, 1, _LANDING)
    hint = f" Did you mean {near[0]}?" if near else ""
    return (
        f"There is no flag {name}.{hint} A slide of that name goes behind -- or is written ./{name}"
    )


def _items(value: str) -> list[str]:
    """Read the value of a list of paths: one path, or a bracketed list of simple ones."""
    if not (value.startswith("[") and value.endswith("]")) or os.path.lexists(value):
        return [_home(value)] if value else []
    items = (item.strip() for item in value[1:-1].split(","))
    return [_home(item.strip("'\"")) for item in items if item]


def _override(word: str, names: Names, multirun: bool) -> str:
    match = _KEY.match(word)
    if match is None or match["sign"] == "~":
        return word
    key, value = match["key"], word[match.end() :]
    head = _canonical_key(match[0], names)
    if key in ("hydra.run.dir", "hydra.sweep.dir"):
        raise ConfigError(f"{key} cannot be set: a run's folder is <output>/runs/<time>-<random>.")
    if key == "preset" and not match["sign"]:
        return "+" + word  # no preset is chosen by default, which is Hydra's reason for the plus
    if key.startswith("labels.classes") and not match["sign"]:
        head = f"++{head}"  # the names of classes are the user's: Hydra knows none of them
    if is_path_key(key) and not key.startswith("labels."):
        if key == "output":
            _check_output(value, multirun)
        return head + (literal(_home(value)) if value not in ("", "null") else "null")
    if key in names and value in ("", "null"):
        if key not in SEVERAL:
            raise ConfigError(f"{key}={value} chooses no {key}, and a run needs one.")
        return head + "[]"
    if key in names:
        return head + _canonical(value, names[key])
    if _NO_TOKEN.search(value) and value[:1] not in "[{'\"":
        return head + literal(value)
    return head + value


def _check_output(value: str, multirun: bool) -> None:
    if multirun and _SWEEP.match(value) and not Path(value).is_dir():
        raise ConfigError(
            f"output={value} would sweep over the output, which all jobs share. Name one "
            "folder; each tiling gets its own below it with tiler.name=auto."
        )
    if "${" in value:  # Hydra resolves the name of its folder twice
        raise ConfigError(f"output={value} holds ${{, which Hydra would replace. Choose another.")


def _home(path: str) -> str:
    """Expand a leading ``~/``, which a shell leaves alone behind ``key=``."""
    return str(Path(path).expanduser()) if path.startswith("~/") else path


def _canonical(value: str, known: Collection[str]) -> str:
    """Give plugin names their own case: ``ResNet50`` is ``resnet50``."""

    def rename(match: re.Match[str]) -> str:
        return match[0].lower() if match[0].lower() in known else match[0]

    return re.sub(r"\w+", rename, value)


def _canonical_key(head: str, names: Names) -> str:
    for kind in SEVERAL:
        match = re.match(rf"(\+{{0,2}}{kind}\.)(\w+)(\..+)", head)
        if match and match[2].lower() in names.get(kind, ()):
            return match[1] + match[2].lower() + match[3]
    return head
