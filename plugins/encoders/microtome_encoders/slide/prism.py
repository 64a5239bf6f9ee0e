"""PRISM (Shaikovski et al. 2024): a perceiver over a slide's tiles, wherever they lie."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from microtome.slide.bags import TileBag
from microtome_encoders.slide.packaged import Embedded
from microtome_encoders.slide.remote import RemoteSlideEncoder

LATENTS = 512
HEADS = 8
_WIDTHS = 4 * (2 * 2560 + 2 * 1280)
"""Bytes for a tile: its features, once more as they are normed, and their keys and values."""
_SCORES = 2 * 4 * HEADS * LATENTS
"""Bytes for a tile: its score for every latent and head, and the softmax of those."""


class PrismEncoder(RemoteSlideEncoder):
    """A slide's embedding and its latents."""

    def call(self, model: Any, features: Tensor, bag: TileBag) -> Embedded:
        """Give (1, n, 2560) features."""
        found = model.slide_representations(features)
        return Embedded(found["image_embedding"], latents=found["image_latents"])

    def memory(self, tiles: int, extent: tuple[int, int]) -> int:
        """Estimate: attention of every latent to every tile, which is linear in the tiles."""
        return tiles * (_WIDTHS + _SCORES)
