"""A torch model as an encoder: loading, precision, devices and checks, whatever its library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from microtome.errors import EncoderError
from microtome.plugin.protocols import EncoderOutput
from microtome.plugin.specs import EncoderCard, Transform
from microtome.slide.batch import TileBatch
from microtome_encoders.options import WeightsConfig
from microtome_encoders.patch.hub import WeightsFile
from microtome_encoders.patch.weights import HUB, RANDOM, find_file, fit_state, read_state

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchEncoder(ABC):
    """What encoders of torch models have in common.

    Weights and input are cast to the precision (no autocast, so what is computed in which type
    does not depend on torch's lists), the embedding comes back in float32. TF32 is off.

    Args:
        config: Where the weights are from.

    Attributes:
        loaded_weights: Exactly which weights `load` took, for the record beside the features:
            their source, file, hub commit and SHA-256, or the seed; empty before.
    """

    def __init__(self, config: WeightsConfig) -> None:
        self.config = config
        self.loaded_weights: Mapping[str, str] = {}
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

    @abstractmethod
    def build_pretrained(self, path: Path) -> nn.Module:
        """Make the model without its head, with its published weights."""

    @abstractmethod
    def removed_layers(self, model: nn.Module) -> Sequence[str]:
        """Name the head's layers that `build` left out: a file of weights may hold them."""

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Embed (n, 3, h, w) images as (n, dim)."""
        embedding: Tensor = model(images)
        return embedding

    @cached_property
    def weights_file(self) -> WeightsFile:
        """The file of weights, found or downloaded once; there is none of random weights."""
        path = find_file(self.config)
        return self.fetch() if path is None else WeightsFile(path)

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
        # Convolutions on NHWC memory are 1.5 x faster on a CPU, and Tensor Cores want it.
        self._model = model.to(
            device=device,
            dtype=self._dtype,
            memory_format=torch.channels_last,  # type: ignore[call-overload]
        )

    def encode(self, batch: TileBatch) -> EncoderOutput:
        """Encode a batch.

        Raises:
            EncoderError: If the encoder is not loaded, memory is short, or the output is not
                what the card says.
        """
        if self._model is None:
            raise EncoderError(f"The encoder {self.name} was asked to encode before load().")
        if not len(batch):
            return EncoderOutput(embedding=np.empty((0, self.card.dim), np.float32))
        try:
            images = batch.tensor(self.card.transform or Transform(), self._device, self._dtype)
            with torch.inference_mode(), _exact_convolutions():
                embedding = self.forward(self._model, images).float().cpu()
        except torch.cuda.OutOfMemoryError as error:
            raise EncoderError(
                f"{self._device} has no memory for {self.name} on {len(batch)} tiles: "
                f"lower the encoder's batch_size."
            ) from error
        if tuple(embedding.shape) != (len(batch), self.card.dim):
            raise EncoderError(
                f"The encoder {self.name} gave {tuple(embedding.shape)} for {len(batch)} tiles, "
                f"where its card says {(len(batch), self.card.dim)}."
            )
        return EncoderOutput(embedding=embedding.numpy())

    def _with_weights(self) -> nn.Module:
        with seeded(self.config.seed):  # building draws numbers, even where weights replace them
            if self.config.weights == RANDOM:
                self.loaded_weights = {"source": RANDOM, "seed": str(self.config.seed)}
                return self.build()
            path = self.weights_file.path
            if self.config.weights == HUB:
                model = self.build_pretrained(path)
            else:
                model = self.build()
                fit_state(model, read_state(path), str(path), ignore=self.removed_layers(model))
        self.loaded_weights = self.weights_file.facts
        return model


def resolve_dtype(device: str, precision: str) -> torch.dtype:
    """Check a device and a precision against this machine.

    Raises:
        EncoderError: If the device does not exist, or the precision is unknown or not for it.
    """
    if precision not in PRECISIONS:
        raise EncoderError(f"There is no precision {precision!r}: give {', '.join(PRECISIONS)}.")
    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError as error:
        raise EncoderError(
            f"There is no device {device!r}: give cpu, cuda or cuda:INDEX."
        ) from error
    if kind == "cuda" and index >= torch.cuda.device_count():
        raise EncoderError(
            f"There is no device {device!r}: torch sees {torch.cuda.device_count()} CUDA "
            f"devices. Give device=cpu."
        )
    if kind == "cpu" and precision == "fp16":
        raise EncoderError("fp16 is for GPUs: on a CPU give precision=fp32 or bf16.")
    return PRECISIONS[precision]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw random weights from a seed, without touching anybody else's random numbers."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reseed every GPU.
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Keep TF32 off in cuDNN, where torch has it on; matrix products have it off already."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
