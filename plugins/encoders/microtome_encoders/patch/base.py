"""A torch model as an encoder of tiles: batches, memory and checks, whatever its library."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from microtome.errors import ConfigError, EncoderError
from microtome.plugin.protocols import EncoderOutput
from microtome.plugin.specs import Transform
from microtome.slide.batch import TileBatch
from microtome.slide.clock import timed
from microtome_encoders.options import WeightsConfig
from microtome_encoders.patch.dense import Anatomy, Overhearing, find_dense
from microtome_encoders.patch.devices import copy_back, seeded
from microtome_encoders.patch.model import TorchModel

BATCH_SIZES = (32, 64, 128, 256, 512)
"""What `TorchEncoder.largest_batch` tries: beyond these a GPU gains nothing more."""


class TorchEncoder(TorchModel):
    """What encoders of tiles that are torch models have in common.

    The embedding comes back in float32.

    Args:
        config: Where the weights are from.

    Raises:
        ConfigError: If what it allows is no SHA-256.
    """

    def __init__(self, config: WeightsConfig) -> None:
        super().__init__(config)
        self._compile = config.compile
        self._compiled: nn.Module | None = None
        self._most = sys.maxsize
        self._padded_to = 0
        self._asked: tuple[str, ...] = ()
        self._heard: Overhearing | None = None

    def load(self, device: str, precision: str) -> None:
        """Load the weights, and compile the model where that is asked for.

        Raises:
            EncoderError: As of every `TorchModel`.
        """
        super().load(device, precision)
        if self._compile:
            self._compiled = cast(nn.Module, torch.compile(self._model, dynamic=False))
            compiler = f"torch.compile of torch {torch.__version__}"
            self.loaded_weights = {**self.loaded_weights, "compiled": compiler}
        anatomy = self.anatomy(self._loaded()) if self._asked else None
        self._heard = None if anatomy is None else Overhearing(anatomy, self._asked)

    def anatomy(self, model: nn.Module) -> Anatomy | None:
        """Say where in the model dense features are; None of a model that has none."""
        return None

    @cached_property
    def gives(self) -> tuple[str, ...]:
        """What the model can give besides its embedding: found by a dry run without weights."""
        if type(self).anatomy is TorchEncoder.anatomy:
            return ()
        with seeded(self.config.seed), torch.device("meta"), torch.inference_mode():
            model = self.build().eval()
            anatomy = self.anatomy(model)
            images = torch.empty(1, 3, self._side, self._side)
            return () if anatomy is None else find_dense(anatomy, self.forward, model, images)

    def ask(self, *names: str) -> None:
        """Want more of every batch than the embedding. Comes before `load`.

        Args:
            names: Of `gives`.

        Raises:
            ConfigError: If the model is to be compiled, and so cannot be looked into.
        """
        if names and self._compile:
            raise ConfigError(
                f"A compiled model gives its embedding alone, without {' and '.join(names)}: "
                "leave compile=false."
            )
        self._asked = names

    @property
    def _side(self) -> int:
        """Of the model's input in pixels."""
        transform = self.card.transform or Transform()
        return self.card.input_size or transform.crop or transform.resize or 224

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Embed (n, 3, h, w) images as (n, dim)."""
        embedding: Tensor = model(images)
        return embedding

    def encode(self, batch: TileBatch) -> EncoderOutput:
        """Encode a batch.

        Raises:
            EncoderError: As `begin` does.
        """
        return self.begin(batch)()

    def begin(self, batch: TileBatch) -> Callable[[], EncoderOutput]:
        """Begin with a batch, and give what waits for its output.

        A CPU is done when this returns. A CUDA device is only told what to do: copy, normalise,
        embed and copy back, in order, while the caller goes on; the batch's pixels must stay as
        they are until the output is there. Where memory is short, fewer tiles are taken at once
        from then on, and `notes` says so.

        Raises:
            EncoderError: If the encoder is not loaded, memory is short for a single tile, or the
                output is not what the card says.
        """
        self._loaded()
        if not len(batch):
            nothing = np.empty((0, self.card.dim), np.float32)
            return lambda: EncoderOutput(embedding=nothing)
        try:
            images = batch.tensor(self.card.transform or Transform(), self._device, self._dtype)
        except torch.cuda.OutOfMemoryError as error:
            raise EncoderError(
                f"{self._device} has no memory for the pixels of {len(batch)} tiles: lower the "
                f"encoder's batch_size."
            ) from error
        parts = [
            {name: copy_back(values) for name, values in part.items()}
            for part in self._embed_parts(images)
        ]

        def finish() -> EncoderOutput:
            rows = {name: [part[name]() for part in parts] for name in parts[0]}
            whole = {n: r[0] if len(r) == 1 else np.concatenate(r) for n, r in rows.items()}
            return EncoderOutput(**whole)

        return finish

    def largest_batch(self, candidates: Sequence[int] = BATCH_SIZES) -> int:
        """Find the largest batch that a GPU has memory for, by embedding black tiles.

        Args:
            candidates: Sizes to try, ascending.

        Returns:
            The last one that fits; the first one on a CPU, which gains nothing from a larger one.

        Raises:
            EncoderError: If the encoder is not loaded.
        """
        model = self._loaded()
        if torch.device(self._device).type == "cpu":
            return candidates[0]
        largest = candidates[0]
        for count in candidates:
            if not self._fits(model, count):
                break
            largest = count
        torch.cuda.empty_cache()
        return largest

    def _fits(self, model: nn.Module, count: int) -> bool:
        shape = (count, 3, self._side, self._side)
        try:
            images = torch.zeros(shape, dtype=self._dtype, device=self._device)
            with self._computing():
                self.forward(model, images.to(memory_format=torch.channels_last))
        except torch.cuda.OutOfMemoryError:
            return False
        return True

    def _embed_parts(self, images: Tensor) -> Iterator[Mapping[str, Tensor]]:
        """Embed images, as many at once as memory holds: half of what did not fit."""
        start = 0
        while start < len(images):
            part = images[start : start + self._most]
            try:
                output = self._embed(part)
            except torch.cuda.OutOfMemoryError as error:
                if len(part) == 1:
                    raise EncoderError(
                        f"{self._device} has no memory for {self.name}, not even on one tile: "
                        f"give precision=fp16 or bf16 where it has fp32, or device=cpu."
                    ) from error
                self._most = len(part) // 2
                self.notes = [
                    f"{self._device} has no memory for {self.name} on {len(part)} tiles: it is "
                    f"given {self._most} at once, which the encoder's batch_size had better say."
                ]
            else:
                yield output
                start += len(part)

    def _embed(self, images: Tensor) -> Mapping[str, Tensor]:
        """Embed images: float32, by the names of an `EncoderOutput`."""
        count = len(images)
        if self._compiled is not None:
            images = self._padded(images)
        with self._computing(), timed("encode"):
            embedding = self._run(images)
            heard = self._overheard()
        if tuple(embedding.shape) != (len(images), self.card.dim):
            raise EncoderError(
                f"The encoder {self.name} gave {tuple(embedding.shape)} for {len(images)} tiles, "
                f"where its card says {(len(images), self.card.dim)}."
            )
        return {"embedding": embedding[:count].float(), **heard}

    def _overheard(self) -> Mapping[str, Tensor]:
        """Give what was asked for of the images that were just embedded."""
        heard = {} if self._heard is None else self._heard.take()
        if missing := [name for name in self._asked if name not in heard]:
            raise EncoderError(
                f"The model of {self.name} showed no {' and no '.join(missing)} of its tiles; it "
                f"can show {' and '.join(self.gives) or 'neither tokens nor attention'}."
            )
        return heard

    def _run(self, images: Tensor) -> Tensor:
        if self._compiled is None:
            return self.forward(self._loaded(), images)
        try:
            return self.forward(self._compiled, images)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of torch's compiler, or of the one that it calls
            why = " ".join(str(error).split())[:200]
            raise EncoderError(
                f"torch.compile fails for {self.name} on {self._device}, so leave compile=false. "
                f"It says: {why}"
            ) from error

    def _padded(self, images: Tensor) -> Tensor:
        """Repeat the first image up to a full batch: a compiled model is compiled for one size."""
        self._padded_to = min(max(self._padded_to, len(images)), self._most)
        missing = self._padded_to - len(images)
        return torch.cat([images, images[:1].repeat(missing, 1, 1, 1)]) if missing else images
