"""Hands a run to Hydra: plugins to its ConfigStore, their YAML to its search path, then main.

Importing this module imports Hydra.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from microtome.config.argv import CommandLine
from microtome.config.options import SEVERAL
from microtome.config.schema import AUTO, options_node, plugin_node, to_run_config
from microtome.errors import ConfigError, InputError
from microtome.plugin.registry import Broken, Registry, get_registry
from microtome.plugin.specs import SPECS
from microtome.run.plan import check_run

CONFIG_PATH = "pkg://microtome_conf"
CONFIG_NAME = "config"
_RESOLVER = "microtome.run_dir"
_CHOICES = (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.CHOICE_SWEEP)

_run_dirs: dict[str, Path] = {}
"""The folder that each run of this process was given, by the run's id."""


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
    if not {"-sc", "--shell-completion"} & set(line.flags):
        overrides = [*_run_folders(run_id), *overrides, *_name_tilings(parsed)]
    with _command_line([*line.flags, *overrides]):
        hydra.main(config_path=CONFIG_PATH, config_name=CONFIG_NAME, version_base="1.3")(task)()
    return _run_dirs.pop(run_id, None)


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
    for kind in SPECS:
        for entry in registry.entries(kind):
            name = entry.spec.name
            package = f"{kind}.{name}" if kind in SEVERAL else kind
            try:
                node = OmegaConf.create(plugin_node(entry.spec))
                for each in given:
                    where, _, key = each.key_or_group.partition(f"{kind}.{name}.")
                    if key and not where:
                        OmegaConf.update(node, key, each.value(), force_add=True)
                store.store(name, node, kind, package, provider=entry.distribution)
            except OmegaConfBaseException as error:
                reason = f"its options cannot be held: {str(error).splitlines()[0]}"
                registry.broken.append(Broken(f"{kind} {name}", entry.distribution, reason))


def check_output(output: Path) -> None:
    """Refuse an output folder that cannot be made or written to.

    Raises:
        ConfigError: Naming what is in the way.
    """
    nearest = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(f"output={output} cannot be a folder: {nearest} is a file.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"output={output} cannot be written: no permission for {nearest}.")


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
    check_output(Path(output))
    check_slides(_root_)
    if _root_.hydra.mode is not None and _root_.hydra.mode.name == "RUN":
        composed = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
        check_run(to_run_config(composed), get_registry())
    _run_dirs[run_id] = Path(output) / "runs" / run_id
    return str(_run_dirs[run_id])


def check_slides(cfg: DictConfig) -> None:
    """Refuse a slide that is neither on disk nor a pattern.

    Raises:
        InputError: Naming the first.
    """
    for slide in cfg.slides if OmegaConf.is_list(cfg.slides) else ():
        if not os.path.lexists(slide) and not set("*?[") & set(slide):
            raise InputError(f"There is no slide, folder or manifest {slide!r}.")


def _name_tilings(parsed: Sequence[Override]) -> tuple[str, ...]:
    """Name tilings by their geometry in a sweep over them, unless they are named."""
    keys = [each.key_or_group for each in parsed]
    swept = [
        each.key_or_group
        for each in parsed
        if each.is_sweep_override() and each.key_or_group.split(".")[0] == "tiler"
    ]
    if not swept or "tiler.name" in keys:
        return ()
    sys.stderr.write(
        f"microtome: the sweep over {' and '.join(swept)} sets tiler.name=auto: each tiling has "
        "a folder of its own below the output.\n"
    )
    return ("tiler.name=auto",)


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
