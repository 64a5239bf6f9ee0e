"""Models of timm: any by name, and the rows of the catalogue that timm can build."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.layers.mlp import SwiGLUPacked
from torch import Tensor, nn

from microtome.errors import ConfigError, EncoderError
from microtome.plugin.specs import EncoderCard, Transform
from microtome_encoders.options import HubConfig, ModelConfig, VariantConfig, WeightsConfig
from microtome_encoders.patch.base import TorchEncoder
from microtome_encoders.patch.weights import download, fit_state, hub_errors, read_state
from microtome_encoders.recipe import Recipe

LAYERS = MappingProxyType({"swiglu_packed": SwiGLUPacked, "silu": nn.SiLU})
"""The layers that a recipe's arguments may name."""

_ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")


class TimmEncoder(TorchEncoder):
    """A model of timm without its classifier.

    With a recipe, the architecture is the recipe's and the weights are fetched from its hub
    entry. Without one, ``config.model`` names any model of timm, or ``hf-hub:owner/name@revision``,
    and timm fetches the weights that go with the name.

    Args:
        config: The user's options.
        recipe: A row of the catalogue.

    Raises:
        ConfigError: If there is neither a recipe nor a model that timm has.
    """

    def __init__(self, config: WeightsConfig, *, recipe: Recipe | None = None) -> None:
        super().__init__(config)
        self._given = recipe
        self._variant = config.variant.value if isinstance(config, VariantConfig) else ""
        self._named = config.model if isinstance(config, ModelConfig) else ""
        if recipe is None:
            _check_name(self._named)

    @cached_property
    def recipe(self) -> Recipe:
        """How the model is made; for a model by name, read from timm without any weights."""
        if self._given is None:
            return _recipe_of(self._named)
        if not self._variant:
            return self._given
        card = replace(self._given.card, dim=self._given.variants[self._variant])
        if self._variant == "cls":
            card = replace(card, pooling="class token")
        return replace(self._given, card=card)

    @property
    def card(self) -> EncoderCard:
        """What is known of the model."""
        return self.recipe.card

    @property
    def name(self) -> str:
        """The hub entry of a catalogue row, timm's name otherwise."""
        return (self._given and self._given.card.hub_id) or self.recipe.architecture

    @property
    def revision(self) -> str | None:
        """The revision of the hub's weights: the user's, the card's, or None."""
        chosen = self.config.revision if isinstance(self.config, HubConfig) else ""
        return chosen or self.card.revision

    def weights(self) -> Mapping[str, str]:
        """Say which weights these are."""
        return self._local_weights() or {
            "weights": self.card.hub_id or self.name,
            "revision": self.revision or "unpinned",
        }

    def build(self) -> nn.Module:
        """Make the model with random weights."""
        return _create(self.recipe.architecture, self.recipe.arguments)

    def build_pretrained(self) -> nn.Module:
        """Make the model with the weights of its hub entry."""
        if self._given is None:
            return _create_pretrained(self.recipe.architecture)
        hub_id = self.card.hub_id or ""
        path = download(hub_id, self.revision)
        model = self.build()
        fit_state(model, read_state(path), hub_id, ignore=self.removed_layers(model))
        return model

    def removed_layers(self, model: nn.Module) -> Sequence[str]:
        """Name timm's classifier."""
        names = _config_of(model).get("classifier") or ()
        return (names,) if isinstance(names, str) else tuple(names)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Embed images by the model's own pooling, or by the recipe's variant."""
        out: Tensor = model(images)
        if not self._variant:
            return out
        token = out[:, 0]
        if self._variant == "cls":
            return token
        prefix: Any = model.num_prefix_tokens
        return torch.cat([token, out[:, prefix:].mean(1)], dim=-1)


def _check_name(model: str) -> None:
    if not model:
        raise ConfigError(
            "The encoder timm needs a model: encoder.timm.model=NAME, as timm.list_models() has it."
        )
    if not model.startswith(_ELSEWHERE) and not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"timm {timm.__version__} has no model {model!r}.{hint}")


def _create(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    known: dict[str, Any] = {
        key: LAYERS.get(value, value) if isinstance(value, str) else value
        for key, value in arguments.items()
    }
    with hub_errors(architecture):
        try:
            model: nn.Module = timm.create_model(architecture, num_classes=0, **known)
        except RuntimeError as error:
            raise EncoderError(f"timm cannot build {architecture}: {error}") from error
    return model


def _create_pretrained(architecture: str) -> nn.Module:
    """Load with the classifier and then drop it: timm is not strict about any other number."""
    with hub_errors(architecture):
        try:
            model: nn.Module = timm.create_model(architecture, pretrained=True)
        except RuntimeError as error:
            raise EncoderError(f"timm cannot load {architecture}: {error}") from error
    reset: Any = model.reset_classifier
    reset(0)
    return model


def _recipe_of(model_name: str) -> Recipe:
    with torch.device("meta"):
        model: Any = _create(model_name, {})
    config = _config_of(model)
    tag = config.get("tag")
    pinned = bool(tag) and "." not in model_name and not model_name.startswith(_ELSEWHERE)
    transform = _transform_of(model, model_name)
    card = EncoderCard(
        dim=int(getattr(model, "head_hidden_size", None) or model.num_features),
        input_size=transform.crop,
        transform=transform,
        pooling=f"timm head without classifier, global_pool={config.get('global_pool', 'own')}",
        hub_id=config.get("hf_hub_id") or config.get("url") or None,
        licence=config.get("license") or "",
        params=sum(parameter.numel() for parameter in model.parameters()),
    )
    return Recipe(architecture=f"{model_name}.{tag}" if pinned else model_name, card=card)


def _transform_of(model: nn.Module, name: str) -> Transform:
    """Read the evaluation transform that timm would build, as data."""
    config: dict[str, Any] = resolve_data_config({}, model=model)  # type: ignore[no-untyped-call]
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise EncoderError(
            f"The model {name} takes {channels} channels of {width} × {height} px; "
            f"an encoder takes squares of RGB."
        )
    # timm's modes "center" and "border" differ for tiles that are not square, and ours are.
    return Transform(
        resize=math.floor(height / config["crop_pct"]),
        resize_mode="exact" if config["crop_mode"] == "squash" else "shortest_edge",
        crop=height,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _config_of(model: nn.Module) -> dict[str, Any]:
    config: Any = model.pretrained_cfg
    return dict(config)
