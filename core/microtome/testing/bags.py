"""Bags of made-up tiles, for tests of slide and patient encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from microtome.plugin.specs import TileNeed
from microtome.slide.bags import TileBag

_SHARE = 0.7
"""Of the places in a bag's box that have a tile: tissue has holes."""


def make_bag(
    needs: Sequence[TileNeed] = (), *, seed: int = 0, grid: tuple[int, int] = (5, 4), dim: int = 8
) -> TileBag:
    """Make the tiles of a slide with random features.

    Args:
        needs: What they are like, as of a slide encoder; any features if there is none.
        seed: Of features, and of the places that have a tile.
        grid: (columns, rows) of the box that the tiles lie in; the first place has a tile.
        dim: Columns of features where a need does not say.
    """
    rng = np.random.default_rng(seed)
    size = next((need.patch_size for need in needs if need.patch_size), 256)
    mpp = next((m for need in needs if (m := _mpp(need))), 0.5)
    side = 2 * size  # a slide at twice the resolution
    columns, rows = grid
    taken = rng.random((rows, columns)) < _SHARE
    taken[0, 0] = True
    places = np.argwhere(taken)[:, ::-1]
    coords = np.ascontiguousarray((places + 1) * side, np.int64)
    dims: Mapping[str, int] = {need.key: need.dim or dim for need in needs} or {"features": dim}
    features = {
        name: rng.standard_normal((len(coords), columns_of)).astype(np.float32)
        for name, columns_of in dims.items()
    }
    return TileBag(
        slide_id=f"slide-{seed}",
        features=features,
        coords=coords,
        tile_size_level0=side,
        size=size,
        mpp=mpp,
        slide_size=((columns + 2) * side, (rows + 2) * side),
    )


def _mpp(need: TileNeed) -> float | None:
    return need.mpp or (10 / need.magnification if need.magnification else None)
