"""A slide whose pixels say where they are, for tests of the pass over a slide's pixels."""

from __future__ import annotations

import threading

import numpy as np

from microtome.errors import SlideReadError
from microtome.slide.geometry import TileTarget, plan_geometry
from microtome.slide.types import Level, Resolution, SlideInfo, TileGrid

TILE = 16


class Numbered:
    """A slide whose every pixel says which tile it is in: red the column, green the row."""

    def __init__(self, columns, rows, fail_at=None):
        self.info = SlideInfo(
            path="numbered",
            reader="numbered",
            levels=(Level(width=columns * TILE, height=rows * TILE, downsample=1.0),),
            resolution=Resolution(mpp_x=0.25, mpp_y=0.25, magnification=40.0),
        )
        self.fail_at = fail_at
        self.threads = set()
        self.calls = []

    def read_tiles(self, level, boxes, out, rows):
        self.threads.add(threading.current_thread().name)
        self.calls.append(boxes[:, :2].tolist())
        for (x, y, _, _), row in zip(boxes.tolist(), rows.tolist(), strict=True):
            if (x, y) == self.fail_at:
                raise SlideReadError("the tile is broken")
            out[row] = (x // TILE % 256, y // TILE, 7)


def grid_of(reader, step=None, magnification=40.0, size=TILE):
    target = TileTarget(size=size, step=step, magnification=magnification)
    geometry = plan_geometry(reader.info, target)
    width, height = geometry.read_size
    coords = [
        (x, y, width, height, 0)
        for y in range(0, reader.info.height - height + 1, geometry.pitch[1])
        for x in range(0, reader.info.width - width + 1, geometry.pitch[0])
    ]
    return TileGrid(coords=np.array(coords, np.int32), geometry=geometry)
