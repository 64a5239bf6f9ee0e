"""Models of slides that others' code builds: a bag goes in as tensors, a vector comes out."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from microtome.errors import EncoderError
from microtome.plugin.protocols import SlideOutput
from microtome.plugin.specs import EncoderCard
from microtome.plugin.weights.files import PickleRefusedError, file_digest, tensors_only
from microtome.slide.bags import TileBag
from microtome.slide.clock import timed
from microtome_encoders.patch.model import TorchModel
from microtome_encoders.patch.published import PublishedModel
from microtome_encoders.recipe import SlideRecipe

Loaded = TypeVar("Loaded")


class Embedded(NamedTuple):
    """What a model makes of a slide, on its device: a batch of one, or that one alone."""

    embedding: Tensor
    attention: Tensor | None = None
    latents: Tensor | None = None


class PackagedModel(TorchModel):
    """What models of slides have in common, and those of patients that are built of them."""

    recipe: SlideRecipe

    package = ""
    """The distribution whose code builds it; empty where that is another's affair."""

    spare = "give a device with more memory, or leave this encoder out."
    """What a user can do where memory is short."""

    @property
    @abstractmethod
    def card(self) -> EncoderCard:
        """What is known of the model."""

    def weights(self) -> Mapping[str, str]:
        """Say which weights these are, and which version of its package runs them."""
        return {**super().weights(), **code_of(self.package)}

    def load(self, device: str, precision: str) -> None:
        """Load the weights.

        Raises:
            EncoderError: As for every `TorchModel`.
        """
        super().load(device, precision)
        self.loaded_weights = {**self.loaded_weights, **code_of(self.package)}

    def cast(self, model: nn.Module) -> None:
        """Leave the weights to autocast, as the models' cards do: others' code looks at them."""

    def removed_layers(self, model: nn.Module) -> Sequence[str]:
        """Name nothing: the file holds what the package builds."""
        return ()

    def tensor(self, values: NDArray[Any], dtype: torch.dtype = torch.float32) -> Tensor:
        """Copy an array to the device."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device, dtype)

    def features(self, bag: TileBag) -> NDArray[np.floating[Any]]:
        """Give the features of a bag, (n, dim).

        Raises:
            EncoderError: If there are none, or they are of another encoder.
        """
        need, features = self.recipe.need, bag.only
        if not len(bag) or features.shape != (len(bag), need.dim):
            raise EncoderError(
                f"{self.name} takes (tiles, {need.dim}) features of {need.key}, one tile at least, "
                f"and was given {features.shape} of {bag.slide_id}."
            )
        return features

    @contextmanager
    def computing(self, what: str) -> Iterator[None]:
        """Compute in the precision that was asked for, and say so where memory is short.

        Args:
            what: A slide or a patient.

        Raises:
            EncoderError: If the device has no memory for it.
        """
        try:
            with self._computing(), timed("encode"):
                yield
        except torch.cuda.OutOfMemoryError as error:
            raise EncoderError(
                f"{self._device} has no memory for {self.name} on all tiles of {what}: {self.spare}"
            ) from error

    def array(self, found: Tensor, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Bring a result to the CPU as float32, without the axis of the batch.

        Raises:
            EncoderError: If it is of another shape.
        """
        given = tuple(found.shape)
        if given not in (shape, (1, *shape)):
            raise EncoderError(
                f"The code of {self.name} gave {given}, where {shape} is known of it here: it "
                f"is of another version."
            )
        array: NDArray[np.float32] = found.reshape(shape).float().cpu().numpy()
        return array

    def guarded(self, path: Path, load: Callable[[], Loaded]) -> Loaded:
        """Let a package load a file: a pickle that wants more than tensors by the user's leave.

        Args:
            path: The file.
            load: What loads it.

        Raises:
            EncoderError: If it is refused.
        """
        try:
            with tensors_only(path):
                return load()
        except PickleRefusedError:
            if file_digest(path) != self._allowed:
                raise
            self._ran_pickle = True
            return load()


class PackagedSlideEncoder(PackagedModel):
    """A slide encoder that gives a vector, and for some models the attention of each tile."""

    @abstractmethod
    def embed(self, model: Any, bag: TileBag) -> Embedded:
        """Call the model as its publishers do."""

    def encode(self, bag: TileBag) -> SlideOutput:
        """Encode a slide with one tile at least.

        Raises:
            EncoderError: If the encoder is not loaded, the features are not those that it was
                made for, the model cannot take such a slide, memory is short, or the output is
                not what the card says.
        """
        model = self._loaded()
        with self.computing(bag.slide_id):
            found = self.embed(model, bag)
        card, attention, latents = self.card, found.attention, found.latents
        return SlideOutput(
            embedding=self.array(found.embedding, (card.dim,)),
            latents=None if latents is None else self.array(latents, card.latents or ()),
            attention=None if attention is None else self.array(attention, (len(bag),)),
        )


class PublishedSlideEncoder(PublishedModel, PackagedSlideEncoder):
    """A slide encoder whose weights lie in a hub entry."""

    recipe: SlideRecipe


def code_of(package: str) -> Mapping[str, str]:
    """Say which version of a distribution is installed, and of which commit if pip knows it.

    Args:
        package: Its name; empty for none.

    Returns:
        ``code``: ``gigapath 0.1.0 at COMMIT``; nothing of a package that was not installed as one.
    """
    if not package:
        return {}
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return {}
    direct = json.loads(found.read_text("direct_url.json") or "{}")
    commit = direct.get("vcs_info", {}).get("commit_id", "")
    return {"code": f"{package} {found.version}" + (f" at {commit}" if commit else "")}
