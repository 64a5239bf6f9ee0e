"""A torch model as a plugin: weights, precision and devices, whatever it takes and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from microtome.errors import ConfigError, EncoderError
from microtome.plugin.numerics import exact_convolutions
from microtome.plugin.specs import EncoderCard
from microtome.plugin.weights.bars import Told
from microtome.plugin.weights.files import (
    HUB,
    RANDOM,
    SHA256,
    PickleRefusedError,
    file_digest,
    find_file,
    fit_state,
    read_state,
)
from microtome.plugin.weights.hub import WeightsFile, downloading
from microtome_encoders.options import SourceConfig
from microtome_encoders.patch.devices import cast_products, resolve_dtype, seeded


class TorchModel(ABC):
    """What torch models have in common, of tiles and of slides.

    Precisions below fp32 are torch's autocast, which is how the models' cards run them: products of
    matrices and convolutions in that precision, norms, softmax and sums of residuals in fp32, where
    fp16 would overflow or lose small differences. Weights of products are cast once, at loading;
    autocast would cast them in every batch, to the same bits. TF32 is off.

    No file of weights may run code, unless it is the very pickle that the user allows.

    Args:
        config: Where the weights are from.

    Raises:
        ConfigError: If what it allows is no SHA-256.

    Attributes:
        loaded_weights: Exactly which weights `load` took, for the record beside the features:
            their source, file, hub commit and SHA-256, or the seed; empty before.
        notes: What a user should be told of how it runs, sentences.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self._allowed = config.allow_pickle.lower()
        if self._allowed and not SHA256.fullmatch(self._allowed):
            raise ConfigError(
                f"allow_pickle={config.allow_pickle} is no SHA-256 of a file, which has 64 "
                "hexadecimal digits."
            )
        self._ran_pickle = False
        self.loaded_weights: Mapping[str, str] = {}
        self.notes: list[str] = []
        self._model: nn.Module | None = None
        self._device = "cpu"
        self._dtype = torch.float32

    @property
    @abstractmethod
    def card(self) -> EncoderCard:
        """What is known of the model."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The model's name in messages."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the model without its head, its weights random, on torch's current device."""

    @abstractmethod
    def fetch(self) -> WeightsFile:
        """Find the file of the published weights, or download it."""

    def build_pretrained(self, path: Path) -> nn.Module:
        """Make the model without its head, with its published weights."""
        model = self.build()
        self.fit_file(model, path, self.name)
        return model

    @abstractmethod
    def removed_layers(self, model: nn.Module) -> Sequence[str]:
        """Name the head's layers that `build` left out: a file of weights may hold them."""

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring the tensors of a file to the names and shapes of the model that `build` makes."""
        return state

    @cached_property
    def weights_file(self) -> WeightsFile:
        """The file of weights, found or downloaded once; there is none of random weights."""
        path = find_file(self.config.weights)
        return self.fetch() if path is None else WeightsFile(path)

    def download(self, told: Told | None = None) -> Sequence[Path]:
        """Fetch all that `load` needs onto this machine, or find it there.

        Args:
            told: Hears of each file's name, of the bytes that are there and of all, if known.
                A damaged file in a cache is then fetched anew.

        Returns:
            The files.

        Raises:
            EncoderError: If the weights cannot be had.
        """
        with downloading(told) if told else nullcontext():
            return self.files()

    def files(self) -> Sequence[Path]:
        """Find or download all that `load` reads."""
        return () if self.config.weights == RANDOM else (self.weights_file.path,)

    def weights(self) -> Mapping[str, str]:
        """Say which weights these are: a seed, or the SHA-256 of what is in their file.

        So a name that comes to stand for other weights gives another identity, and one file
        gives one identity, whether from the hub's newest commit, from one that is asked for,
        or by its path. Weights that are not on this machine yet are downloaded here, before a
        run opens any slide; from then on no network is needed.

        Raises:
            EncoderError: If the weights cannot be had.
        """
        if self.config.weights == RANDOM:
            return {"weights": RANDOM, "seed": str(self.config.seed)}
        return {"weights": f"sha256:{self.weights_file.sha256}"}

    def load(self, device: str, precision: str) -> None:
        """Load the weights.

        Raises:
            EncoderError: If the weights cannot be had or do not fit, the device does not exist,
                or the precision is not one of the device's.
        """
        self._dtype = resolve_dtype(device, precision)
        self._device = device
        model = self._with_weights().eval().requires_grad_(False)
        self.cast(model)
        # Convolutions on NHWC memory are 1.5 x faster on a CPU, and Tensor Cores want it.
        self._model = model.to(
            device=device,
            memory_format=torch.channels_last,  # type: ignore[call-overload]
        )

    def cast(self, model: nn.Module) -> None:
        """Bring weights to the precision that was asked for, as far as autocast would anyway."""
        cast_products(model, self._dtype)

    def _loaded(self) -> nn.Module:
        if self._model is None:
            raise EncoderError(f"The encoder {self.name} was asked to encode before load().")
        return self._model

    @contextmanager
    def _computing(self) -> Iterator[None]:
        kind, mixed = torch.device(self._device).type, self._dtype != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(kind, self._dtype if mixed else None, enabled=mixed),
            exact_convolutions(),
        ):
            yield

    def _with_weights(self) -> nn.Module:
        with seeded(self.config.seed):  # building draws numbers, even where weights replace them
            if self.config.weights == RANDOM:
                self.loaded_weights = {"source": RANDOM, "seed": str(self.config.seed)}
                return self.build()
            path = self.weights_file.path
            if self.config.weights == HUB:
                self.weights_file.check()
                model = self.build_pretrained(path)
            else:
                model = self.build()
                self.fit_file(model, path, str(path))
        self.loaded_weights = self.weights_file.facts
        if self._ran_pickle:
            self.loaded_weights |= {"pickle": "may have run code, by allow_pickle"}
        return model

    def fit_file(self, model: nn.Module, path: Path, where: str) -> None:
        """Load a file of weights into a model that it must fit exactly.

        Args:
            model: The model, without its head.
            path: The file.
            where: What messages call it.

        Raises:
            EncoderError: If it cannot be read, is refused, or does not fit.
        """
        state = self.adapt(self.read_file(path))
        fit_state(model, state, where, ignore=self.removed_layers(model))

    def read_file(self, path: Path) -> dict[str, Tensor]:
        """Read a file of weights: a pickle that wants more than tensors only by the user's leave.

        Raises:
            EncoderError: If it cannot be read, or is refused.
        """
        try:
            return read_state(path)
        except PickleRefusedError:
            if file_digest(path) != self._allowed:
                raise
            self._ran_pickle = True
            return read_state(path, trusted=True)
