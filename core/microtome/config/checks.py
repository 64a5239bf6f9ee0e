"""Refuses a run or a sweep that cannot start before it leaves anything on disk.

Importing this module imports Hydra.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import cast

from hydra.core.global_hydra import GlobalHydra  # noqa: TID253 - imported when Hydra already is
from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: TID253
from hydra.core.override_parser.types import Override  # noqa: TID253
from omegaconf import DictConfig, OmegaConf

from microtome.config.nodes import to_run_config
from microtome.config.words import unasked_kinds
from microtome.errors import ConfigError, MicrotomeError, StoreError
from microtome.plugin.files import add_files
from microtome.plugin.registry import Registry
from microtome.run.inputs.finding import find_slides
from microtome.run.planning.labels import check_files
from microtome.run.planning.plan import check_run
from microtome.run.settings import RunConfig
from microtome.run.tasks import check_task

_NAME_MAX = 255  # bytes, on every file system in use
_SHAPES_TILES = re.compile(r"(segmenter|tissue|filter|quality|labels)(\.|$)|inspector\.")


def check_output(output: Path, key: str = "output") -> None:
    """Refuse an output folder that cannot be made or written to.

    Args:
        output: The folder.
        key: The option that names it.

    Raises:
        ConfigError: If a file is in the way; says which.
        StoreError: If the system does not allow it.
    """
    if any(len(os.fsencode(part)) > _NAME_MAX for part in output.parts):
        raise StoreError(
            f"{key}={output.name} is too long for a folder's name: at most {_NAME_MAX} bytes."
        )
    nearest = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{key}={output} cannot be a folder: {nearest} is a file.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise StoreError(
            f"{key}={output} cannot be written: no permission for {nearest}. Choose another {key}."
        )


def check_job(cfg: DictConfig, registry: Registry) -> None:
    """Refuse a run by what can be known without opening a slide or making an encoder.

    Args:
        cfg: The composed configuration, with the ``hydra`` node.
        registry: The plugins.

    Raises:
        MicrotomeError: As the run itself would.
    """
    config = read_job(cfg)
    registry = add_files(registry, config.encoder_plugin)
    if config.tiling:
        check_output(config.output / config.tiling, "tiler.name")
    if config.own_task is not None:
        check_task(config, registry)
    slides = find_slides(config, registry).slides if config.slides else ()
    if config.own_task is None:
        check_run(config, registry)
        check_files(config, slides, registry)


def read_job(cfg: DictConfig) -> RunConfig:
    """Read a composed configuration that has the ``hydra`` node.

    Raises:
        MicrotomeError: As of `to_run_config`.
    """
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return to_run_config(own, unasked=unasked_kinds(cfg.hydra))


def check_sweep(base: DictConfig, registry: Registry) -> None:
    """Refuse a sweep with a job that cannot be composed, or without one that can start.

    A bad job beside good ones is told in its own folder.

    Args:
        base: The configuration that Hydra composes before those of the jobs.
        registry: The plugins.

    Raises:
        ConfigError: If the jobs would refuse each other's results.
        MicrotomeError: What the first job is refused for, if all are.
    """
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    words = OmegaConf.to_container(base.hydra.overrides.task, resolve=False)
    parsed = parser.parse_overrides(cast("list[str]", words))
    if any(each.is_sweep_override() and not each.is_discrete_sweep() for each in parsed):
        return  # a sweeper that somebody installed chooses the values as it goes
    _refuse_one_output(parsed, base)
    first: MicrotomeError | None = None
    good = False
    for job in product(*map(_words, parsed)):
        cfg = loader.load_sweep_config(base, list(job))
        if good:
            continue
        try:
            check_job(cfg, registry)
            good = True
        except MicrotomeError as error:
            first = first or error
    if first is not None and not good:
        raise first


def _words(override: Override) -> Iterator[str]:
    """Give the words that an override becomes in the jobs of a sweep."""
    key = override.get_key_element()
    if override.is_sweep_override():
        yield from (f"{key}={value}" for value in override.sweep_string_iterator())
    else:
        yield f"{key}={override.get_value_element_as_str()}"


def _refuse_one_output(parsed: Sequence[Override], base: DictConfig) -> None:
    """Refuse a sweep over what shapes tiles but names no folder: the second job would fail."""
    swept = [each.key_or_group for each in parsed if each.is_sweep_override()]
    shaping = [key for key in swept if _SHAPES_TILES.match(key)]
    named = any(each.key_or_group == "tiler.name" and "${" in str(each.value()) for each in parsed)
    if not shaping or named or base.task == "tissue":
        return
    value = shaping[0] if "." in shaping[0] else f"{shaping[0]}.plugin"
    raise ConfigError(
        f"All jobs of a sweep over {' and '.join(shaping)} would write the same files. Run them "
        "one by one with an output= or a tiler.name= each, or name each by its value: "
        f"tiler.name='${{{value}}}'."
    )
