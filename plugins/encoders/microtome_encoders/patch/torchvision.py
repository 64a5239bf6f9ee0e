"""Classifiers of torchvision: any by name, and the rows of the catalogue that it can build."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision import models

from microtome.errors import ConfigError, EncoderError
from microtome.plugin.specs import EncoderCard, Transform
from microtome.plugin.weights.files import HUB, PickleRefusedError, tensors_only
from microtome.plugin.weights.hub import WeightsFile, fetch_url
from microtome_encoders.options import ModelConfig, WeightsConfig
from microtome_encoders.patch.base import TorchEncoder
from microtome_encoders.patch.dense import Anatomy, channels_last
from microtome_encoders.patch.devices import seeded
from microtome_encoders.recipe import Recipe

CLASSES = 1000
"""Of ImageNet-1k, which every torchvision classifier is built for."""


class TorchvisionEncoder(TorchEncoder):
    """A classifier of torchvision without its last layer, the one that makes the classes.

    What comes before that layer stays: ConvNeXt keeps its LayerNorm, VGG its hidden layers.

    Args:
        config: The user's options; ``model`` is a name of ``torchvision.models``, with its
            weights if not the default ones: ``resnet50.IMAGENET1K_V1``.
        recipe: A row of the catalogue.

    Raises:
        ConfigError: If there is neither a recipe nor a model that torchvision has.
    """

    def __init__(self, config: WeightsConfig, *, recipe: Recipe | None = None) -> None:
        super().__init__(config)
        self._given = recipe
        named = config.model if isinstance(config, ModelConfig) else ""
        self.architecture, self.published = _find(recipe.architecture if recipe else named)

    @cached_property
    def card(self) -> EncoderCard:
        """What is known of the model; for one by name, read from torchvision without weights."""
        if self._given is not None:
            return self._given.card
        return _card_of(self._skeleton(), self.architecture, self.published)

    @property
    def name(self) -> str:
        """The architecture and the name of its weights."""
        return f"{self.architecture}.{self.published.name}"

    def weights(self) -> Mapping[str, str]:
        """Say which weights these are; of published ones the name, which torchvision pins."""
        if self.config.weights != HUB:
            return super().weights()
        return {
            "weights": f"torchvision/{self.architecture}",
            "revision": self.published.name,
        }

    def build(self) -> nn.Module:
        """Make the model with random weights."""
        return _behead(models.get_model(self.architecture, weights=None, **self._arguments()))

    def fetch(self) -> WeightsFile:
        """Find torchvision's file in torch's cache, or download it."""
        return fetch_url(self.published.url, f"torchvision's {self.name}")

    def build_pretrained(self, path: Path) -> nn.Module:
        """Make the model with torchvision's weights, from torch's cache."""
        try:
            with tensors_only(path):
                return _behead(models.get_model(self.architecture, weights=self.published))
        except PickleRefusedError:
            raise
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise EncoderError(
                f"The weights {self.name} in {path} cannot be read: remove that file, so that it "
                f"is downloaded again."
            ) from error

    def removed_layers(self, model: nn.Module) -> Sequence[str]:
        """Name the layer that made the classes."""
        return tuple(name for name, layer in model.named_modules() if isinstance(layer, _NoHead))

    def anatomy(self, model: nn.Module) -> Anatomy | None:
        """Say where a ViT has its tokens, and other models their last feature map."""
        if isinstance(model, models.VisionTransformer):
            layers: Any = model.encoder.layers
            return Anatomy(owner=model.encoder, prefix=1, block=layers[-1])
        if isinstance(model, models.SwinTransformer):
            return Anatomy(owner=model.norm)
        parts = dict(model.named_children())
        last = parts.get("layer4", parts.get("features"))
        if last is None or "avgpool" not in parts:
            return None
        return Anatomy(owner=last, read=channels_last)

    def _skeleton(self) -> nn.Module:
        try:
            with torch.device("meta"):
                return self.build()
        except NotImplementedError:  # RegNet computes with tensors while it is built
            with seeded(self.config.seed):
                return self.build()

    def _arguments(self) -> dict[str, Any]:
        """Say what torchvision itself passes along with the published weights."""
        if self.architecture in ("googlenet", "inception_v3"):
            return {"init_weights": False, "transform_input": True}
        if self.architecture.startswith("vit_"):
            return {"image_size": self.published.meta["min_size"][0]}
        return {}


class _NoHead(nn.Identity):
    """Stands where the layer was that made the classes."""


def _find(model: str) -> tuple[str, models.WeightsEnum]:
    if not model:
        raise ConfigError(
            "The encoder torchvision needs a model: encoder.torchvision.model=NAME, "
            "as torchvision.models.list_models() has it."
        )
    name, _, tag = model.partition(".")
    names = models.list_models(module=models)
    if name not in names:
        near = difflib.get_close_matches(name, names, 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            f"torchvision {torchvision.__version__} has no classifier {name!r}.{hint}"
        )
    published = models.get_model_weights(name)
    if tag and tag not in published.__members__:
        raise ConfigError(
            f"torchvision has no weights {tag!r} for {name}: {', '.join(published.__members__)}."
        )
    return name, published[tag or "DEFAULT"]


def _behead(model: nn.Module) -> nn.Module:
    """Replace the layer that makes the classes: the last one with so many outputs."""
    *_, name = (name for name, layer in model.named_modules() if _outputs(layer) == CLASSES)
    parent, _, leaf = name.rpartition(".")
    owner = model.get_submodule(parent)
    head = getattr(owner, leaf)
    replacement = _NoHead()
    replacement.inputs = getattr(head, "in_features", None) or head.in_channels
    setattr(owner, leaf, replacement)
    return model


def _outputs(layer: nn.Module) -> object:
    return getattr(layer, "out_features", getattr(layer, "out_channels", None))


def _card_of(model: nn.Module, name: str, published: models.WeightsEnum) -> EncoderCard:
    transform = _transform_of(published)
    (dim,) = (m.inputs for m in model.modules() if isinstance(m, _NoHead))
    return EncoderCard(
        dim=int(dim),  # type: ignore[arg-type]
        input_size=transform.crop,
        transform=transform,
        pooling="input of the layer that makes the classes",
        hub_id=f"torchvision/{name}",
        revision=published.name,
        licence="see torchvision's documentation of the weights",
        gated=False,
        params=sum(parameter.numel() for parameter in model.parameters()),
    )


def _transform_of(published: models.WeightsEnum) -> Transform:
    preset = published.transforms()
    return Transform(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
