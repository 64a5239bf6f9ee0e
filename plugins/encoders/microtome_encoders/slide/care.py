"""CARE (arXiv:2602.21637): regions that adapt to tissue, by the places of tiles in a grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.slide.bags import TileBag
from microtome_encoders.slide.packaged import Embedded
from microtome_encoders.slide.remote import RemoteSlideEncoder


class CareEncoder(RemoteSlideEncoder):
    """A slide's embedding."""

    def call(self, model: Any, features: Tensor, bag: TileBag) -> Embedded:
        """Give (1, n, 768) features, their number, and (1, n, 2) int64 places in the grid.

        In this order and without names, as the publishers' own example does.
        """
        grid = np.ascontiguousarray(bag.coords // bag.tile_size_level0, np.int64)
        places = torch.from_numpy(grid).unsqueeze(0).to(features.device)
        count = torch.tensor([len(bag)], dtype=torch.int64, device=features.device)
        return Embedded(model(features, count, places).wsi_embedding)
