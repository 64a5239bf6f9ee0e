"""Options as data: what there is, at its defaults, typed, and written down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

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
    type_of,
)
from microtome.errors import ConfigError
from microtome.plugin import NoConfig, PluginSpec
from microtome.plugin.options import tasks_with
from microtome.plugin.registry import Registry, get_registry
from microtome.plugin.specs import SPECS
from microtome.plugin.wording import of_task, sentence, unknown
from microtome.run.labelling import LabelSettings
from microtome.run.settings import (
    ClaimSettings,
    FilterSettings,
    QualitySettings,
    StagingSettings,
    TissueSettings,
)

_NO_VALUE = {"???": "required", "": "empty"}

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
    "labels": LabelSettings,
    "claims": ClaimSettings,
    "staging": StagingSettings,
}
"""The nodes at the top that are no plugin's."""


def options_node() -> dict[str, Any]:
    """Give the top of the configuration at its defaults, as plain values."""
    return defaults(RunOptions) | {kind: {} for kind in SEVERAL}


def plugin_node(spec: PluginSpec) -> dict[str, Any]:
    """Give a plugin's node at its defaults, as plain values; a task's with the word for it."""
    if spec.kind == "task":
        return {"task": spec.name, spec.name: defaults(spec.config)}
    run_owns = RUN_OWNS.get(spec.kind, NoConfig)
    return {"plugin": spec.name} | defaults(spec.config) | defaults(run_owns)


def defaults(schema: type) -> dict[str, Any]:
    """Give a dataclass's defaults as plain values; ``???`` where it has none."""
    return {field.name: plain(default_of(field)) for field in fields(schema)}


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
            inner = known[name]
            if is_dataclass(inner) and isinstance(inner, type):
                node[name] = typed(inner, value, f"{prefix}{name}")
            else:
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
    if tasks := tasks_with(key, get_registry()):
        return of_task(key, tasks, str(root.get("task") or "another"))
    known = {field.name for field in fields(RunOptions)} | {*SINGLE, *SEVERAL, "preset"}
    own = root.get(root.get("task"))
    known |= set(own) if isinstance(own, Mapping) else set()
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
        own = {"task": f"{name}."}.get(kind, f"{kind}.")
        prefix = f"{kind}.{name}." if kind in SEVERAL else own
        yield _table(config, prefix if specs[0].in_runs else "", leave=leave)


def _table(schema: type, prefix: str, *, leave: tuple[str, ...] = ()) -> str:
    rows = ["| option | type | default | |", "|---|---|---|---|"]
    return "\n".join([*rows, *_rows(schema, prefix, leave)])


def _rows(schema: type, prefix: str, leave: tuple[str, ...] = ()) -> Iterator[str]:
    for name, kind, default, told in option_rows(schema, prefix, leave):
        shown = default if default in _NO_VALUE.values() else f"`{default}`"
        cells = (f"`{name}`", kind, shown, told)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def option_rows(
    schema: type, prefix: str = "", leave: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, str, str]]:
    """Give the name, type, default and help of each option, nested ones too.

    Args:
        schema: A dataclass.
        prefix: Put before the names.
        leave: Names of those to leave out.
    """
    helps, hints = help_of(schema), get_type_hints(schema)
    for name, default in defaults(schema).items():
        if name in leave:
            continue
        if is_dataclass(hints[name]):
            yield from option_rows(hints[name], f"{prefix}{name}.")
        else:
            shown = _NO_VALUE.get(str(default), _yaml(default))
            yield f"{prefix}{name}", type_of(schema, name), shown, helps[name]


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def plain(value: Any) -> Any:
    """Turn a default into what YAML holds."""
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Path):
        return str(value)
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _escaped(value: Any) -> Any:
    """Escape texts that were resolved already, so that they are not resolved once more."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    return value
