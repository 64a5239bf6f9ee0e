"""TITAN (Ding et al. 2024): a vision transformer over the grid of a slide's tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.slide.bags import TileBag
from microtome_encoders.slide.packaged import Embedded
from microtome_encoders.slide.remote import RemoteSlideEncoder

HEADS = 12
_PAIR = 12 + 3 * 4 * HEADS
"""Bytes for every pair of tiles at the peak, while the bias of distances (ALiBi) is made.

The distances in float64 and float32, then for each head three float32: their products with its
slope, the bias with the class token's row and column, and the copy that goes to the device. All of
it is in main memory, whatever the device. Attention takes no more later: the bias, the scores and
their softmax.
"""


class TitanEncoder(RemoteSlideEncoder):
    """A slide's embedding before its projection into the space that text shares."""

    def call(self, model: Any, features: Tensor, bag: TileBag) -> Embedded:
        """Give (1, n, 768) features, (1, n, 2) int64 level-0 coordinates, and a tile's side there.

        The features stay float32 also under fp16: the code adds them into a float32 grid.
        """
        coords = torch.from_numpy(np.ascontiguousarray(bag.coords, np.int64)).unsqueeze(0)
        embedding = model.encode_slide_from_patch_features(
            features, coords.to(features.device), np.int64(bag.tile_size_level0)
        )
        return Embedded(embedding)

    def memory(self, tiles: int, extent: tuple[int, int]) -> int:
        """Estimate: the bias grows with the square of the tiles, a grid with their bounding box.

        27 GB for 13 000 tiles, 100 GB for 25 000.
        """
        columns, rows = extent
        dim = self.recipe.need.dim or 0
        return _PAIR * (tiles + 1) ** 2 + columns * rows * (4 * dim + 16)

    def host_memory(self, tiles: int, extent: tuple[int, int]) -> int:
        """Estimate what is in main memory where the device is a GPU: the bias is made there."""
        return _PAIR * (tiles + 1) ** 2
