"""Published models of whole slides whose architecture is code in their hub entry."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from microtome.errors import EncoderError
from microtome.plugin.weights.files import fit_state
from microtome.plugin.weights.hub import fetch_hub
from microtome.slide.bags import TileBag
from microtome_encoders.bag_options import SlideHubConfig
from microtome_encoders.patch.remote import CODE_FAILURES, RemoteModel
from microtome_encoders.recipe import SlideRecipe
from microtome_encoders.slide.packaged import Embedded, PublishedSlideEncoder

State = dict[str, Tensor]

_READERS = (AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase)


class RemoteSlideEncoder(RemoteModel, PublishedSlideEncoder):
    """A model of whole slides that its hub entry's own code builds.

    Parts that an embedding does not need, such as what embeds text, are taken out of it.

    Args:
        config: The user's options.
        recipe: The row.

    Raises:
        ConfigError: If what the configuration allows is no SHA-256.
        MissingDependencyError: If the installed transformers is not of a version that serves.
    """

    recipe: SlideRecipe

    def __init__(self, config: SlideHubConfig, *, recipe: SlideRecipe) -> None:
        super().__init__(config, recipe=recipe)

    @abstractmethod
    def call(self, model: Any, features: Tensor, bag: TileBag) -> Embedded:
        """Call the model as its publishers do.

        Args:
            model: What the entry's code built.
            features: (1, n, dim) float32, on the model's device.
            bag: The slide, whose coordinates are on the CPU.
        """

    def embed(self, model: Any, bag: TileBag) -> Embedded:
        """Call the model, and say whose code it is that fails.

        Raises:
            EncoderError: If the features are of another encoder, or the entry's code fails.
        """
        features = self.tensor(self.features(bag)).unsqueeze(0)
        try:
            return self.call(model, features, bag)
        except torch.OutOfMemoryError:
            raise
        except CODE_FAILURES as error:
            raise EncoderError(
                f"The code of {self.name} at {self.commit[:8]} fails on the {len(bag)} tiles of "
                f"{bag.slide_id}: {' '.join(str(error).split())[:300]}"
            ) from error

    @cached_property
    def companions(self) -> Mapping[str, Sequence[Path]]:
        """What the code wants of other entries, found or downloaded, by the entry's name."""
        return {
            each.hub_id: [
                fetch_hub(each.hub_id, each.commit or self.commit, [name]).path
                for name in each.files
            ]
            for each in self.recipe.companions
        }

    def files(self) -> Sequence[Path]:
        """Find or download the code, what it wants of other entries, and the weights."""
        return (*super().files(), *chain.from_iterable(self.companions.values()))

    def build(self) -> nn.Module:
        """Make the model with random weights."""
        return self.strip(super().build())

    def build_pretrained(self, path: Path) -> nn.Module:
        """Make the model with the weights of its hub entry."""
        model = self.build()
        self.fit_file(model, path, self.name)
        return model

    def fit_file(self, model: nn.Module, path: Path, where: str) -> None:
        """Load a file of weights, which holds once what several layers share.

        Raises:
            EncoderError: If it cannot be read, is refused, or lacks something.
        """
        state = with_shared(model, self.read_file(path))
        # What the code leaves aside is its own affair; what it lacks would be random.
        known = model.state_dict()
        fit_state(model, {n: t for n, t in state.items() if n in known}, where)

    def strip(self, model: nn.Module) -> nn.Module:
        """Take the parts out that no embedding needs."""
        for name in self.recipe.removed:
            owner, _, part = name.rpartition(".")
            if getattr(model.get_submodule(owner), part, None) is not None:
                setattr(model.get_submodule(owner), part, None)
        return model

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the entry's code: what it asks of other entries, it gets at commits pinned here."""
        folders = {entry: files[0].parent for entry, files in self.companions.items()}
        with read_from(folders), super().running():
            yield


def with_shared(model: nn.Module, state: State) -> State:
    """Give tensors that several layers share under each of their names.

    Args:
        model: Whose layers may share tensors.
        state: The tensors of a file, which may hold such a one under one name only.
    """
    places = {
        name: (tensor.data_ptr(), tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
    }
    there = {place: state[name] for name, place in places.items() if name in state}
    shared = {name: there[place] for name, place in places.items() if place in there}
    return {**shared, **state}


@contextmanager
def read_from(folders: Mapping[str, Path]) -> Iterator[None]:
    """Have configurations and tokenizers of some hub entries read from folders.

    Code that names an entry by itself would ask the network for whatever is its newest commit.

    Args:
        folders: By the name of the entry.
    """
    before = {reader: reader.__dict__["from_pretrained"] for reader in _READERS}

    def redirect(original: Any) -> Any:
        def from_pretrained(cls: Any, name: Any, *args: Any, **options: Any) -> Any:
            folder = folders.get(str(name), name)
            return original.__get__(None, cls)(folder, *args, **options)

        return classmethod(from_pretrained)

    try:
        for reader, original in before.items():
            reader.from_pretrained = redirect(original)  # type: ignore[method-assign]
        yield
    finally:
        for reader, original in before.items():
            reader.from_pretrained = original  # type: ignore[method-assign]
