"""Reads a composed configuration, node by node, into a frozen `RunConfig`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from microtome.config.options import (
    SEVERAL,
    SINGLE,
    EncoderOptions,
    ModelOptions,
    RunOptions,
    default_of,
)
from microtome.config.schema import AUTO, RUN_OWNS, SECTIONS, no_option, plain, typed
from microtome.errors import ConfigError
from microtome.plugin import NoConfig
from microtome.plugin.files import add_files, find_files
from microtome.plugin.registry import Registry, get_registry
from microtome.plugin.wording import unknown
from microtome.run.settings import (
    DEFAULT_ENCODER,
    OVERLAYS,
    TASKS,
    Choice,
    EncoderChoice,
    PatientEncoderChoice,
    RunConfig,
    SlideEncoderChoice,
)
from microtome.store.layout import refuse_taken

if TYPE_CHECKING:
    from omegaconf import DictConfig

_Model = TypeVar("_Model", SlideEncoderChoice, PatientEncoderChoice)


def to_run_config(
    cfg: DictConfig,
    run_dir: Path | None = None,
    registry: Registry | None = None,
    *,
    unasked: Collection[str] = (),
) -> RunConfig:
    """Read a composed configuration.

    Args:
        cfg: The composed configuration, without the ``hydra`` node.
        run_dir: The run's own folder.
        registry: The plugins; those installed if None. Those of the files that the configuration
            names come on top.
        unasked: Kinds of which the command line says nothing. The default encoder is then left
            out of a run of slide or patient encoders, which bring what they need.

    Raises:
        PluginError: If one of these files is no good.
        ConfigError: If a key is unknown, a value is no good or a node names no plugin.
        UnknownPluginError: If a node names a plugin that is not installed.
    """
    values = _resolve(cfg)
    files = find_files(values.get("encoder_plugin") or ())
    registry = add_files(registry or get_registry(), files)
    own_task = _own_task(values, registry)
    options, nodes, sections = _parts(values)
    if not options.slides and own_task is None:
        raise ConfigError("No slide is given: name files, folders, patterns or a CSV manifest.")
    single = (_choose(kind, kind, nodes[kind], registry) for kind in SINGLE)
    reader, segmenter, tiler, engine = single
    config = RunConfig(
        slides=tuple(options.slides),
        output=Path(options.output),
        run_dir=run_dir,
        task=options.task,
        own_task=own_task,
        recursive=options.recursive,
        formats=options.formats.name,
        slide_id=options.slide_id.name,
        mpp=options.mpp,
        mpp_csv=Path(options.mpp_csv) if options.mpp_csv else None,
        tiling=_tiling(nodes["tiler"], registry),
        annotations=Path(options.annotations) if options.annotations else None,
        encoder_plugin=files,
        reader=reader,
        segmenter=segmenter,
        tiler=tiler,
        engine=engine,
        inspectors=tuple(_several("inspector", nodes["inspector"] or {}, registry)),
        encoders=(),
        writers=tuple(_several("writer", nodes["writer"], registry)),
        feature_dtype=options.feature_dtype.name,
        dense_dtype=options.dense_dtype.name,
        region_features=options.region_features,
        device=options.device,
        tile_devices=tuple(options.tile_devices),
        precision=options.precision.name,
        latents=options.latents,
        bag_memory_gb=options.bag_memory_gb,
        patient_failures=options.patient_failures.name,
        visualize=_overlays(options.visualize),
        force=options.force,
        batch_size=options.batch_size,
        threads=options.threads,
        reader_threads=options.reader_threads,
        torch_threads=options.torch_threads,
        profile=options.profile,
        resolved=_resolve(cfg),
        **{name: typed(schema, sections[name], name) for name, schema in SECTIONS.items()},
    )
    # Last, so that a bad batch_size is told by its own name, not by that of every encoder.
    slides = tuple(_models(SlideEncoderChoice, nodes, options, registry))
    patients = tuple(_models(PatientEncoderChoice, nodes, options, registry))
    is_default = "encoder" in unasked and list(nodes["encoder"] or {}) == [DEFAULT_ENCODER]
    brings_its_own = is_default and (slides or patients)
    encoders = () if brings_its_own else _encoders(nodes["encoder"], options, registry)
    return replace(
        config, encoders=tuple(encoders), slide_encoders=slides, patient_encoders=patients
    )


def _own_task(values: dict[str, Any], registry: Registry) -> Choice | None:
    """Take the node of a task plugin out of a configuration; None where the run is of slides."""
    name = str(values.get("task", ""))
    tasks = registry.names("task")
    for other in tasks:
        if other in values and other != name:
            raise ConfigError(f"The options {other}.… go with task={other}, and this is {name}.")
    if name not in tasks:
        if name not in TASKS:
            raise ConfigError(unknown("task", name, (*TASKS, *tasks)))
        return None
    spec = registry.find("task", name).spec
    return Choice(plugin=name, config=typed(spec.config, values.pop(name, {}), name))


def _parts(values: dict[str, Any]) -> tuple[RunOptions, dict[str, Any], dict[str, Any]]:
    """Tell apart the run's own options, the nodes of plugins and the sections."""
    nodes = {kind: values.pop(kind, None) for kind in (*SINGLE, *SEVERAL)}
    sections = {name: values.pop(name, {}) for name in SECTIONS}
    for key in values.keys() - {field.name for field in fields(RunOptions)}:
        raise ConfigError(no_option(key, nodes | sections))
    return typed(RunOptions, values), nodes, sections


def _resolve(cfg: DictConfig) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"A value cannot be resolved: {' '.join(str(error).split())}. A name with ${{…}} in "
            "a value other than a path is written \\${…}."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError("The configuration is not a mapping.")
    return {str(key): value for key, value in values.items()}


def _choose(kind: str, where: str, node: Any, registry: Registry) -> Choice:
    """Read a node: which plugin, and its configuration."""
    name = _plugin_of(kind, where, node)
    key = where.partition(".")[2]
    own = {k: v for k, v in node.items() if k != "plugin"}
    if kind == "reader" and name == AUTO:
        for option in own:
            raise ConfigError(_whose(option, registry))
        return Choice(plugin=AUTO)
    spec = registry.find(kind, name).spec
    run_owns = {f.name for f in fields(RUN_OWNS.get(kind, NoConfig))}
    in_schema = {f.name for f in fields(spec.config)}
    own = {k: v for k, v in own.items() if k in in_schema or k not in run_owns}
    return Choice(plugin=spec.name, key=key, config=typed(spec.config, own, where))


def _whose(option: str, registry: Registry) -> str:
    """Phrase the error for an option of the reader that nobody chose."""
    owners = [
        entry.spec.name
        for entry in registry.entries("reader")
        if option in (f.name for f in fields(entry.spec.config))
    ]
    if not owners:
        return f"reader=auto has no options, and no reader has one named {option!r}."
    chosen = " or ".join(f"reader={owner}" for owner in owners)
    return f"reader=auto has no options: reader.{option} goes with {chosen}."


def _plugin_of(kind: str, where: str, node: Any) -> str:
    if isinstance(node, Mapping) and isinstance(node.get("plugin"), str):
        return str(node["plugin"])
    if node is None:
        raise ConfigError(f"No {kind} is chosen: {kind}=NAME.")
    key = where.partition(".")[2]
    way_out = (
        f"choose it with {kind}=[…,{key}] or +{kind}@{kind}.{key}=NAME"
        if key
        else f"choose one with {kind}=NAME"
    )
    raise ConfigError(f"The node {where} has options but no plugin: {way_out}.")


def _several(kind: str, nodes: Any, registry: Registry) -> Iterator[Choice]:
    if not isinstance(nodes, Mapping):
        raise ConfigError(f"{kind}={nodes} is not a mapping of {kind}s by name.")
    for key, node in nodes.items():
        yield _choose(kind, f"{kind}.{key}", node, registry)


def _encoders(nodes: Any, run: RunOptions, registry: Registry) -> Iterator[EncoderChoice]:
    # A node out of somebody's own YAML may lack the options that the run owns.
    own = {f.name: plain(default_of(f)) for f in fields(EncoderOptions)}
    owned = {name: plain(getattr(run, name, default)) for name, default in own.items()}
    for choice in _several("encoder", nodes, registry):
        where = f"encoder.{choice.key}"
        given = {k: v for k, v in nodes[choice.key].items() if k in owned}
        options: EncoderOptions = typed(EncoderOptions, owned | given, where)
        yield EncoderChoice(
            plugin=choice.plugin,
            key=choice.key,
            config=choice.config,
            device=options.device,
            precision=options.precision.name,
            batch_size=options.batch_size,
            tokens=options.tokens,
            attention=options.attention,
        )


def _models(
    choice: type[_Model], nodes: Mapping[str, Any], run: RunOptions, registry: Registry
) -> Iterator[_Model]:
    """Read the nodes of slide or patient encoders."""
    kind = choice.kind
    owned = {f.name: plain(getattr(run, f.name)) for f in fields(ModelOptions)}
    for chosen in _several(kind, nodes[kind] or {}, registry):
        given = {k: v for k, v in nodes[kind][chosen.key].items() if k in owned}
        options: ModelOptions = typed(ModelOptions, owned | given, f"{kind}.{chosen.key}")
        yield choice(
            plugin=chosen.plugin,
            key=chosen.key,
            config=chosen.config,
            device=options.device,
            precision=options.precision.name,
        )


def _tiling(node: Mapping[str, Any], registry: Registry) -> str:
    name = str(node.get("name") or "")
    if name != Path(name).name and name:
        raise ConfigError(f"tiler.name={name} is a folder's name, not a path.")
    refuse_taken(name, registry)
    return name


def _overlays(value: Any) -> tuple[str, ...]:
    asked = [] if value is None else [value] if isinstance(value, str) else list(value)
    for name in asked:
        if name not in (*OVERLAYS, "all"):
            raise ConfigError(unknown("overlay", str(name), (*OVERLAYS, "all")))
    return OVERLAYS if "all" in asked else tuple(name for name in OVERLAYS if name in asked)
