"""A whole run from Python: the command line's words as arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from microtome.errors import ConfigError
from microtome.plugin.files import add_files, find_files
from microtome.plugin.registry import Registry, configure, get_registry, unknown
from microtome.run.plan import make_plan
from microtome.run.progress import Reporter, make_reporter
from microtome.run.runner import run_plan
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
from microtome.run.summary import RunResult

Chosen = str | Sequence[str] | Mapping[str, Mapping[str, Any]]
"""One plugin, several, or several with their options: ``{"resnet18": {"weights": "random"}}``."""

_SINGLE = ("reader", "segmenter", "tiler", "engine")
_SEVERAL = ("inspector", "encoder", "slide_encoder", "patient_encoder", "writer")
_SECTIONS = {
    "tissue": TissueSettings,
    "filter": FilterSettings,
    "quality": QualitySettings,
    "claims": ClaimSettings,
    "staging": StagingSettings,
}
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
            ``tissue``, ``filter``, ``quality``, ``claims`` and ``staging`` as mappings. The engine
            is ``inline`` unless given. ``encoder_plugin`` is the path of a file with plugins, or
            several.

    Returns:
        The status of every slide; failed slides do not raise.

    Raises:
        MicrotomeError: If the run cannot start.
    """
    named = options.pop("encoder_plugin", ())
    files = find_files([named] if isinstance(named, str | Path) else named)
    registry = add_files(get_registry(), files)
    given = [slides] if isinstance(slides, str | Path) else list(slides)
    output = Path(output)
    config = RunConfig(
        slides=tuple(map(str, given)),
        output=output,
        run_dir=output / "runs" / f"python-{uuid4().hex[:12]}",
        encoder_plugin=files,
        resolved={
            "slides": [str(s) for s in given],
            "output": str(output),
            **({"encoder_plugin": [str(file.path) for file in files]} if files else {}),
            **options,
        },
    )
    config = replace(config, **_settings(options, registry))
    return run_plan(make_plan(config, registry), reporter or make_reporter())


def _settings(options: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    known = {f.name for f in fields(RunConfig)} - {"slides", "output", "run_dir", "resolved"}
    known = (known - {f"{kind}s" for kind in _SEVERAL}) | {*_SEVERAL}
    settings: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            raise ConfigError(unknown("option of a run", name, sorted(known)))
        if name in _SINGLE:
            settings[name] = _choose(name, value, registry)[0]
        elif name in _SEVERAL:
            settings[f"{name}s"] = tuple(_choose(name, value, registry))
        elif name in _SECTIONS:
            settings[name] = _section(name, value)
        elif name == "visualize":
            settings[name] = (value,) if isinstance(value, str) else tuple(value)
        elif name == "mpp_csv":
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


def _choose(kind: str, value: Chosen, registry: Registry) -> list[Any]:
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
