"""Mettle: H-optimus-0's transformer, fine-tuned, and a head that refines the class token."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from microtome_encoders.patch.dense import Anatomy, timm_anatomy
from microtome_encoders.patch.timm import TimmEncoder

ATOMS, RANK, HIDDEN = 16, 8, 256
"""Of the head, from the hub entry's configuration."""


class MettleEncoder(TimmEncoder):
    """The published model: a backbone and a head, under these names in its file of weights."""

    def build(self) -> nn.Module:
        """Make the model with random weights."""
        return _Mettle(super().build())

    def anatomy(self, model: nn.Module) -> Anatomy:
        """Say where the backbone has its tokens; the head refines the class token alone."""
        return timm_anatomy(model.get_submodule("backbone"))

    def removed_layers(self, model: nn.Module) -> Sequence[str]:
        """Name no layer: the published file holds exactly the two parts."""
        return ()


class _Mettle(nn.Module):
    """Gives all tokens, of which only the class token is refined; in fp32 from there on."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        made: Any = backbone
        self.backbone = backbone
        self.num_prefix_tokens: int = made.num_prefix_tokens
        self.head = _RefineHead(made.num_features)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.backbone(images)
        # There is no autocast on the meta device.
        exact = (
            nullcontext() if tokens.is_meta else torch.autocast(tokens.device.type, enabled=False)
        )
        with exact:
            tokens = tokens.float()
            refined = self.head(tokens[:, 0])
            return torch.cat([refined[:, None], tokens[:, 1:]], dim=1)


class _ExactLinear(nn.Linear):
    """A product whose weights stay in fp32, whatever the precision of the rest."""


class _RefineHead(nn.Module):
    """Adds a mixture of low-rank products of the vector, and a shift, all of its own choice."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.P = nn.Parameter(torch.zeros(ATOMS, dim, RANK))
        self.Q = nn.Parameter(torch.zeros(ATOMS, dim, RANK))
        self.mix = _two_layers(dim, ATOMS)
        self.shift = _two_layers(dim, dim)

    def forward(self, vectors: Tensor) -> Tensor:
        inner = torch.einsum("nd,adr->nar", vectors, self.P)
        moved = torch.einsum("nar,adr,na->nd", inner, self.Q, self.mix(vectors))
        refined: Tensor = vectors + moved + self.shift(vectors)
        return refined


def _two_layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_ExactLinear(inputs, HIDDEN), nn.GELU(), _ExactLinear(HIDDEN, outputs))
