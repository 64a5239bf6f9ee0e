"""A whole run from Python: the command line's words as arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from microtome.errors import ConfigError
from microtome.plugin.files import add_files, find_files
from microtome.plugin.options import configure, tasks_with
from microtome.plugin.registry import Registry, get_registry
from microtome.plugin.specs import PluginSpec, TaskSpec
from microtome.plugin.wording import of_task, unknown
from microtome.run.job import TaskOutcome
from microtome.run.labelling import LabelSettings
from microtome.run.planning.plan import RunPlan, make_plan
from microtome.run.planning.solve import solve
from microtome.run.progress import Reporter, make_reporter
from microtome.run.runner import plan_passes, run_passes
from microtome.run.settings import (
    Choice,
    ClaimSettings,
    EncoderChoice,
    FilterSettings,
    PatientEncoderChoice,
    QualitySettings,
    RunConfig,
    SlideEncoderChoice,
    StagingSettings,
    TissueSettings,
)
from microtome.run.summary import RunResult, join_results
from microtome.run.tasks import do_task, refuse_unread

Chosen = str | Sequence[str] | Mapping[str, Mapping[str, Any]]
"""One plugin, several, or several with their options: ``{"resnet18": {"weights": "random"}}``."""

_SINGLE = ("reader", "segmenter", "tiler", "engine")
_SEVERAL = ("inspector", "encoder", "slide_encoder", "patient_encoder", "writer")
_SECTIONS = {
    "tissue": TissueSettings,
    "filter": FilterSettings,
    "quality": QualitySettings,
    "labels": LabelSettings,
    "claims": ClaimSettings,
    "staging": StagingSettings,
}
_NOT_GIVEN = {"slides", "output", "run_dir", "resolved", "derived", "own_task", "label"}
_RUN_TAKES = (
    {f.name for f in fields(RunConfig)} - _NOT_GIVEN - {f"{kind}s" for kind in _SEVERAL}
) | {*_SEVERAL}
_MODELS = {c.kind: c for c in (EncoderChoice, SlideEncoderChoice, PatientEncoderChoice)}


def run_slides(
    slides: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    reporter: Reporter | None = None,
    **options: Any,
) -> RunResult:
    """Run slides through the pipeline, as ``microtome SLIDES output=OUTPUT …`` does.

    ::

        microtome.run_slides(
        "slides/",
        "out",
        encoder={"resnet18": {"weights": "random"}},
        tiler={"grid": {"magnification": 20}},
        writer=["hdf5", "png"],
    )

    Args:
        slides: Files, folders, glob patterns or CSV manifests.
        output: The output folder.
        reporter: Hears how it goes; by default bars in a terminal, lines elsewhere.
        **options: Keys of `RunConfig`, and plugins by kind as `Chosen`: ``reader``,
            ``segmenter``, ``tiler``, ``inspector``, ``encoder``, ``slide_encoder``,
            ``patient_encoder``, ``writer``, ``engine``;
            ``tissue``, ``filter``, ``quality``, ``labels``, ``claims`` and ``staging`` as mappings.
            ``task="index"`` is ``coords`` with labels, and annotations required.
            The engine is ``inline`` unless given. ``encoder_plugin`` is the path of a file with
            plugins, or several.

    Returns:
        The status of every slide; failed slides do not raise.

    Raises:
        MicrotomeError: If the run cannot start.
    """
    config, registry = compose(slides, Path(output), options)
    return carry_out(plan_run(config, registry), make_reporter(reporter))


def run_task(
    name: str,
    /,
    output: str | Path,
    slides: str | Path | Sequence[str | Path] = (),
    *,
    reporter: Reporter | None = None,
    **options: Any,
) -> TaskOutcome:
    """Do a task, as ``microtome SLIDES task=NAME output=OUTPUT …`` does.

    ::

        microtome.run_task("train", "out", loss="focal", ohem={"ratio": 3}, device="cpu")

    Args:
        name: The task.
        output: The output folder.
        slides: The slides that it is about; by what the output holds if none are named.
        reporter: As of `run_slides`.
        **options: The task's own options, nested ones as mappings, by themselves or all as a
            mapping of the task's name, ``train={"loss": "focal"}``; and those of a run, as
            `run_slides` takes them. Of one name, the task's is meant.

    Returns:
        The lines of its summary, its record and its exit code.

    Raises:
        MicrotomeError: If it cannot be done.
    """
    registry = _with_files(options)[0]
    spec = registry.find("task", name).spec
    own, others = _own_options(spec, options)
    for key in others:
        if key not in _RUN_TAKES and (tasks := tasks_with(key, registry)):
            raise ConfigError(of_task(key, tasks, spec.name))
    refuse_unread(cast(TaskSpec, spec), others)
    config, registry = compose(slides, Path(output), others)
    told = {"task": spec.name, spec.name: json.loads(json.dumps(own, default=str))}
    config = replace(
        config,
        task=spec.name,
        own_task=Choice(plugin=spec.name, config=configure(spec, **own)),
        resolved={**config.resolved, **told},
    )
    return do_task(config, registry, make_reporter(reporter))


def _own_options(
    spec: PluginSpec, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell a task's options, by themselves or as a mapping of its name, from those of a run."""
    known = {f.name for f in fields(spec.config)}
    own = {key: value for key, value in options.items() if key in known}
    others = {key: value for key, value in options.items() if key not in known}
    if spec.name not in others:
        return own, others
    given = others.pop(spec.name)
    if not isinstance(given, Mapping):
        raise ConfigError(f"{spec.name}={given!r} says nothing of its options: give a mapping.")
    if twice := sorted(own.keys() & given.keys()):
        raise ConfigError(f"{twice[0]}=… is given twice, once in {spec.name}=…: leave one out.")
    return {**given, **own}, others


def _with_files(options: Mapping[str, Any]) -> tuple[Registry, Any]:
    """Give the plugins, with those of the files that options name, and these."""
    named = options.get("encoder_plugin", ())
    files = find_files([named] if isinstance(named, str | Path) else named)
    return add_files(get_registry(), files), files


def compose(
    slides: str | Path | Sequence[str | Path],
    output: Path,
    options: Mapping[str, Any],
    *,
    run_dir: Path | None = None,
) -> tuple[RunConfig, Registry]:
    """Compose a run out of the options that `run_slides` takes.

    Args:
        slides: Files, folders, glob patterns or CSV manifests.
        output: The output folder.
        options: By name.
        run_dir: The run's own folder; one below the output if None.

    Returns:
        The run, and the plugins with those of its files.

    Raises:
        MicrotomeError: If the options describe no run.
    """
    registry, files = _with_files(options)
    options = {key: value for key, value in options.items() if key != "encoder_plugin"}
    if options.get("task") == "index":  # as the command line's, which is made of two
        labels = {**options.get("labels", {}), "required": True}
        options |= {"task": "coords", "labels": labels}
    given = [slides] if isinstance(slides, str | Path) else list(slides)
    config = RunConfig(
        slides=tuple(map(str, given)),
        output=output,
        run_dir=run_dir or output / "runs" / f"python-{uuid4().hex[:12]}",
        encoder_plugin=files,
        resolved={
            "slides": [str(s) for s in given],
            "output": str(output),
            **({"encoder_plugin": [str(file.path) for file in files]} if files else {}),
            **{key: str(v) if isinstance(v, Path) else v for key, v in options.items()},
        },
    )
    # What slide and patient encoders read is derived, where nothing is said of it.
    if "encoder" not in options and {"slide_encoder", "patient_encoder"} & {*options}:
        config = replace(config, encoders=())
    return replace(config, **_settings(options, registry)), registry


def plan_run(config: RunConfig, registry: Registry, *, tiles_only: bool = False) -> list[RunPlan]:
    """Plan the passes of a run.

    Args:
        config: What to do.
        registry: The plugins.
        tiles_only: Whether it ends with what slide and patient encoders read.

    Raises:
        MicrotomeError: If it cannot start.
    """
    if not tiles_only:
        return plan_passes(config, registry)
    passes = solve(config, registry)
    bare = [replace(each, slide_encoders=(), patient_encoders=()) for each in passes]
    return [make_plan(each, registry) for each in bare]


def carry_out(plans: Sequence[RunPlan], reporter: Reporter) -> RunResult:
    """Do a run that is planned.

    Raises:
        MicrotomeError: If it cannot start, or the output takes nothing more.
    """
    return join_results([*run_passes(plans, reporter)])


def _settings(options: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _RUN_TAKES:
            raise ConfigError(unknown("option of a run", name, sorted(_RUN_TAKES)))
        if name in _SINGLE:
            settings[name] = choose(name, value, registry)[0]
        elif name in _SEVERAL:
            settings[f"{name}s"] = tuple(choose(name, value, registry))
        elif name in _SECTIONS:
            settings[name] = _section(name, value)
        elif name in ("visualize", "tile_devices"):
            settings[name] = (value,) if isinstance(value, str) else tuple(value)
        elif name in ("mpp_csv", "annotations"):
            settings[name] = None if value is None else Path(value)
        else:
            settings[name] = value
    return settings


def _section(name: str, value: Mapping[str, Any]) -> Any:
    section = _SECTIONS[name]
    known = [f.name for f in fields(section)]
    for key in value:
        if key not in known:
            raise ConfigError(unknown(f"option of {name}", key, known))
    return section(**value)


def choose(kind: str, value: Chosen, registry: Registry) -> list[Any]:
    """Make the choices of a kind of plugin out of what `run_slides` takes.

    Raises:
        ConfigError: If it is no choice.
        PluginError: If there is no such plugin, or it has no such option.
    """
    if isinstance(value, str):
        value = [value]
    chosen = value if isinstance(value, Mapping) else {name: {} for name in value}
    for name, options in chosen.items():
        if not isinstance(options, Mapping):
            raise ConfigError(
                f"{kind}={dict(value)!r} gives {name!r} no options; name the plugin first: "
                f"{kind}={{NAME: {{{name!r}: {options!r}}}}}."
            )
    if kind in _SINGLE and len(chosen) != 1:
        raise ConfigError(f"A run has one {kind}, not {len(chosen)}.")
    return [_choice(kind, name, dict(options), registry) for name, options in chosen.items()]


def _choice(kind: str, name: str, options: dict[str, Any], registry: Registry) -> Choice:
    if kind == "reader" and name == "auto":
        return Choice(plugin="auto")
    spec = registry.find(kind, str(options.pop("plugin", name))).spec
    model = _MODELS.get(kind)
    if model is None:
        return Choice(plugin=spec.name, key=name, config=configure(spec, **options))
    names = {f.name for f in fields(model)} - {f.name for f in fields(Choice)}
    owned = {key: options.pop(key) for key in names & options.keys()}
    return model(plugin=spec.name, key=name, config=configure(spec, **options), **owned)
