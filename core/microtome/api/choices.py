"""What choosing a model means for a run: its nodes, its devices, and the tiles that it wants."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from microtome.api.execution import ExecutionOptions
from microtome.api.preprocessing import PreprocessingConfig, grid_options
from microtome.api.runs import choose
from microtome.errors import ConfigError
from microtome.plugin.registry import configure
from microtome.plugin.specs import EncoderCard, SlideEncoderSpec
from microtome.run.planning.target import misfit, settle_target

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
    own = {**(fed if model.level == "tile" else placed), **model.options, "plugin": model.name}
    options[model.spec.kind] = {model.key: own}
    for kind, chosen, common in (
        ("encoder", model.encoder, fed),
        ("slide_encoder", model.slide_encoder, placed),
    ):
        if chosen is not None:
            names = [chosen] if isinstance(chosen, str) else chosen
            several = names if isinstance(names, Mapping) else {name: {} for name in names}
            options[kind] = {name: {**common, **given} for name, given in several.items()}
    return options


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
    specs = [model.spec, *(registry.find("encoder", name).spec for name in _reads(model))]
    wanted = any("torch" in spec.requires for spec in specs)
    return wanted and ("torch" in sys.modules or find_spec("torch") is not None)


def _reads(model: Model) -> list[str]:
    """Name the plugins of the patch encoders that a model is known to read."""
    given = model.encoder
    if isinstance(given, Mapping):
        return [str(options.get("plugin", name)) for name, options in given.items()]
    if given is not None:
        return [given] if isinstance(given, str) else list(given)
    return [need.encoder for need in getattr(model.spec, "needs", ()) if need.encoder]


def tile_card(model: Model) -> EncoderCard | None:
    """Give what is known of the tiles that a model wants; None where nothing says."""
    if model.level == "tile":
        return model.card
    needs = getattr(model.spec, "needs", ())
    if any(need.patch_size for need in needs):
        need = next(need for need in needs if need.patch_size)
        return EncoderCard(
            dim=1, patch_size=need.patch_size, magnification=need.magnification, mpp=need.mpp
        )
    named = _reads(model)
    spec = model.registry.find("encoder", named[0]).spec if named else None
    card: EncoderCard | None = getattr(spec, "card", None)
    return card


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
        ConfigError: Naming both, unless the model allows them.
    """
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
    if preprocessing.read_coordinates_from or preprocessing.read_tiles_from:
        return
    spec = model.registry.find("tiler", "grid").spec
    settled, _ = settle_target(
        configure(spec, **grid_options(preprocessing, card)), {model.name: card}
    )
    if told := misfit(model.name, card, settled):
        raise ConfigError(f"{told} {way_out}")
