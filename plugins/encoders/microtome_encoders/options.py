"""What a user may choose of an encoder with weights. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from microtome.plugin.specs import option, runtime


class Variant(Enum):
    """How a transformer's tokens become one vector."""

    cls = "cls"
    """The class token."""
    cls_mean = "cls_mean"
    """The class token, then the mean of the patch tokens, without registers."""


@dataclass
class WeightsConfig:
    """Options of every encoder with weights.

    The place of the weights is a runtime field: what is part of an identity is what the encoder
    says of them (their file's SHA-256, a seed), so moving or pinning them makes nothing stale.
    Compiling changes last bits, as another device does; it is on record beside the features.
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
    compile: bool = runtime(
        False,
        help="Whether torch.compile makes the model faster; it needs a minute and a compiler.",
    )


@dataclass
class ModelConfig(WeightsConfig):
    """Options of an encoder that takes any model of a library by name."""

    model: str = option("", help="The model's name in the library, with or without a tag.")


@dataclass
class HubConfig(WeightsConfig):
    """Options of a catalogue entry whose weights live on the hub."""

    revision: str = runtime("", help="Commit or tag on the hub; empty for the catalogue's.")


@dataclass
class VariantConfig(HubConfig):
    """Options of a catalogue entry with more than one embedding."""

    variant: Variant = option(  # noqa: RUF009 - a member of an Enum is immutable
        Variant.cls_mean, help="Which embedding: 'cls' or 'cls_mean'."
    )
