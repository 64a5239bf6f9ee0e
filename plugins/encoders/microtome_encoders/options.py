"""What a user may choose of an encoder with weights. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from microtome.plugin import option, runtime


class Variant(Enum):
    """How a transformer's tokens become one vector."""

    cls = "cls"
    """The class token."""
    cls_mean = "cls_mean"
    """The class token, then the mean of the patch tokens, without registers."""


class Statistics(Enum):
    """Which colours a model's input is normalised by."""

    norm_imagenet = "norm_imagenet"
    """ImageNet's means and standard deviations."""
    norm_lunit = "norm_lunit"
    """Those of the slides that Lunit trained on."""


@dataclass
class SourceConfig:
    """Options of every model with weights, of tiles or of slides.

    The place of the weights is a runtime field: what is part of an identity is what the encoder
    says of them (their file's SHA-256, a seed), so moving or pinning them makes nothing stale.
    """

    weights: str = runtime(
        "hub",
        help="'hub' to download them, 'random', or a file (.safetensors, .pth, .pt, .bin).",
    )
    allow_pickle: str = runtime(
        "",
        help="SHA-256 of the one pickle that may run code when it is loaded; its refusal says it.",
    )
    seed: int = option(0, help="Of weights=random.")


@dataclass
class Pinned:
    """The option of every model whose weights live on the hub, of tiles or of slides."""

    revision: str = runtime("", help="Commit or tag on the hub; empty for the catalogue's.")


@dataclass
class WeightsConfig(SourceConfig):
    """Options of every encoder of tiles with weights.

    Compiling changes last bits, as another device does; it is on record beside the features.
    """

    compile: bool = runtime(
        False,
        help="Whether torch.compile makes the model faster; it needs a minute and a compiler.",
    )


@dataclass
class ModelConfig(WeightsConfig):
    """Options of an encoder that takes any model of a library by name."""

    model: str = option("", help="The model's name in the library, with or without a tag.")


@dataclass
class HubConfig(Pinned, WeightsConfig):
    """Options of a catalogue entry whose weights live on the hub."""


@dataclass
class VariantConfig(HubConfig):
    """Options of a catalogue entry with more than one embedding."""

    variant: Variant = option(Variant.cls_mean, help="Which embedding: 'cls' or 'cls_mean'.")


@dataclass
class StatisticsConfig(HubConfig):
    """Options of a catalogue entry that is normalised in more than one way."""

    variant: Statistics = option(
        Statistics.norm_imagenet, help="Colours: 'norm_imagenet' or 'norm_lunit'."
    )


class Scales(Enum):
    """How often MUSK looks at a tile."""

    cls = "cls"
    """Once: the class token."""
    ms_aug = "ms_aug"
    """At its own size and at twice that: the class token, then the mean of four quarters'."""


@dataclass
class ScalesConfig(HubConfig):
    """Options of MUSK."""

    variant: Scales = option(Scales.cls, help="Which embedding: 'cls' or 'ms_aug'.")


class Tokens(Enum):
    """How iSight's projected tokens become one vector."""

    cls = "cls"
    """The class token."""
    token_mean = "token_mean"
    """The mean of all tokens, the class token included."""


@dataclass
class TokensConfig(HubConfig):
    """Options of iSight."""

    variant: Tokens = option(Tokens.token_mean, help="Which embedding: 'token_mean' or 'cls'.")


@dataclass
class TiconConfig(HubConfig):
    """Options of TICON, which stands on another model."""

    tile_weights: str = runtime(
        "hub", help="'hub' to download H-optimus-1's weights, or a file of them."
    )


@dataclass
class ConcatConfig:
    """Options of the patient encoder that makes one slide of a patient's."""

    slide_encoder: str = option(
        "mean", help="The slide encoder that is given all tiles of a patient as those of one slide."
    )
