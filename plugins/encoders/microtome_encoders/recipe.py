"""What a generic loader needs to make a model: a catalogue row is one of these. Cheap to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from microtome.plugin.specs import EncoderCard, TileNeed, Transform


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a library's model becomes an encoder.

    Attributes:
        architecture: The library's own name of the model, with its tag of weights if any.
        card: Of the default variant.
        arguments: What the library's constructor is given; layers by their name in the loader.
        variants: Dimension of each embedding that a user may choose, by the name of a
            `microtome_encoders.options.Variant` or another; empty where there is no choice.
        transforms: The transform of each variant that has another than the card's.
        files: Names of the weights in the hub entry, the first that there is; empty for the usual.
        url: Where the weights are if not on the hub.
        sha256: Of the published file, where it is known: a download that differs is refused.
        by_hand: A sentence that says where a user finds weights that no program can download.
        prefix: What the names of the backbone's tensors begin with in the published file.
        layout: How the published tensors become the library's: a name of
            `microtome_encoders.patch.layouts.LAYOUTS`; empty if they already are.
        removed: Layers that the encoder does without. The published file may hold their tensors,
            and those of the architecture are taken out of it.
        pooling: How the library's output becomes one vector: a name in the loader.
        needs: What versions of a library serve, as ``"transformers>=5"``.
    """

    architecture: str
    card: EncoderCard
    arguments: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    variants: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    transforms: Mapping[str, Transform] = field(default_factory=lambda: MappingProxyType({}))
    files: tuple[str, ...] = ()
    url: str = ""
    sha256: str = ""
    by_hand: str = ""
    prefix: str = ""
    layout: str = ""
    removed: tuple[str, ...] = ()
    pooling: str = ""
    needs: str = ""


@dataclass(frozen=True, kw_only=True)
class Companion:
    """Files of another hub entry, data and no code, that a model's own code wants.

    Attributes:
        hub_id: The entry, as that code names it.
        commit: The one that is taken, whichever the code asks for; empty for the model's own.
        files: Their names.
    """

    hub_id: str
    commit: str = ""
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SlideRecipe(Recipe):
    """How a published model of whole slides becomes a slide encoder.

    Attributes:
        need: The tiles and features that it takes.
        companions: What its code wants besides its own entry.
    """

    need: TileNeed
    companions: tuple[Companion, ...] = ()
