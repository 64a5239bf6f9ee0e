"""Draw some tiles of the grid."""

from __future__ import annotations

import numpy as np

from microtome.slide.tiling import GridTiler
from microtome.slide.types import SlideInfo, TileGrid, TissueMask
from microtome_toolbox import SampleConfig


class SampleTiler:
    """Keeps at most ``count`` tiles of the grid, the same for the same seed."""

    def __init__(self, config: SampleConfig) -> None:
        self.config = config
        self.grid = GridTiler(config)

    def plan(self, info: SlideInfo, mask: TissueMask) -> TileGrid:
        """Plan the grid, then draw."""
        grid = self.grid.plan(info, mask)
        rng = np.random.default_rng(self.config.seed)
        count = min(self.config.count, len(grid))
        # Sorted: a grid's rows stay in order.
        kept = np.sort(rng.choice(len(grid), count, replace=False))
        return TileGrid(
            coords=grid.coords[kept],
            geometry=grid.geometry,
            columns={name: values[kept] for name, values in grid.columns.items()},
        )
