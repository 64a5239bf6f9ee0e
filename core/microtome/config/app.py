"""The command line's entry: answers what needs no Hydra, then composes and runs."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from microtome.config import argv as command_line
from microtome.errors import ConfigError, MicrotomeError, StoreError, UnknownPluginError
from microtome.plugin.files import add_files, find_files
from microtome.plugin.registry import Registry, get_registry
from microtome.plugin.specs import RUN_KINDS, TaskSpec

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from omegaconf import DictConfig

    from microtome.run.settings import RunConfig

EXIT_CANNOT_START = 1
EXIT_BAD_COMMAND_LINE = 2
EXIT_INTERRUPTED = 130
OUTCOME = "outcome.json"
DEFAULT_ENGINE = "local"
"""As in ``config.yaml``, which nobody has read when the engine may start early."""

_left_nowhere: list[int] = []
"""Exit codes of jobs of this process that could not be written down."""

# The mildest first: all done, slides held by others, failed ones, no start at all, interrupted,
# terminated.
_SEVERITY = (0, 4, 3, EXIT_CANNOT_START, EXIT_BAD_COMMAND_LINE, EXIT_INTERRUPTED, 143)


def main(argv: Sequence[str] | None = None, verbs: Mapping[str, str] = MappingProxyType({})) -> int:
    """Answer a command line that is no verb.

    Args:
        argv: The words without the program's name; those of the process if None.
        verbs: Summaries of the verbs by name, for the help page.

    Returns:
        The exit code: 0 all done or empty, 1 cannot start, 2 bad command line, 3 failed slides,
        4 slides that other workers hold, 130 interrupted, 143 terminated.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    own = words[: words.index("--")] if "--" in words else words
    if not words or {"-h", "--help"} & set(own):
        return _help(own, verbs)
    if "--version" in own:
        from microtome import __version__

        return say(f"microtome {__version__}\n")
    if "-sc" in own or "--shell-completion" in own:
        return _complete(words, verbs)
    command_line.refuse_lone_verb(words[0], verbs)
    return _run(*_read(words))


def compose(words: Sequence[str]) -> RunConfig:
    """Compose a command line to the run that it asks for, and leave nothing anywhere.

    Args:
        words: Those of a run; without ``output=`` it is the working directory.

    Raises:
        MicrotomeError: If it is no run.
    """
    line, registry = _read(words)
    if [flag for flag in line.flags if flag.startswith("-")] not in ([], ["-cd"], ["--config-dir"]):
        raise ConfigError(
            "Of one run alone can be told what it would do: leave out the flags, but --config-dir."
        )
    if not any(word.startswith("output=") for word in line.overrides):
        line = replace(line, overrides=(*line.overrides, "output=."))
    from microtome.config import hydra_bridge
    from microtome.config.checks import read_job
    from microtome.config.refusals import HYDRA_ERRORS, refusal

    try:
        return read_job(hydra_bridge.compose(line, registry))
    except HYDRA_ERRORS as error:
        raise refusal(error, registry) from error


def _help(words: Sequence[str], verbs: Mapping[str, str]) -> int:
    """Show the page of the task that is chosen, or of everything."""
    from microtome.config.help import page, task_page

    registry = get_registry()
    if task := command_line.chosen_task(words):
        registry = add_files(registry, find_files(command_line.plugin_files(words) or ()))
        if task in registry.names("task"):
            return say(task_page(registry.find("task", task).spec))
    return say(page(registry, verbs))


def _read(words: Sequence[str]) -> tuple[command_line.CommandLine, Registry]:
    """Tell the words of a run apart, with the plugins of the files that they name."""
    files = find_files(command_line.plugin_files(words) or ())
    registry = add_files(get_registry(), files)
    names = {kind: registry.names(kind) for kind in RUN_KINDS}
    tasks = {e.spec.name: [f.name for f in fields(e.spec.config)] for e in registry.entries("task")}
    line = command_line.parse(words, names, tasks)
    if (task := command_line.chosen_task(line.overrides)) in tasks:
        from microtome.run.tasks import refuse_unread

        spec = registry.find("task", task).spec
        refuse_unread(cast(TaskSpec, spec), command_line.keys_of(line.overrides))
    return line, registry


def say(text: str) -> int:
    """Print a text that was asked for."""
    sys.stdout.write(text)
    return 0


def report(error: MicrotomeError, *, job: str = "") -> int:
    """Print an error as one line, with its traceback if ``MICROTOME_DEBUG=1``.

    Args:
        error: What went wrong.
        job: Which job of a sweep.

    Returns:
        The exit code that goes with it.
    """
    if os.environ.get("MICROTOME_DEBUG") == "1":
        traceback.print_exception(error)
    sys.stderr.write(f"microtome: {job}{error}\n")
    ours = isinstance(error, ConfigError | UnknownPluginError)
    return EXIT_BAD_COMMAND_LINE if ours else EXIT_CANNOT_START


def worst(codes: Iterable[int]) -> int:
    """Choose the exit code of several runs."""
    rank = {code: place for place, code in enumerate(_SEVERITY)}
    return max(codes, key=lambda code: rank.get(code, len(rank)), default=0)


def _run(line: command_line.CommandLine, registry: Registry) -> int:
    # Until a job begins: composing makes many objects and no garbage, and looking for some in
    # them takes a seventh of the time.
    gc.disable()
    try:
        with _engine_started(line):
            return _start(line, registry)
    finally:
        gc.enable()


def _engine_started(line: command_line.CommandLine) -> AbstractContextManager[None]:
    """Let the engine of a plain run start what it can before the run is composed."""
    if line.flags or any("hydra." in word for word in line.overrides):
        return nullcontext()  # nothing may run, or in another environment
    named = [word.partition("=")[2] for word in line.overrides if word.startswith("engine=")]
    return get_registry().started_early((named or [DEFAULT_ENGINE])[-1])


def _start(line: command_line.CommandLine, registry: Registry) -> int:
    from microtome.config import hydra_bridge
    from microtome.config.refusals import HYDRA_ERRORS, refusal

    _left_nowhere.clear()
    try:
        folder = hydra_bridge.run(line, do_job, registry)
    except HYDRA_ERRORS as error:
        raise refusal(error, registry) from error
    return worst([*_outcomes(folder), *_left_nowhere]) if folder else 0


def do_job(cfg: DictConfig) -> None:
    """Do one composed run and leave its outcome in its folder.

    It raises for no slide and no run: Hydra would stop the rest of a sweep, and loses what a
    job returns.
    """
    from hydra.core.hydra_config import HydraConfig

    from microtome.config.nodes import to_run_config
    from microtome.config.words import unasked_kinds
    from microtome.run.runner import run

    gc.enable()
    job = HydraConfig.get()
    run_dir = Path(job.runtime.output_dir)
    error = None
    try:
        config = to_run_config(cfg, run_dir, unasked=unasked_kinds(job))
        code = run(replace(config, label=_swept(job)))
    except MicrotomeError as caught:
        error, code = str(caught), report(caught, job=_label(job))
    except KeyboardInterrupt as interrupt:
        _leave(run_dir, _interrupted(interrupt), "interrupted")
        raise
    _leave(run_dir, code, error)


def _label(job: HydraConf) -> str:
    """Say which job of a sweep this is; nothing in a plain run."""
    if job.mode is None or job.mode.name != "MULTIRUN":
        return ""
    told = (word for word in job.overrides.task if not word.startswith(("slides=", "output=")))
    return f"job {job.job.num} ({', '.join(told)}): "


def _swept(job: HydraConf) -> str:
    """Give the values by which this job of a sweep differs from the others; none in a plain run."""
    is_sweep = job.mode is not None and job.mode.name == "MULTIRUN"
    return str(job.job.override_dirname) if is_sweep else ""


def _interrupted(interrupt: KeyboardInterrupt) -> int:
    return int(getattr(interrupt, "exit_code", EXIT_INTERRUPTED))


def _leave(run_dir: Path, code: int, error: str | None) -> None:
    from microtome.store.atomic import write_json

    record = {"exit_code": code, "error": error}
    try:
        write_json(run_dir / OUTCOME, record, indent=None, durable=False)
    except StoreError:  # mostly of a full disk, which was told
        _left_nowhere.append(code)


def _outcomes(folder: Path) -> list[int]:
    """Read how the run, or each job of the sweep, ended."""
    found = folder.rglob(OUTCOME)
    return [int(json.loads(path.read_text(encoding="utf-8"))["exit_code"]) for path in found]


def _complete(words: list[str], verbs: Mapping[str, str]) -> int:
    """Answer a shell that completes a line, or that wants the script for it."""
    flags = tuple(word for word in words if word.startswith("-"))
    rest = tuple(word for word in words if not word.startswith("-"))
    line = command_line.CommandLine(flags, rest, multirun=False)
    registry = get_registry()
    if "COMP_LINE" not in os.environ or not rest or not rest[0].startswith("query="):
        return _run(line, registry)
    from microtome.config.completion import complete

    def offers(text: str) -> list[str]:
        os.environ["COMP_LINE"] = text
        with redirect_stdout(io.StringIO()) as said:
            _run(line, registry)
        return said.getvalue().split()

    found = complete(os.environ["COMP_LINE"], offers, registry, verbs)
    return say(("\n" if rest[0] == "query=fish" else " ").join(found) + "\n")
