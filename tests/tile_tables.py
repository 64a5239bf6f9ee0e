"""Tables of tiles that lie nowhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from microtome.slide.types import Resolution, SlideRef
from microtome.store.exchange import make_geometry, make_info
from microtome_training.tiles import TiledSlide, Tiles, join

SIZE = 256


def tiled(slide_id, *, patient="", size=SIZE, mpp=0.5, **fields):
    """Make a slide of such a table."""
    resolution = None if mpp is None else Resolution(mpp_x=mpp, mpp_y=mpp, mpp_source="test")
    extra = {"patient_id": patient} if patient else {}
    return TiledSlide(
        ref=SlideRef(path=Path(f"{slide_id}.svs"), slide_id=slide_id, extra=extra),
        store=Path(f"{slide_id}.h5"),
        writer="hdf5",
        geometry=make_geometry(size, size, step_level0=size, resolution=resolution),
        info=make_info((100 * SIZE, 100 * SIZE), resolution),
        identity=f"coords of {slide_id}",
        **fields,
    )


def of_slide(slide, labels, *, classes=("normal", "tumor"), fraction=1.0):
    """Make the tiles of a slide, in one row, with these labels."""
    count = len(labels)
    coords = np.zeros((count, 5), np.int32)
    coords[:, 0], coords[:, 2:4] = SIZE * np.arange(count), SIZE
    return Tiles(
        slides=(slide,),
        slide=np.zeros(count, np.int32),
        row=np.arange(count),
        coords=coords,
        label=np.asarray(labels, np.int16),
        fraction=np.full(count, fraction, np.float32),
        classes=classes,
    )


def make_tiles(counts, **fields):
    """Make the tiles of slides given as ``{"id": (background, positive)}``, or with a patient.

    The id of a slide may be a pair of it and its patient.
    """
    parts = []
    for name, numbers in counts.items():
        slide_id, patient = name if isinstance(name, tuple) else (name, "")
        labels = np.repeat(np.arange(len(numbers)), numbers)
        parts.append(of_slide(tiled(slide_id, patient=patient), labels, **fields))
    return join(parts)


def on_grid(grid, info):
    """Make the tiles of a grid, all background."""
    slide = replace(tiled(info.path.stem), geometry=grid.geometry)
    tiles = of_slide(slide, np.zeros(len(grid), np.int16))
    return replace(tiles, coords=grid.coords)
