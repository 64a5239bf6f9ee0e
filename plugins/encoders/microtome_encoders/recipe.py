"""What a generic loader needs to make a model: a catalogue row is one of these. Cheap to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from microtome.plugin.specs import EncoderCard


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a library's model becomes an encoder.

    Attributes:
        architecture: The library's own name of the model, with its tag of weights if any.
        card: Of the default variant.
        arguments: What the library's constructor is given; layers by their name in the loader.
        variants: Dimension of each embedding that the tokens can give, by the name of a
            `microtome_encoders.options.Variant`; empty where the model's own head pools.
    """

    architecture: str
    card: EncoderCard
    arguments: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    variants: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
