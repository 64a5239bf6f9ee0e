"""A run that is a task: told, recorded and interrupted like any other."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Any

from microtome._version import __version__
from microtome.errors import ConfigError, InputError, MicrotomeError, PluginError, StoreError
from microtome.plugin.protocols import Task
from microtome.plugin.registry import Registered, Registry
from microtome.plugin.specs import TaskSpec, WriterSpec
from microtome.run.job import TaskJob, TaskOutcome
from microtome.run.progress import Reporter, make_reporter
from microtome.run.settings import RunConfig
from microtome.run.signals import signals_interrupt
from microtome.run.slides.attributes import provenance
from microtome.store.atomic import restore_below, sweep
from microtome.store.layout import OutputLayout, taken_folders
from microtome.store.publish import write_json
from microtome.store.survey import find_tilings

_MAKING = frozenset(
    {
        "annotations", "dense_dtype", "encoder", "feature_dtype", "filter", "inspector", "labels",
        "latents", "patient_encoder", "quality", "region_features", "segmenter", "slide_encoder",
        "tiler", "tissue", "visualize",
    }
)  # fmt: skip
"""First parts of the options that say how tiles, their labels and their features are made."""

EXIT_STOPPED = 1
EXIT_INTERRUPTED = 130


def check_task(config: RunConfig, registry: Registry) -> Task:
    """Make a run's task, which refuses options that make no sense.

    Raises:
        ConfigError: If they do not, or it has nothing to do.
        PluginError: If it is unknown or broken, or misses a library.
    """
    choice = config.own_task
    if choice is None:
        raise ConfigError(f"task={config.task} is a run of slides, and no plugin's.")
    spec = registry.find("task", choice.plugin).spec
    if isinstance(spec, TaskSpec) and spec.needs_slides and not config.slides:
        raise ConfigError(f"task={spec.name} needs slides: name files, folders or a CSV manifest.")
    task: Task = registry.create("task", choice.plugin, choice.config)
    return task


def run_task(config: RunConfig, registry: Registry, reporter: Reporter | None = None) -> int:
    """Do a run that is a task, reporting on stderr and summing up on stdout.

    Args:
        config: What to do; its ``own_task`` is chosen.
        registry: The plugins.
        reporter: Hears how it goes; as of `make_reporter` if None.

    Returns:
        The exit code.

    Raises:
        MicrotomeError: If it cannot be done.
        KeyboardInterrupt: If it was interrupted; what was finished is kept.
    """
    outcome = do_task(config, registry, reporter or make_reporter())
    sys.stdout.write("".join(f"{line}\n" for line in outcome.lines))
    return outcome.exit_code


def do_task(config: RunConfig, registry: Registry, reporter: Reporter) -> TaskOutcome:
    """Do a run that is a task and leave its record.

    Raises:
        MicrotomeError: If it cannot be done.
        KeyboardInterrupt: If it was interrupted.
    """
    task = check_task(config, registry)
    job = TaskJob(config=config, registry=registry, reporter=reporter)
    began, started = time.monotonic(), datetime.now(UTC)
    ended: dict[str, Any] = {"exit_code": EXIT_STOPPED}
    try:
        _put_right(config, registry)
        with signals_interrupt(), registry.blame("task", config.task, "done"):
            outcome = _checked(task.run(job), registry.find("task", config.task))
        ended = {"exit_code": outcome.exit_code, "outcome": dict(outcome.record)}
        return outcome
    except KeyboardInterrupt as interrupt:
        ended = {"exit_code": getattr(interrupt, "exit_code", EXIT_INTERRUPTED)}
        raise
    except MicrotomeError as error:
        ended = {"exit_code": EXIT_STOPPED, "error": str(error)}
        raise
    finally:
        seconds = {"seconds": round(time.monotonic() - began, 3)}
        # Why it was broken off is told, not that this could not be written down.
        with nullcontext() if "outcome" in ended else suppress(StoreError):
            _write_record(config, started, ended | seconds)


def refuse_unread(spec: TaskSpec, keys: Iterable[str]) -> None:
    """Refuse options that a task would not read: of tissue, tiles, labels and encoders.

    Args:
        spec: The task.
        keys: What a user gave, ``tiler.size``; ``tiler.name`` says which tiling is meant.

    Raises:
        ConfigError: If it goes by what is there, and some say how that is made.
    """
    unread = [key for key in keys if key.partition(".")[0] in _MAKING and key != "tiler.name"]
    if unread and not spec.takes_slides:
        raise ConfigError(
            f"task={spec.name} goes by the tiles that are there, and {', '.join(unread)} would "
            f"change nothing: leave {'it' if len(unread) == 1 else 'them'} out, or run without "
            f"task={spec.name} first, to make the tiles so."
        )


def _put_right(config: RunConfig, registry: Registry) -> None:
    """Sweep the folders of earlier runs, and put back stores that a killed one moved aside.

    Raises:
        StoreError: If one cannot be put back.
    """
    sweep(OutputLayout(config.output).runs_folder, below=True)
    specs = [entry.spec for entry in registry.entries("writer")]
    stores = [s for s in specs if isinstance(s, WriterSpec) and s.consumes == "features"]
    with suppress(InputError):  # no output yet
        for layout in find_tilings(config.output, taken_folders(registry)):
            for spec in stores:
                restore_below(layout.root / spec.folder, spec.suffix)


def _checked(outcome: object, entry: Registered) -> TaskOutcome:
    """Refuse what a task gives back and the run's record cannot hold."""
    whose = f"The task {entry.spec.name!r} of {entry.distribution}"
    if not isinstance(outcome, TaskOutcome):
        what = type(outcome).__name__
        raise PluginError(f"{whose} gave back {what}, and is to give a TaskOutcome.")
    record: object = outcome.record
    if not isinstance(record, Mapping):
        what = type(record).__name__
        raise PluginError(f"{whose} gave back a record that is a {what}, and is to be a mapping.")
    for key, value in record.items():
        try:
            json.dumps({key: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"{whose} gave back record[{key!r}], which JSON cannot hold: {error}. Give "
                "numbers, texts, lists and mappings of these."
            ) from error
    return outcome


def _write_record(config: RunConfig, started: datetime, ended: dict[str, Any]) -> None:
    if config.run_dir is None:
        return
    record = {
        "microtome_version": __version__,
        "provenance": dict(provenance()),
        "config": dict(config.resolved),
        "task": config.task,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(config.run_dir / "run.json", record | ended)
