"""Prov-GigaPath's slide encoders (Xu et al. 2024, Usuyama et al. 2026), by their package.

LongNet over the tiles' features, each with the sine and cosine of its place in a grid of 1000 ×
1000 tiles. The package takes a place as pixels of 256 px tiles, so it is given whole columns and
rows of tiles times 256, whatever a tile measures at level 0.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from microtome.errors import EncoderError
from microtome.slide.bags import TileBag
from microtome_encoders.slide.packaged import Embedded, PublishedSlideEncoder

GRID = 1000
"""Columns and rows that the model knows, ``slide_ngrids`` of its package."""
CELL = 256
"""Pixels that the package takes a column or row to be wide."""
LAYER = 11
"""Of the input and the twelve layers' outputs, the one that is averaged."""
DEVICES = ("cuda",)
_ROWS = 28
"""Float32 vectors of the model's width that a tile needs: 13 states are kept, and as much again is
worked on by five branches of attention and a feed-forward of four times the width."""


class GigapathSlideEncoder(PublishedSlideEncoder):
    """The mean of the tiles' tokens after the eleventh of twelve layers, or the class token."""

    package = "gigapath"

    def build(self) -> nn.Module:
        """Make the model with random weights.

        The package would load the file too, but takes a missing one, or one that does not fit, for
        a reason to go on with random weights: so it is given none.
        """
        package = import_module("gigapath.slide_encoder")
        with redirect_stdout(io.StringIO()):  # it prints its configuration
            model: nn.Module = package.create_model(
                "",
                self.recipe.architecture,
                self.recipe.need.dim,
                global_pool=self.variant == "mean",
            )
        return model

    def load(self, device: str, precision: str) -> None:
        """Load the weights.

        Raises:
            EncoderError: As for every encoder of torch; on another device than an NVIDIA GPU, and
                in fp32, in which its attention cannot be computed.
        """
        if torch.device(device).type not in DEVICES or precision == "fp32":
            raise EncoderError(
                f"{self.name} computes attention with flash_attn, which needs an NVIDIA GPU and "
                f"fp16 or bf16: give encoder.NAME.device=cuda and .precision=fp16 instead of "
                f"{device} and {precision}."
            )
        super().load(device, precision)

    def memory(self, tiles: int, extent: tuple[int, int]) -> int:
        """Estimate the bytes of a sequence, whose attention is linear in its length."""
        return 4 * _ROWS * self.card.dim * (tiles + 1)

    def embed(self, model: Any, bag: TileBag) -> Embedded:
        """Give (1, n, dim) features, and (1, n, 2) int64 places in pixels of 256 px tiles."""
        features = self.tensor(self.features(bag))[None]
        coords = self.tensor(grid_of(bag) * CELL, torch.int64)[None]
        if self.variant == "cls":
            return Embedded(model(features, coords)[-1])
        return Embedded(model(features, coords, all_layer_embed=True)[LAYER])


def grid_of(bag: TileBag) -> NDArray[np.int64]:
    """Give the (column, row) of each tile, (n, 2).

    Raises:
        EncoderError: If the model's grid does not hold them, or two tiles have one place there.
    """
    grid = bag.coords // bag.tile_size_level0
    columns, rows = (grid.max(0) + 1).tolist()
    if grid.min() < 0 or max(columns, rows) > GRID:
        raise EncoderError(
            f"GigaPath knows {GRID} columns and rows of tiles, and those of {bag.slide_id} reach "
            f"from {grid.min(0).tolist()} to column {columns} and row {rows}."
        )
    if len(np.unique(grid, axis=0)) < len(grid):
        raise EncoderError(
            f"Tiles of {bag.slide_id} overlap, so that GigaPath would see two in one place: tile "
            f"without overlap."
        )
    return grid
