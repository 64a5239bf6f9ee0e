"""Models of timm: any by name, and the rows of the catalogue that timm can build."""

from __future__ import annotations

import difflib
import json
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.data.config import resolve_data_config
from timm.layers.mlp import SwiGLUPacked
from torch import Tensor, nn

from microtome.errors import ConfigError, EncoderError
from microtome.plugin.specs import EncoderCard, Transform
from microtome.plugin.weights.files import SUFFIXES, tensors_only
from microtome.plugin.weights.hub import NAMES, WeightsFile, fetch_hub, fetch_url
from microtome_encoders.options import (
    HubConfig,
    ModelConfig,
    StatisticsConfig,
    Variant,
    VariantConfig,
    WeightsConfig,
)
from microtome_encoders.patch.base import TorchEncoder
from microtome_encoders.patch.ctranspath import ConvStem
from microtome_encoders.patch.dense import Anatomy, timm_anatomy
from microtome_encoders.patch.layouts import LAYOUTS
from microtome_encoders.recipe import Recipe

LAYERS = MappingProxyType({"swiglu_packed": SwiGLUPacked, "silu": nn.SiLU, "conv_stem": ConvStem})
"""The layers that a recipe's arguments may name."""

POOLED = (Variant.cls.value, Variant.cls_mean.value)
"""The variants for which a model gives all its tokens."""

ON_HUB = ("hf-hub:", "hf_hub:")
IN_FOLDER = "local-dir:"
_ELSEWHERE = (*ON_HUB, IN_FOLDER)
_UNREADABLE = (RuntimeError, OSError, SafetensorError, pickle.UnpicklingError, EOFError, ValueError)


class TimmEncoder(TorchEncoder):
    """A model of timm without its classifier.

    With a recipe, the architecture is the recipe's and the weights are fetched from its hub
    entry. Without one, ``config.model`` names any model of timm, ``hf-hub:owner/name@revision`` or
    ``local-dir:folder``, and the weights are those that go with the name.

    Args:
        config: The user's options.
        recipe: A row of the catalogue.

    Raises:
        ConfigError: If there is neither a recipe nor a model that timm has.
    """

    def __init__(self, config: WeightsConfig, *, recipe: Recipe | None = None) -> None:
        super().__init__(config)
        self._given = recipe
        self._variant: str = ""
        if isinstance(config, VariantConfig | StatisticsConfig):
            self._variant = config.variant.value
        self._named = config.model if isinstance(config, ModelConfig) else ""
        if recipe is None:
            _check_name(self._named)

    @cached_property
    def recipe(self) -> Recipe:
        """How the model is made; for a model by name, read from timm without any weights."""
        if self._given is None:
            return _recipe_of(self._named, self._entry)
        if not self._variant:
            return self._given
        card = self._given.card
        transform = self._given.transforms.get(self._variant, card.transform)
        card = replace(card, dim=self._given.variants[self._variant], transform=transform)
        if self._variant == "cls":
            card = replace(card, pooling="class token")
        return replace(self._given, card=card)

    @cached_property
    def _entry(self) -> WeightsFile | None:
        """The file that describes a model which timm itself does not: of a hub entry or folder."""
        return _find_entry(self._named)

    @property
    def card(self) -> EncoderCard:
        """What is known of the model."""
        return self.recipe.card

    @property
    def name(self) -> str:
        """The hub entry of a catalogue row, timm's name otherwise."""
        return (
            self._given and (self._given.card.hub_id or self._given.architecture)
        ) or self._named

    @property
    def revision(self) -> str | None:
        """The revision of the hub's weights: the user's, the card's, or None."""
        chosen = self.config.revision if isinstance(self.config, HubConfig) else ""
        return chosen or self.card.revision

    def weights(self) -> Mapping[str, str]:
        """Say which weights these are; where a file beside them describes the model, say that too.

        As for every encoder of torch, they are found or downloaded here.
        """
        facts = super().weights()
        config = self._entry and self._entry.path
        return {**facts, "model": _described(config)} if config else facts

    def build(self) -> nn.Module:
        """Make the model with random weights."""
        model = _create(self.recipe.architecture, self.recipe.arguments)
        for name in self.recipe.removed:
            if hasattr(model, name):
                setattr(model, name, nn.Identity())
        return model

    def fetch(self) -> WeightsFile:
        """Find the file of weights in a cache or folder, or download it."""
        if self._given is not None:
            return self._fetch_published(self._given)
        if self._entry is None:
            return _fetch_named(self.recipe.architecture)
        if self._entry.commit:
            return fetch_hub(self._entry.source, self._entry.commit)
        return _find_in(self._entry.path.parent)

    def _fetch_published(self, recipe: Recipe) -> WeightsFile:
        if recipe.by_hand:
            raise EncoderError(
                f"No program can download these weights: {recipe.by_hand} Then give "
                f"encoder.NAME.weights=PATH."
            )
        if recipe.url:
            file = fetch_url(recipe.url, self.name)
        else:
            file = fetch_hub(self.card.hub_id or "", self.revision, recipe.files or NAMES)
        if recipe.sha256 and file.sha256 != recipe.sha256:
            raise EncoderError(
                f"{file.path} is not the published file of {self.name}: its SHA-256 is "
                f"{file.sha256[:8]}… and should be {recipe.sha256[:8]}…. Remove it, so that it is "
                f"downloaded again, or give encoder.NAME.weights=PATH."
            )
        return file

    def build_pretrained(self, path: Path) -> nn.Module:
        """Make the model with the weights of its hub entry."""
        if self._given is None:
            # A file that timm finds by its URL it unpacks in another way than a user's.
            by_url = self.weights_file.source == path.name
            with tensors_only(path):
                return _create_pretrained(self.recipe.architecture, None if by_url else path)
        model = self.build()
        self.fit_file(model, path, self.name)
        return model

    def removed_layers(self, model: nn.Module) -> Sequence[str]:
        """Name timm's classifier, and what the recipe does without."""
        names = _config_of(model).get("classifier") or ()
        classifiers = (names,) if isinstance(names, str) else tuple(names)
        return (*classifiers, *self.recipe.removed)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring the published layout to timm's; what is in timm's stays as it is."""
        recipe = self.recipe
        state = {name.removeprefix(recipe.prefix): value for name, value in state.items()}
        return LAYOUTS[recipe.layout](state) if recipe.layout else state

    def load(self, device: str, precision: str) -> None:
        """Load the weights; `notes` says so if a user's file is not the one that was published.

        Raises:
            EncoderError: If the weights cannot be had or do not fit, the device does not exist,
                or the precision is not one of the device's.
        """
        super().load(device, precision)
        published = self._given.sha256 if self._given else ""
        if published and self.loaded_weights.get("sha256", published) != published:
            self.notes.append(
                f"The weights in {self.weights_file.path} fit {self.name}, but are not its "
                f"published file (SHA-256 {published[:8]}…)."
            )

    def anatomy(self, model: nn.Module) -> Anatomy | None:
        """Say where the model has its tokens, or its last feature map."""
        return timm_anatomy(model)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Embed images by the model's own pooling, or by the recipe's variant."""
        out: Tensor = model(images)
        if self._variant not in POOLED:
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


def _find_entry(model: str) -> WeightsFile | None:
    scheme, _, place = model.partition(":")
    if model.startswith(ON_HUB):
        hub_id, _, revision = place.partition("@")
        return fetch_hub(hub_id, revision or None, ["config.json"])
    if not model.startswith(IN_FOLDER):
        return None
    path = Path(place).expanduser() / "config.json"
    if not path.is_file():
        raise EncoderError(f"{scheme}:{place} names no folder with a config.json and weights.")
    return WeightsFile(path)


def _described(path: Path) -> str:
    """Give what a config.json says of the model itself, not of its licence or its labels."""
    config = json.loads(path.read_text(encoding="utf-8"))
    pool = config.get("global_pool", (config.get("pretrained_cfg") or {}).get("global_pool"))
    return json.dumps([config.get("architecture"), config.get("model_args"), pool], sort_keys=True)


def _find_in(folder: Path) -> WeightsFile:
    """Choose the file of weights in a folder: one of the hub's names, else the first by suffix."""
    named = [folder / name for name in NAMES]
    others = [path for suffix in SUFFIXES for path in sorted(folder.glob(f"*{suffix}"))]
    for path in (*named, *others):
        if path.is_file():
            return WeightsFile(path)
    raise EncoderError(f"{folder} holds no weights: no file {', '.join(SUFFIXES)}.")


def _fetch_named(architecture: str) -> WeightsFile:
    config: Any = timm.get_pretrained_cfg(architecture)
    if config.hf_hub_id:
        names = [config.hf_hub_filename] if config.hf_hub_filename else NAMES
        return fetch_hub(config.hf_hub_id, None, names)
    if config.url:
        return fetch_url(config.url, f"timm's {architecture}")
    raise EncoderError(
        f"timm knows no weights of {architecture}: name another with a tag that "
        f"timm.list_pretrained() has, or give weights=PATH of a file, or weights=random."
    )


def _create(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    known: dict[str, Any] = {
        key: LAYERS.get(value, value) if isinstance(value, str) else value
        for key, value in arguments.items()
    }
    try:
        model: nn.Module = timm.create_model(architecture, num_classes=0, **known)
    except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(f"timm cannot build {architecture}: {_brief(error)}") from error
    return model


def _create_pretrained(architecture: str, path: Path | None) -> nn.Module:
    """Load with the classifier and then drop it: timm is not strict about any other number.

    timm adapts published weights to its own models, so it reads them itself.
    """
    file = {"source": "", "file": str(path), "custom_load": False} if path else {}
    try:
        model: nn.Module = timm.create_model(
            architecture, pretrained=True, pretrained_cfg_overlay=file
        )
    except _UNREADABLE as error:
        raise EncoderError(f"timm cannot load {architecture}: {_brief(error)}") from error
    reset: Any = model.reset_classifier
    reset(0)
    return model


def _recipe_of(model_name: str, entry: WeightsFile | None) -> Recipe:
    if entry is not None and entry.commit:  # its description and weights are of one commit
        model_name = f"hf-hub:{entry.source}@{entry.commit}"
    with torch.device("meta"):
        model: Any = _create(model_name, {})
    config = _config_of(model)
    tag = config.get("tag")
    pinned = bool(tag) and "." not in model_name and entry is None
    hub_id = entry.source if entry and entry.commit else config.get("hf_hub_id")
    transform = _transform_of(model, model_name)
    card = EncoderCard(
        dim=int(getattr(model, "head_hidden_size", None) or model.num_features),
        input_size=transform.crop,
        transform=transform,
        pooling=f"timm head without classifier, global_pool={config.get('global_pool', 'own')}",
        hub_id=hub_id or config.get("url") or None,
        revision=(entry.commit or None) if entry else None,
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


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"


def _config_of(model: nn.Module) -> dict[str, Any]:
    config: Any = model.pretrained_cfg
    return dict(config)
