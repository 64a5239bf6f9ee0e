"""Bags of tiles for tests of slide encoders."""

from __future__ import annotations

import numpy as np

from microtome.slide.bags import TileBag

SIDE = 1024
"""Of a tile in level-0 pixels, as 512 px at 20x are on a slide at 40x."""
OFFSET = (300, 7)
"""Of the first tile: no multiple of a tile's side, as on a slide whose lattice is elsewhere."""


def make_bag(count, dim, *, key="features", columns=4, dtype=np.float32, seed=0):
    """Give a bag of tiles in rows of some columns, the features drawn at random."""
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    places = np.array([[i % columns, i // columns] for i in range(count)]).reshape(count, 2)
    return TileBag(
        slide_id="S-1",
        features={key: rows.astype(dtype)},
        coords=(places * SIDE + OFFSET).astype(np.int64),
        tile_size_level0=SIDE,
        size=512,
        mpp=0.5,
        slide_size=(100_000, 80_000),
    )
