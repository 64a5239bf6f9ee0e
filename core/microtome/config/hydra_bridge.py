"""Hands a run to Hydra: plugins to its ConfigStore, their YAML to its search path, then main.

Importing this module imports Hydra.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from microtome.config.argv import CommandLine, literal
from microtome.config.checks import check_job, check_output, check_sweep
from microtome.config.options import SEVERAL
from microtome.config.schema import AUTO, options_node, plugin_node
from microtome.errors import ConfigError
from microtome.plugin.registry import Broken, Registry, get_registry
from microtome.plugin.specs import RUN_KINDS

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

CONFIG_MODULE = "microtome_conf"
CONFIG_NAME = "config"
VERSION_BASE = "1.3"
_RESOLVER = "microtome.run_dir"
_CHOICES = (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.CHOICE_SWEEP)


@dataclass
class _Start:
    """What is kept of a run of this process until Hydra returns.

    Attributes:
        note: Told once it is sure that the run starts.
        folder: Its own, once it has one.
    """

    note: str = ""
    folder: Path | None = None


_starts: dict[str, _Start] = {}
"""By the run's id."""


class PluginPresets(SearchPathPlugin):
    """Adds the ``conf`` package of every plugin package that has one to the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append ``pkg://<package>.conf`` for each."""
        for name, module in get_registry().manager.list_name_plugin():
            if isinstance(module, ModuleType) and (package := _conf_package(module)):
                search_path.append(provider=name.partition(":")[0], path=f"pkg://{package}")


def run(line: CommandLine, task: Callable[[DictConfig], object], registry: Registry) -> Path | None:
    """Compose a command line and give the result, or each of a sweep, to a function.

    Args:
        line: From `argv.parse`.
        task: Called with each composed configuration.
        registry: The plugins.

    Returns:
        The run's folder; None where nothing ran (``--cfg`` and the like).
    """
    Plugins.instance().register(PluginPresets)
    run_id = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    parsed = OverridesParser.create().parse_overrides(list(line.overrides) if line.multirun else [])
    of_some = _options_of_some(parsed, registry)
    fill_store(registry, of_some)
    moved = {each.input_line for each in of_some}
    overrides = [word for word in line.overrides if word not in moved]
    start = _starts[run_id] = _Start()
    if not {"-sc", "--shell-completion"} & set(line.flags):
        overrides += _run_folders(run_id)
    if line.multirun:
        overrides.append(_name_by_swept(parsed))
    if swept := _swept_tilings(parsed):
        overrides.append("tiler.name=auto")
        start.note = (
            f"microtome: the sweep over {' and '.join(swept)} sets tiler.name=auto: each tiling "
            "has a folder of its own below the output.\n"
        )
    try:
        with _others_set_aside():
            _hand_over(line, overrides, task)
    finally:
        del _starts[run_id]
    return start.folder


def compose(line: CommandLine, registry: Registry) -> DictConfig:
    """Compose a command line, with the ``hydra`` node, and leave nothing anywhere.

    Args:
        line: From `argv.parse`; of flags, ``--config-dir`` alone has a meaning here.
        registry: The plugins.
    """
    Plugins.instance().register(PluginPresets)
    fill_store(registry)
    folders = [Path(word).absolute() for word in line.flags if not word.startswith("-")]
    overrides = [*line.overrides]
    if folders:
        overrides.append(f"hydra.searchpath=[{','.join(literal(f'file://{f}') for f in folders)}]")
    with (
        _others_set_aside(),
        hydra.initialize_config_module(CONFIG_MODULE, "microtome", version_base=VERSION_BASE),
    ):
        return hydra.compose(CONFIG_NAME, overrides, return_hydra_config=True)


def _hand_over(
    line: CommandLine, overrides: list[str], task: Callable[[DictConfig], object]
) -> None:
    """Start Hydra; where nothing is asked of it but a run, past its command line.

    That one composes everything twice, the first time only to see whether this is a sweep.
    """
    if line.flags or any("hydra." in word for word in line.overrides):
        with _command_line([*line.flags, *overrides]):
            main = hydra.main(f"pkg://{CONFIG_MODULE}", CONFIG_NAME, version_base=VERSION_BASE)
            main(task)()
        return
    with hydra.initialize_config_module(CONFIG_MODULE, "microtome", version_base=VERSION_BASE):
        app = cast("Hydra", GlobalHydra.instance().hydra)
        app.run(CONFIG_NAME, task, [*overrides, "hydra.mode=RUN"])


@contextmanager
def _others_set_aside() -> Iterator[None]:
    """Set aside the Hydra that a library started, as sam2 does at its import: there can be one."""
    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = theirs


def fill_store(registry: Registry, given: Sequence[Override] = ()) -> None:
    """Put the options and every plugin's node into Hydra's ConfigStore.

    A plugin whose defaults OmegaConf cannot hold becomes a broken one.

    Args:
        registry: The plugins.
        given: Options ``<kind>.<name>.<option>`` that replace the defaults of a node.
    """
    store = ConfigStore.instance()
    store.store(name="options", node=options_node(), provider="microtome")
    store.store(group="reader", name=AUTO, node={"plugin": AUTO}, provider="microtome")
    for kind in RUN_KINDS:
        for entry in registry.entries(kind):
            name = entry.spec.name
            package = _package(kind, name)
            try:
                node: Any = plugin_node(entry.spec)
                for each in given:
                    where, _, key = each.key_or_group.partition(f"{kind}.{name}.")
                    if key and not where:
                        node = OmegaConf.create(node)
                        OmegaConf.update(node, key, each.value(), force_add=True)
                store.store(name, node, kind, package, provider=entry.distribution)
            except OmegaConfBaseException as error:
                reason = f"its options cannot be held: {str(error).splitlines()[0]}"
                registry.broken.append(Broken(f"{kind} {name}", entry.distribution, reason))


def _package(kind: str, name: str) -> str:
    """Say where a plugin's node is in the configuration."""
    if kind == "task":
        return "_global_"
    return f"{kind}.{name}" if kind in SEVERAL else kind


def _conf_package(module: ModuleType) -> str | None:
    package = module.__name__ if hasattr(module, "__path__") else module.__package__
    name = f"{package}.conf"
    try:
        spec = find_spec(name)
    except ImportError:
        return None
    # Hydra reads a package through its __init__.py; a bare folder has none.
    return name if spec is not None and spec.origin is not None else None


def _run_folders(run_id: str) -> tuple[str, ...]:
    # As overrides, so that a job which a launcher starts elsewhere finds the same folder. Not
    # by Hydra's ${now}: its grain is one second, and parallel starts would collide.
    folder = f"${{{_RESOLVER}:{run_id}}}"
    return f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"


def _run_dir(run_id: str, *, _root_: DictConfig) -> str:
    """Name a run's folder; Hydra asks just before it makes it, the last moment to refuse."""
    output = OmegaConf.select(_root_, "output")
    if not output:
        raise ConfigError("No output folder is given: output=FOLDER.")
    start = _starts.setdefault(run_id, _Start())  # in another process there is none
    folder = Path(output) / "runs" / run_id
    # Hydra asks again and again, and in the jobs of a sweep, which were looked at together.
    if start.folder is None and OmegaConf.is_missing(_root_.hydra.job, "num"):
        check_output(Path(output))
        plain = _root_.hydra.mode is not None and _root_.hydra.mode.name == "RUN"
        (check_job if plain else check_sweep)(_root_, get_registry())
        sys.stderr.write(start.note)
    start.folder = folder
    return str(folder)


def _name_by_swept(parsed: Sequence[Override]) -> str:
    """Have each job of a sweep named by the keys that differ between them."""
    fixed = [each.key_or_group for each in parsed if not each.is_sweep_override()]
    listed = ",".join(literal(key) for key in dict.fromkeys(fixed))
    return f"hydra.job.config.override_dirname.exclude_keys=[{listed}]"


def _swept_tilings(parsed: Sequence[Override]) -> list[str]:
    """Find what a sweep goes over that decides its tilings, unless it names them.

    A slide or patient encoder decides them, too: what it needs is derived.
    """
    if "tiler.name" in [each.key_or_group for each in parsed]:
        return []
    swept = (each.key_or_group for each in parsed if each.is_sweep_override())
    deciding = ("tiler", "slide_encoder", "patient_encoder")
    return [key for key in swept if re.split("[.@]", key)[0] in deciding]


def _options_of_some(parsed: Sequence[Override], registry: Registry) -> list[Override]:
    """Find the options of encoders and writers that only some jobs of a sweep have.

    Hydra refuses ``encoder.resnet18.weights=random`` in those jobs of ``encoder=a,resnet18``
    that have no resnet18, so these options go into the plugins' nodes instead.
    """
    swept = {
        (each.key_or_group, name)
        for each in parsed
        if each.key_or_group in SEVERAL and each.value_type in _CHOICES
        for value in each.sweep_iterator()
        for name in (value if isinstance(value, list) else [value])
        if name in registry.names(each.key_or_group)
    }
    return [
        each
        for each in parsed
        if each.type == OverrideType.CHANGE
        and not each.is_sweep_override()
        and each.key_or_group.count(".") > 1
        and tuple(each.key_or_group.split(".")[:2]) in swept
    ]


@contextmanager
def _command_line(words: list[str]) -> Iterator[None]:
    """Lend Hydra a command line, and have it raise its errors instead of printing them."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [argv[0], *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _register_resolver() -> None:
    resolver: Any = _run_dir
    OmegaConf.register_new_resolver(_RESOLVER, resolver, replace=True)


# At import, so that a job which a launcher starts in another process has it too.
_register_resolver()
