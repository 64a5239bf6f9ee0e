"""Gated attention over tiles (Ilse, Tomczak and Welling 2018), with weights that a user trained.

The weight of tile h is softmax(w · (tanh(V h) * sigmoid(U h))), and a slide's embedding is the sum
of its tiles by those weights; where there is a projection, of relu(P h) in place of h.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from microtome.errors import EncoderError, WeightsError
from microtome.plugin.protocols import SlideOutput
from microtome.plugin.specs import TileNeed
from microtome.plugin.weights.files import RANDOM, find_file
from microtome.plugin.weights.hub import WeightsFile
from microtome.slide.bags import TileBag
from microtome.slide.clock import timed
from microtome_encoders.bag_options import AbmilConfig
from microtome_encoders.patch.devices import resolve_dtype, seeded
from microtome_encoders.patch.model import TorchModel

LAYERS = "attention_V, attention_U, attention_w and perhaps projection"
_FIRST_OF_SEQUENCE = re.compile(r"^(attention_[VUw]|projection)\.0\.")


class Abmil(nn.Module):
    """The network, by the names of its published implementation.

    Args:
        dim: Columns of the tiles' features.
        hidden: Width of the attention.
        projected: Columns after the projection; 0 for none.
    """

    def __init__(self, dim: int, hidden: int, projected: int = 0) -> None:
        super().__init__()
        self.dim = dim
        self.projection = nn.Linear(dim, projected) if projected else None
        self.attention_V = nn.Linear(projected or dim, hidden)
        self.attention_U = nn.Linear(projected or dim, hidden)
        self.attention_w = nn.Linear(hidden, 1)

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Pool (n, dim) into (projected or dim,), and give the (n,) weights."""
        if self.projection is not None:
            tiles = self.projection(tiles).relu()
        gated = self.attention_V(tiles).tanh() * self.attention_U(tiles).sigmoid()
        weights = self.attention_w(gated).float().squeeze(-1).softmax(0)
        return weights @ tiles.float(), weights


class AbmilEncoder(TorchModel):
    """Attention-based pooling; gives the weight of each tile too.

    A file of weights holds linear layers, each a ``weight`` and a ``bias``: ``attention_V`` and
    ``attention_U`` (hidden, dim), ``attention_w`` (1, hidden) and, if tiles are projected first,
    ``projection`` (dim, columns of the features). Their widths are read from the file, when it is
    asked what it needs. Layers may be the first of a sequence, ``attention_V.0.weight``.

    Args:
        config: The user's options.

    Raises:
        ConfigError: If what the configuration allows is no SHA-256.
    """

    def __init__(self, config: AbmilConfig) -> None:
        super().__init__(config)
        self._encoder, self._hidden = config.encoder, config.hidden
        self._random: dict[int, Abmil] = {}

    @property
    def card(self) -> None:  # type: ignore[override]
        """Nothing is known without the features that are pooled."""

    @property
    def name(self) -> str:
        """The model's name in messages."""
        return "ABMIL"

    @property
    def needs(self) -> tuple[TileNeed, ...]:
        """Features as wide as its weights take, of the patch encoder that is named, if one is.

        Raises:
            EncoderError: If there is no file of weights, or one that does not fit.
        """
        dim = None if self.config.weights == RANDOM else self.widths[0]
        free = dim is None and not self._encoder
        return () if free else (TileNeed(encoder=self._encoder, dim=dim, overlap=True),)

    @cached_property
    def weights_file(self) -> WeightsFile:
        """The user's file of weights."""
        given = find_file(self.config.weights) if self.config.weights else None
        return self.fetch() if given is None else WeightsFile(given)

    def fetch(self) -> WeightsFile:
        """Refuse: nobody publishes such weights.

        Raises:
            WeightsError: Always; says what to give.
        """
        raise WeightsError(
            "ABMIL has no published weights: give a file of those that you trained, "
            "encoder.NAME.weights=PATH (layers "
            f"{LAYERS}), or encoder.NAME.weights=random to try a run."
        )

    @cached_property
    def widths(self) -> tuple[int, int, int]:
        """What the file of weights takes: columns of features, of attention, of the projection.

        Raises:
            EncoderError: If it cannot be read, is refused, or holds no such layers.
        """
        path = self.weights_file.path
        shapes = {n: tuple(t.shape) for n, t in self.adapt(self.read_file(path)).items()}
        attention = shapes.get("attention_V.weight", ())
        projection = shapes.get("projection.weight")
        if len(attention) != 2 or (projection is not None and len(projection) != 2):
            raise EncoderError(
                f"{path} holds {', '.join(sorted(shapes)[:6]) or 'nothing'}, where ABMIL has the "
                f"linear layers {LAYERS}: rename them, or give another file."
            )
        hidden, dim = attention
        return (projection[1], hidden, projection[0]) if projection else (dim, hidden, 0)

    def build(self) -> nn.Module:
        """Make the network that the file of weights fits."""
        return Abmil(*self.widths)

    def removed_layers(self, model: nn.Module) -> Sequence[str]:
        """Name the head that such networks are trained with."""
        return ("classifier",)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Name layers that are the first of a sequence as if they were alone."""
        return {_FIRST_OF_SEQUENCE.sub(r"\1.", name): tensor for name, tensor in state.items()}

    def weights(self) -> Mapping[str, str]:
        """Say which weights these are: of random ones the width too."""
        hidden = {"hidden": str(self._hidden)} if self.config.weights == RANDOM else {}
        return {**super().weights(), **hidden}

    def load(self, device: str, precision: str) -> None:
        """Load the weights; random ones are drawn when it is known how wide features are.

        Raises:
            EncoderError: As for every `TorchModel`.
        """
        if self.config.weights != RANDOM:
            super().load(device, precision)
            return
        self._dtype, self._device = resolve_dtype(device, precision), device
        self.loaded_weights = {"source": RANDOM, "seed": str(self.config.seed)}

    def encode(self, bag: TileBag) -> SlideOutput:
        """Pool a slide with one tile at least.

        Raises:
            EncoderError: If the encoder is not loaded, the slide has no tiles, or its features
                are not as wide as those that the weights were trained on.
        """
        features = bag.only
        if not len(bag):
            raise EncoderError(f"{bag.slide_id} has no tiles, so there is nothing to pool.")
        model = self._of_width(features.shape[1])
        rows = torch.from_numpy(np.ascontiguousarray(features, np.float32)).to(self._device)
        with self._computing(), timed("encode"):
            embedding, attention = model(rows)
        return SlideOutput(embedding.float().cpu().numpy(), attention=attention.cpu().numpy())

    def _of_width(self, dim: int) -> Abmil:
        """Give the network for features of some width; a random one is drawn if need be."""
        if self.config.weights == RANDOM:
            if not self.loaded_weights:
                self._loaded()
            if dim not in self._random:
                with seeded(self.config.seed):
                    drawn = Abmil(dim, self._hidden).eval().requires_grad_(False)
                self._random[dim] = drawn.to(self._device)
            return self._random[dim]
        model = cast(Abmil, self._loaded())
        if model.dim != dim:
            raise EncoderError(
                f"The weights in {self.weights_file.path} take features of {model.dim} columns and "
                f"these have {dim}: name the encoder that they were trained on, "
                f"encoder.NAME.encoder=NAME_OF_IT."
            )
        return model
