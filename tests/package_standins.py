"""Packages that are not installed here: stand-ins of their published calls, and bags for them."""

from __future__ import annotations

import io
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import torch

from microtome.plugin.options import configure
from microtome.slide.bags import TileBag

CELLS = ((3, 2), (4, 2), (3, 3), (7, 9))
"""Columns and rows of tiles, sorted by row."""


def make(spec, target, **options):
    """Make a row's encoder as the registry does, which would look for its package first."""
    return target(configure(spec, **options), **spec.fixed)


def grid_bag(dim, cells=CELLS, *, tile=512, slide_id="s"):
    """Give a slide with a tile in each of some (column, row) of its grid."""
    grid = np.array(cells, np.int64).reshape(-1, 2)
    features = np.random.default_rng(len(grid)).normal(size=(len(grid), dim))
    return TileBag(
        slide_id=slide_id,
        features={"features": features.astype(np.float32)},
        coords=grid * tile,
        tile_size_level0=tile,
        size=256,
        mpp=0.5,
        slide_size=(100_000, 80_000),
    )


def install(monkeypatch, name, **members):
    """Put a module into the place of one that is not installed, with the packages above it."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:depth]))
        module.__path__ = []
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(members)


def pickled(state):
    """Give what torch.save writes."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def said(tensor):
    """Say what a tensor is: its shape and dtype."""
    return tuple(tensor.shape), tensor.dtype
