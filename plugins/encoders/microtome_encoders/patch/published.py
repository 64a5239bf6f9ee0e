"""What the loaders of catalogue rows have in common, whatever library builds the model."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from functools import cached_property
from importlib.metadata import version
from types import MappingProxyType

from packaging.requirements import Requirement
from torch import Tensor, nn

from microtome.errors import MissingDependencyError
from microtome.plugin.specs import EncoderCard
from microtome.plugin.weights.hub import NAMES, WeightsFile, fetch_hub
from microtome_encoders.bag_options import SlideHubConfig
from microtome_encoders.options import HubConfig
from microtome_encoders.patch.base import TorchEncoder
from microtome_encoders.patch.model import TorchModel
from microtome_encoders.recipe import Recipe

POOLINGS: Mapping[str, str] = MappingProxyType(
    {
        "cls": "class token",
        "cls_mean": "class token, then the mean of the patch tokens",
        "token_mean": "mean of all projected tokens",
        "base": "perceiver",
        "diagnostic": "last hidden state of the language model, asked for a diagnosis",
        "ms_aug": "class token, then the mean of those of four quarters at twice the size",
    }
)
"""What a variant is, in words."""

EXTRAS: Mapping[tuple[str, bool], str] = MappingProxyType(
    {("transformers", False): "transformers", ("transformers", True): "transformers4"}
)
"""The extra that installs a library, by its name and whether its next major version is too new."""

State = dict[str, Tensor]


class PublishedModel(TorchModel):
    """A row of the catalogue: its architecture and card are known, its weights lie in a hub entry.

    Args:
        config: The user's options.
        recipe: The row.

    Raises:
        ConfigError: If what the configuration allows is no SHA-256.
        MissingDependencyError: If the installed library is not of a version that serves.
    """

    def __init__(self, config: HubConfig | SlideHubConfig, *, recipe: Recipe) -> None:
        super().__init__(config)
        self.recipe = recipe
        self.given_revision = config.revision
        chosen = getattr(config, "variant", None)
        self.variant = str(chosen.value) if isinstance(chosen, Enum) else ""
        if recipe.needs:
            check_version(recipe.needs, self.name)

    @cached_property
    def card(self) -> EncoderCard:
        """What is known of the model, of the variant that was chosen."""
        card = self.recipe.card
        if not self.variant or self.recipe.variants[self.variant] == card.dim:
            return replace(card, pooling=POOLINGS.get(self.variant, card.pooling))
        dim = self.recipe.variants[self.variant]
        return replace(card, dim=dim, pooling=POOLINGS[self.variant])

    @property
    def name(self) -> str:
        """The hub entry."""
        return self.recipe.card.hub_id or self.recipe.architecture

    @property
    def revision(self) -> str | None:
        """The revision of the hub's weights: the user's, the card's, or None."""
        return self.given_revision or self.recipe.card.revision

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the model without what embeds text, its weights random."""

    def fetch(self) -> WeightsFile:
        """Find the published file in the hub's cache, or download it."""
        return fetch_hub(self.name, self.revision, self.recipe.files or NAMES)

    def removed_layers(self, model: nn.Module) -> Sequence[str]:
        """Name nothing: `adapt` drops what the recipe does without."""
        return ()

    def adapt(self, state: State) -> State:
        """Take the image tower out of the published file."""
        return tower_of(state, self.recipe.prefix, self.recipe.removed)


class PublishedEncoder(PublishedModel, TorchEncoder):
    """A row of the catalogue that takes tiles."""


def tower_of(state: State, prefix: str, removed: Sequence[str]) -> State:
    """Take the tensors of an image tower out of those of a whole model.

    Args:
        state: The tensors by name; those of the tower alone, without the prefix, are left as they
            are.
        prefix: What the names of the tower's begin with.
        removed: Names of tensors, or of layers, that are dropped.

    Returns:
        The tower's tensors, by their names in it, and whatever is neither its nor dropped, so that
        it does not fit.
    """
    if prefix and not any(name.startswith(prefix) for name in state):
        return state
    layers = tuple(f"{name}." for name in removed)
    kept = {n: t for n, t in state.items() if n not in removed and not n.startswith(layers)}
    return {
        name.removeprefix(prefix) if name.startswith(prefix) else f"outside {prefix}: {name}": value
        for name, value in kept.items()
    }


def check_version(needs: str, who: str) -> None:
    """Hold the installed version of a library against what a model needs.

    Args:
        needs: The requirement, such as ``"transformers>=4.57,<5"``.
        who: What needs it, for the message.

    Raises:
        MissingDependencyError: If another version is installed; names the extra that installs one
            that serves.
    """
    requirement = Requirement(needs)
    found = version(requirement.name)
    if requirement.specifier.contains(found, prereleases=True):
        return
    extra = EXTRAS.get((requirement.name, "<" in re.sub("<=", "", needs)), "")
    install = f"pip install 'microtome[{extra}]'" if extra else f"pip install '{needs}'"
    raise MissingDependencyError(
        f"{who} needs {needs} and {requirement.name} {found} is installed here: in an environment "
        f"of its own, {install}"
    )
