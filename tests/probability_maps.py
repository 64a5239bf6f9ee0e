"""Probability maps that tests draw as text."""

from __future__ import annotations

import numpy as np

from microtome.slide.types import Resolution
from microtome.store.exchange import make_geometry
from microtome_training.predicting.heatmaps import ProbabilityMap


def make_map(rows, *, size=256, step=None, slide_id="a", order=None, extent=None):
    """Make a map of lines of text: a digit is a probability in tenths, a dot no tile.

    Tiles are ``size`` level-0 pixels of 0.5 µm wide, and ``step`` apart.
    """
    step = step or size
    cells = [(x, y, c) for y, row in enumerate(rows) for x, c in enumerate(row) if c != "."]
    place = [(round(x * step), round(y * step)) for x, y, _ in cells]
    geometry = make_geometry(
        size, size, step_level0=step, resolution=Resolution(mpp_x=0.5, mpp_y=0.5)
    )
    coords = np.zeros((len(cells), 5), np.int32)
    if cells:
        coords[:, :2], coords[:, 2:4] = place, size
    probability = np.array([int(c) / 10 for *_, c in cells], np.float32)
    if order is not None:
        order = [i for i in order if i < len(cells)]
        coords, probability = coords[order], probability[order]
    width = round(step * max(map(len, rows), default=1) + size)
    return ProbabilityMap(
        slide_id=slide_id,
        class_name="tumor",
        coords=coords,
        probability=probability,
        geometry=geometry,
        extent=extent or (width, round(step * len(rows) + size)),
    )
