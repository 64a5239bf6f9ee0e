"""Puts what Hydra and OmegaConf refuse into one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from traceback import walk_tb

from hydra.errors import (  # noqa: TID253 - imported when Hydra already is
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from microtome.config.options import SEVERAL
from microtome.config.schema import AUTO, no_option
from microtome.errors import ConfigError, MicrotomeError, StoreError
from microtome.plugin.registry import Registry
from microtome.plugin.specs import RUN_KINDS
from microtome.plugin.wording import unknown

HYDRA_ERRORS = (HydraException, OmegaConfBaseException, ValueError, OSError)
"""What Hydra raises over a command line."""

_MANY = 24
_LISTS = (*SEVERAL, "visualize", "preset")
_AMBIGUOUS = re.compile(r"Ambiguous value for argument '(?P<word>(?P<key>[^=]+)=(?P<value>.*))'")
_SWEEP = re.compile(r"Sweep parameters '(.*)' requires --multirun", re.DOTALL)
_APPEND = re.compile(r"Could not append .*already at '([^']+)'", re.DOTALL)
_LIST = re.compile(r"Error merging override \+*(?P<key>[^=]+)=(?P<value>\[\W*(?P<first>\w+).*\])")
_NO_GROUP = re.compile(r"config group '([^']+)' does not\s+exist")
_NO_DEFAULT = re.compile(r"Could not override '([^']+)'.\s*No match in the defaults list")


def refusal(error: BaseException, registry: Registry) -> MicrotomeError:
    """Find the error to show for one that came out of Hydra.

    Args:
        error: What Hydra raised.
        registry: The plugins, for names near the one that is wrong.

    Returns:
        The microtome error in its chain of causes, else a `ConfigError` with one sentence.

    Raises:
        ValueError: The error itself, if it is a mistake of somebody else's.
        OSError: The error itself, if it is a closed pipe or somebody else's mistake.
    """
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, MicrotomeError):
            return link
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return _unusable(error)
    for link in chain:
        if sentence := _sentence(link, registry):
            return ConfigError(sentence)
    if not any(_of_hydra(link) for link in chain):
        raise error
    text = next((str(link) for link in chain if str(link).strip()), type(error).__name__)
    return ConfigError(" ".join(re.sub(r"\n\s*(full_key|object_type).*", "", text).split()))


def _unusable(error: OSError) -> StoreError:
    """Tell that the system does not give what a run needs, mostly its folder."""
    if isinstance(error, BrokenPipeError) or error.errno is None:
        raise error
    return StoreError(
        f"{error.filename or 'The output'} cannot be used: {error.strerror}. "
        "Choose another output, or make room for it."
    )


def _of_hydra(error: BaseException) -> bool:
    """Tell whether an error was raised by Hydra's own code and not by a run inside of it."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return True
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).startswith("hydra.")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _sentence(error: BaseException, registry: Registry) -> str | None:
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} is not a value that can be read. Quote one with special "
            "characters twice: \"key='a, b'\"."
        )
    if isinstance(error, MissingConfigException):
        return _no_config(error, registry)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=… must be given."
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return _no_key(error)
    return _by_text(str(error), registry)


def _by_text(text: str, registry: Registry) -> str | None:
    if match := _AMBIGUOUS.search(text):
        key, word = match["key"].lstrip("+"), match["word"].lstrip("+")
        one = f"write {key}=[{match['value']}] for one run with all, or "
        return f"{word} is a sweep: {one if key in _LISTS else ''}add -m."
    if match := _SWEEP.search(text):
        return f"{match[1]} is a sweep: add -m."
    if match := _APPEND.search(text):
        return f"{match[1]} exists already: leave out the plus."
    if match := _LIST.search(text):
        key, name = match["key"], match["first"].lower()
        return f"{key} takes a list for each name, not one for all: {key}.{name}={match['value']}."
    if match := _NO_GROUP.search(text):
        return _unknown("kind of plugin", match[1], RUN_KINDS)
    if match := _NO_DEFAULT.search(text):
        return f"Nothing is chosen for {match[1]}: write +{match[1]}=NAME to add it."
    return None


def _no_config(error: MissingConfigException, registry: Registry) -> str | None:
    path = error.missing_cfg_file or ""
    kind, slash, name = path.partition("/")
    if not slash:
        return f"There is no configuration named {path!r}."
    for broken in registry.broken:
        if name in broken.name.split():
            return f"The {kind} {name!r} of {broken.distribution} is broken: {broken.reason}"
    hint = registry.meant(kind, name) if kind in RUN_KINDS else ""
    return _unknown(kind, name, error.options or _installed(kind, registry), hint)


def _installed(group: str, registry: Registry) -> list[str]:
    """List what there is in a group, which Hydra leaves out for a name in a list."""
    if group in RUN_KINDS:
        return [*registry.names(group), *([AUTO] if group == "reader" else [])]
    shipped = files("microtome_conf").joinpath(group)
    return [Path(f.name).stem for f in shipped.iterdir()] if shipped.is_dir() else []


def _no_key(error: ConfigAttributeError | ConfigKeyError) -> str | None:
    parent, key = error.parent_node, str(error.key)
    if not isinstance(parent, DictConfig):
        return None
    where = str(parent._get_full_key(None) or "")
    if not where:
        return no_option(key, parent)
    known = [str(name) for name in parent if name != "plugin"]
    if where in SEVERAL:
        chosen = ", ".join(known) or "none"
        return f"No {where} {key!r} is chosen, only {chosen}: add it with {where}=[…,{key}]."
    return _unknown(f"option of {where}", key, known)


def _unknown(what: str, name: str, available: Iterable[str], hint: str = "") -> str:
    """Phrase the error for a name that does not exist, short where there are many that do."""
    available = sorted(available)
    text = unknown(what, name, available, hint=hint)
    if len(available) <= _MANY:
        return text
    listed = f"{len(available)}, listed by `microtome plugins {what}`"
    return f"{text.rpartition('Available: ')[0]}Available: {listed}."
