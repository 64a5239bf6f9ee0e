"""What choosing a model means for a run: its nodes, its devices, and the tiles that it wants."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from microtome.api.execution import ExecutionOptions
from microtome.api.given import are_given
from microtome.api.grids import grid_options
from microtome.api.preprocessing import PreprocessingConfig
from microtome.api.runs import Chosen, choose
from microtome.errors import ConfigError
from microtome.plugin.options import configure
from microtome.plugin.specs import (
    EncoderCard,
    PatientEncoderSpec,
    PluginSpec,
    SlideEncoderSpec,
    TileNeed,
)
from microtome.run.planning.target import misfit, settle_target
from microtome.slide.resolution import OBJECTIVE_MPP

if TYPE_CHECKING:
    from microtome.api.models import Model


def model_options(
    model: Model, preprocessing: PreprocessingConfig, execution: ExecutionOptions
) -> dict[str, Any]:
    """Give the options of a run that choose a model and what it reads."""
    precision = execution.precision or model.precision or "auto"
    batch_size = None if preprocessing.adaptive_batching else execution.batch_size
    placed = {"device": model.device, "precision": precision}
    fed = {**placed, "batch_size": batch_size}
    options: dict[str, Any] = dict(placed)
    if batch_size is not None:
        options["batch_size"] = batch_size
    own = {**(fed if model.level == "tile" else placed), **_own_options(model)}
    options[model.spec.kind] = {model.key: {**own, "plugin": model.name}}
    for kind, chosen, common in (
        ("encoder", _nodes(model.encoder), fed),
        ("slide_encoder", _slide_nodes(model, execution), placed),
    ):
        if chosen:
            options[kind] = {name: {**common, **given} for name, given in chosen.items()}
    return options


def _nodes(chosen: Chosen | None) -> dict[str, Mapping[str, Any]]:
    """Give plugins that were chosen as nodes of a run: their options by key."""
    if chosen is None:
        return {}
    names = [chosen] if isinstance(chosen, str) else chosen
    return dict(names) if isinstance(names, Mapping) else {name: {} for name in names}


def _plugins(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [str(options.get("plugin", name)) for name, options in nodes.items()]


def _own_options(model: Model) -> dict[str, Any]:
    """Give a model's options; `Model` has those that say what it reads in fields of its own.

    Raises:
        ConfigError: If it is to read several slide encoders, and takes one.
    """
    options, known = dict(model.options), {each.name for each in fields(model.spec.config)}
    slides, tiles = _nodes(model.slide_encoder), _nodes(model.encoder)
    if "slide_encoder" in known and slides:
        if len(slides) > 1:
            raise ConfigError(
                f"{model.name} is by one slide encoder; slide_encoder= names {len(slides)}."
            )
        options["slide_encoder"] = _plugins(slides)[0]
    # With options of its own it is no longer what a bare name needs; it is the only one anyway.
    if "encoder" in known and len(tiles) == 1 and not any(tiles.values()):
        options["encoder"] = _plugins(tiles)[0]
    return options


def _slide_nodes(model: Model, execution: ExecutionOptions) -> dict[str, Mapping[str, Any]]:
    """Give the slide encoders of a run, as far as it does not derive them."""
    nodes = _nodes(model.slide_encoder)
    if not takes_tiles(model):
        return nodes
    if (spec := _slide_part(model)) is not None:
        known = {each.name for each in fields(spec.config)} - {"variant"}
        return {spec.name: {k: v for k, v in model.options.items() if k in known}}
    if execution.save_slide_embeddings and not nodes:
        nodes = {name: {} for name in _slide_encoders(model)}
    # One without options is made for the patient alone; its own embeddings are computed on request.
    return nodes if execution.save_slide_embeddings or any(nodes.values()) else {}


def takes_tiles(model: Model) -> bool:
    """Whether it is a model of patients that takes tiles instead of slide embeddings."""
    return isinstance(model.spec, PatientEncoderSpec) and model.spec.takes == "tiles"


def _slide_part(model: Model) -> SlideEncoderSpec | None:
    """Find the slide encoder that a patient model of tiles is on top of: same name, same needs."""
    registry = model.registry
    if not takes_tiles(model) or model.name not in registry.names("slide_encoder"):
        return None
    spec = registry.find("slide_encoder", model.name).spec
    needs = getattr(model.spec, "needs", ())
    return spec if isinstance(spec, SlideEncoderSpec) and needs and spec.needs == needs else None


def spread(model: Model, execution: ExecutionOptions, slides: int) -> dict[str, Any]:
    """Give the options of a run that use several GPUs: slides are spread, or one slide's tiles.

    Raises:
        ConfigError: If more are asked for than there are, or a certain device was named.
    """
    wanted = execution.num_gpus
    if model.device not in ("auto", "cuda"):
        if wanted is not None and wanted > 1:
            raise ConfigError(
                f"num_gpus={wanted} and device={model.device!r} contradict each other: leave one."
            )
        return {}
    there = count_gpus() if needs_torch(model) else 0
    if wanted is not None and wanted > max(1, there):
        raise ConfigError(f"num_gpus={wanted} was asked for, and torch sees {there}.")
    count = there if wanted is None else wanted
    if count < 2:
        return {}
    if slides > 1:
        return {"engine": {"local": {"devices": list(range(min(count, slides)))}}}
    return {"tile_devices": [f"cuda:{index}" for index in range(count)]}


def count_gpus() -> int:
    """Count the GPUs that torch sees."""
    import torch

    return int(torch.cuda.device_count())


def needs_torch(model: Model) -> bool:
    """Whether the model, or what it reads, runs with torch, and that is installed."""
    registry = model.registry
    encoders = [registry.find("encoder", name).spec for name in _reads(model)]
    wanted = any("torch" in spec.requires for spec in [*_bag_specs(model), *encoders])
    return wanted and ("torch" in sys.modules or find_spec("torch") is not None)


def _slide_encoders(model: Model) -> list[str]:
    """Name the plugins of the slide encoders that a patient model is known to take."""
    if model.level != "patient":
        return []
    if model.slide_encoder is not None:
        return _plugins(_nodes(model.slide_encoder))
    default = getattr(model.spec.config(), "slide_encoder", "")
    named = str(model.options.get("slide_encoder") or default)
    named = named or str(model.spec.fixed.get("slide_encoder", ""))
    named = named or getattr(model.spec, "slide_encoder", "")
    return [named] if named else []


def _bag_specs(model: Model) -> list[PluginSpec]:
    """Give the model's spec, and those of the slide encoders that it is on top of."""
    find = model.registry.find
    return [model.spec, *(find("slide_encoder", name).spec for name in _slide_encoders(model))]


def _needs(model: Model) -> list[TileNeed]:
    return [need for spec in _bag_specs(model) for need in getattr(spec, "needs", ())]


def _reads(model: Model) -> list[str]:
    """Name the plugins of the patch encoders that a model is known to read."""
    given = _plugins(_nodes(model.encoder))
    return given or [need.encoder for need in _needs(model) if need.encoder]


def tile_card(model: Model) -> EncoderCard | None:
    """Give what is known of the tiles that a model wants; None where nothing says."""
    if model.level == "tile":
        return model.card
    need = next((need for need in _needs(model) if need.patch_size), None)
    if need is not None:
        return EncoderCard(
            dim=1, patch_size=need.patch_size, magnification=need.magnification, mpp=need.mpp
        )
    named = _reads(model)
    spec = model.registry.find("encoder", named[0]).spec if named else None
    card: EncoderCard | None = getattr(spec, "card", None)
    return card


def tile_size(model: Model, settings: PreprocessingConfig) -> tuple[int, float]:
    """Give the side and µm/px of a tile as far as they are known before slides are opened."""
    card = tile_card(model)
    grid = configure(
        model.registry.find("tiler", "grid").spec,
        size=settings.requested_tile_size_px,
        mpp=settings.requested_spacing_um,
    )
    settled, _ = settle_target(grid, {} if card is None else {model.name: card})
    return settled.size, settled.mpp or OBJECTIVE_MPP / settled.magnification


def check_model(model: Model) -> None:
    """Refuse options that the model does not have, before any slide is named.

    Raises:
        PluginError: If it has no such option.
        ConfigError: If a pooling is to read several encoders.
    """
    options = model_options(model, PreprocessingConfig(), ExecutionOptions())
    for kind in ("encoder", "slide_encoder", "patient_encoder"):
        if kind in options:
            choose(kind, options[kind], model.registry)
    several = len(_reads(model))
    if isinstance(model.spec, SlideEncoderSpec) and not model.spec.needs and several > 1:
        raise ConfigError(
            f"{model.name} gives one embedding, of one encoder; encoder= names {several}."
        )


def check_settings(
    model: Model, preprocessing: PreprocessingConfig, execution: ExecutionOptions
) -> None:
    """Refuse settings that a tile model was not made for.

    What slide and patient models need, the run itself holds against the settings.

    Raises:
        ConfigError: Naming both, unless the model allows them; or if slide embeddings are to be
            saved of a patient model that makes none.
    """
    lacks_slides = takes_tiles(model) and not _slide_nodes(model, execution)
    if execution.save_slide_embeddings and lacks_slides:
        raise ConfigError(
            f"{model.name} makes a patient's embedding of tiles, without one of each slide: leave "
            "out save_slide_embeddings."
        )
    if model.allow_non_recommended_settings or model.level != "tile":
        return
    way_out = "Model.from_preset(…, allow_non_recommended_settings=True) takes them all the same."
    card = model.card
    if card is None:
        return
    precision = execution.precision or model.precision
    if precision not in (None, "fp32", card.precision) and model.device != "cpu":
        raise ConfigError(
            f"{model.name} was made for {card.precision}, and precision={precision!r} was asked "
            f"for. {way_out}"
        )
    if are_given(preprocessing):  # held against the card slide by slide
        return
    spec = model.registry.find("tiler", "grid").spec
    settled, _ = settle_target(
        configure(spec, **grid_options(preprocessing, card)), {model.name: card}
    )
    if told := misfit(model.name, card, settled):
        raise ConfigError(f"{told} {way_out}")
