"""Turns a composed configuration into a frozen `RunConfig`, refusing what does not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from microtome.config.argv import escape
from microtome.config.options import (
    SEVERAL,
    SINGLE,
    EncoderOptions,
    ModelOptions,
    RunOptions,
    TilerOptions,
    default_of,
    help_of,
    sentence,
    type_of,
)
from microtome.errors import ConfigError
from microtome.plugin import NoConfig, PluginSpec
from microtome.plugin.files import add_files, find_files
from microtome.plugin.registry import Registry, get_registry, unknown
from microtome.plugin.specs import SPECS
from microtome.run.settings import (
    DEFAULT_ENCODER,
    OVERLAYS,
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

if TYPE_CHECKING:
    from omegaconf import DictConfig

_Model = TypeVar("_Model", SlideEncoderChoice, PatientEncoderChoice)

AUTO = "auto"
"""The reader that is no plugin: the registry's readers in turn."""

RUN_OWNS: Mapping[str, type] = {
    "encoder": EncoderOptions,
    "slide_encoder": ModelOptions,
    "patient_encoder": ModelOptions,
    "tiler": TilerOptions,
}
"""The options of a kind's nodes that are not the plugin's."""

SECTIONS: Mapping[str, type] = {
    "tissue": TissueSettings,
    "filter": FilterSettings,
    "quality": QualitySettings,
    "claims": ClaimSettings,
    "staging": StagingSettings,
}
"""The nodes at the top that are no plugin's."""


def options_node() -> dict[str, Any]:
    """Give the top of the configuration at its defaults, as plain values."""
    return defaults(RunOptions) | {kind: {} for kind in SEVERAL}


def plugin_node(spec: PluginSpec) -> dict[str, Any]:
    """Give a plugin's node at its defaults, as plain values."""
    run_owns = RUN_OWNS.get(spec.kind, NoConfig)
    return {"plugin": spec.name} | defaults(spec.config) | defaults(run_owns)


def defaults(schema: type) -> dict[str, Any]:
    """Give a dataclass's defaults as plain values; ``???`` where it has none."""
    return {field.name: _plain(default_of(field)) for field in fields(schema)}


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
    nodes = {kind: values.pop(kind, None) for kind in (*SINGLE, *SEVERAL)}
    sections = {name: values.pop(name, {}) for name in SECTIONS}
    for key in values.keys() - {field.name for field in fields(RunOptions)}:
        raise ConfigError(no_option(key, nodes | sections))
    options: RunOptions = typed(RunOptions, values)
    files = find_files(options.encoder_plugin)
    registry = add_files(registry or get_registry(), files)
    if not options.slides:
        raise ConfigError("No slide is given: name files, folders, patterns or a CSV manifest.")
    single = (_choose(kind, kind, nodes[kind], registry) for kind in SINGLE)
    reader, segmenter, tiler, engine = single
    config = RunConfig(
        slides=tuple(options.slides),
        output=Path(options.output),
        run_dir=run_dir,
        task=options.task.name,
        recursive=options.recursive,
        formats=options.formats.name,
        slide_id=options.slide_id.name,
        mpp=options.mpp,
        mpp_csv=Path(options.mpp_csv) if options.mpp_csv else None,
        tiling=_tiling(nodes["tiler"]),
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


def typed(schema: type, values: Any, where: str = "") -> Any:
    """Make an instance of a dataclass from plain values, refusing what does not fit.

    Args:
        schema: Any dataclass whose types OmegaConf knows.
        values: By field; fields left out keep their defaults.
        where: The node's key, for the messages.

    Raises:
        ConfigError: If a field is unknown, has a wrong type or is required and missing.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    prefix = f"{where}." if where else ""
    if not isinstance(values, Mapping):
        raise ConfigError(_no_options(where, values, schema))
    known = get_type_hints(schema)
    try:
        node = OmegaConf.structured(schema)
        OmegaConf.set_readonly(node, False)
        OmegaConf.set_struct(node, True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"The options of {where} are declared in a way that OmegaConf cannot hold: "
            f"{str(error).splitlines()[0]}"
        ) from error
    for name, value in values.items():
        if name not in known:
            what = f"option of {where}" if where else "option"
            raise ConfigError(unknown(what, str(name), sorted(known)))
        try:
            node[name] = _escaped(value)
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"{prefix}{name}={_yaml(value)} does not fit: it takes {sentence(known[name])}."
            ) from error
    try:
        return OmegaConf.to_object(node)
    except MissingMandatoryValue as error:
        missing = [f.name for f in fields(schema) if OmegaConf.is_missing(node, f.name)]
        raise ConfigError(f"{prefix}{missing[0]}=… must be given.") from error


def no_option(key: str, root: Mapping[Any, Any]) -> str:
    """Phrase the error for a key at the top that there is not, with where it may belong.

    Args:
        key: The key.
        root: A composed configuration, of which the nodes of plugins and sections are looked at.
    """
    nodes: dict[str, Any] = {name: root.get(name) for name in (*SINGLE, *SECTIONS)}
    for kind in SEVERAL:
        several = root.get(kind)
        if isinstance(several, Mapping):
            nodes |= {f"{kind}.{name}": several[name] for name in several}
    owners = [f"{where}.{key}=…" for where, node in nodes.items() if _has(node, key)]
    if owners:
        return f"There is no option named {key!r}. Did you mean {' or '.join(owners)}?"
    known = {field.name for field in fields(RunOptions)} | {*SINGLE, *SEVERAL, "preset"}
    return unknown("option", key, sorted(known))


def _has(node: Any, key: str) -> bool:
    return isinstance(node, Mapping) and key != "plugin" and key in node


def _no_options(where: str, value: Any, schema: type) -> str:
    """Phrase the error for a value where options are wanted."""
    first, hint = next(iter(get_type_hints(schema).items()), ("KEY", None))
    meant = _yaml(value) if hint is bool and isinstance(value, bool) else "…"
    return f"{where}={_yaml(value)} says nothing of its options: say {where}.{first}={meant}"


def options_table(registry: Registry | None = None) -> str:
    """Write every option with its type, default and help as Markdown tables."""
    registry = registry or get_registry()
    parts = ["## Run", _table(RunOptions, "", leave=tuple(SECTIONS))]
    for name, schema in SECTIONS.items():
        parts += [f"## `{name}`", _table(schema, f"{name}.")]
    for kind in SPECS:
        parts.append(f"## `{kind}`")
        if kind in RUN_OWNS:
            prefix = f"{kind}.NAME." if kind in SEVERAL else f"{kind}."
            parts += [f"Every {kind} has these.", _table(RUN_OWNS[kind], prefix)]
        parts += [part for specs in _alike(registry, kind) for part in _section(kind, specs)]
    return "\n\n".join(parts) + "\n"


def _alike(registry: Registry, kind: str) -> list[list[PluginSpec]]:
    """Put plugins of a kind together that have the same options: most models of a catalogue do."""
    alike: dict[object, list[PluginSpec]] = {}
    for spec in (entry.spec for entry in registry.entries(kind)):
        alike.setdefault(spec.config if kind in SEVERAL else spec.name, []).append(spec)
    return list(alike.values())


def _section(kind: str, specs: list[PluginSpec]) -> Iterator[str]:
    names = [f"{kind}={spec.name}" if spec.in_runs else spec.name for spec in specs]
    if len(specs) == 1:
        yield f"### `{names[0]}`\n\n{specs[0].summary.rstrip('.')}."
    else:
        listed = [
            f"`{name}`: {s.summary.rstrip('.')}" for name, s in zip(names, specs, strict=True)
        ]
        yield f"### `{names[0]}` and {len(names) - 1} more\n\n- " + "\n- ".join(listed)
    config = specs[0].config
    leave = tuple(f.name for f in fields(RUN_OWNS.get(kind, NoConfig)))
    if any(f.name not in leave for f in fields(config)):
        name = specs[0].name if len(specs) == 1 else "NAME"
        prefix = f"{kind}.{name}." if kind in SEVERAL else f"{kind}."
        yield _table(config, prefix if specs[0].in_runs else "", leave=leave)


def _table(schema: type, prefix: str, *, leave: tuple[str, ...] = ()) -> str:
    helps = help_of(schema)
    rows = ["| option | type | default | |", "|---|---|---|---|"]
    for name, default in defaults(schema).items():
        if name not in leave:
            shown = {"???": "required", "": "empty"}.get(str(default), f"`{_yaml(default)}`")
            cells = (f"`{prefix}{name}`", type_of(schema, name), shown, helps[name])
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _plain(value: Any) -> Any:
    """Turn a default into what YAML holds."""
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


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


def _escaped(value: Any) -> Any:
    """Escape texts that were resolved already, so that they are not resolved once more."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    return value


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
    own = {f.name: _plain(default_of(f)) for f in fields(EncoderOptions)}
    owned = {name: _plain(getattr(run, name, default)) for name, default in own.items()}
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
    owned = {f.name: _plain(getattr(run, f.name)) for f in fields(ModelOptions)}
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


def _tiling(node: Mapping[str, Any]) -> str:
    name = str(node.get("name") or "")
    if name != Path(name).name and name:
        raise ConfigError(f"tiler.name={name} is a folder's name, not a path.")
    return name


def _overlays(value: Any) -> tuple[str, ...]:
    asked = [] if value is None else [value] if isinstance(value, str) else list(value)
    for name in asked:
        if name not in (*OVERLAYS, "all"):
            raise ConfigError(unknown("overlay", str(name), (*OVERLAYS, "all")))
    return OVERLAYS if "all" in asked else tuple(name for name in OVERLAYS if name in asked)
