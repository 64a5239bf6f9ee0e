"""Overlays: the right pixels change, nothing else does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from microtome.errors import ConfigError
from microtome.slide.overlay import draw_overlay
from microtome.slide.types import (
    Level,
    SlideInfo,
    SlideRef,
    SlideView,
    TileGeometry,
    TileGrid,
    TissueMask,
)


def view(width=40, height=30, downsample=10.0):
    ref = SlideRef(path=Path("a.svs"), slide_id="a")
    level = Level(width=int(width * downsample), height=int(height * downsample), downsample=1.0)
    return SlideView(
        slide=ref,
        info=SlideInfo(path=ref.path, reader="x", levels=(level,)),
        image=np.full((height, width, 3), 250, np.uint8),
        covered=None,
        downsample=(downsample, downsample),
        mpp=None,
    )


def grid(corners, size=100):
    geometry = TileGeometry(
        size=size,
        step=size,
        level=0,
        level_downsample=1.0,
        read_size=(size, size),
        pitch=(size, size),
        size_level0=(size, size),
        pitch_level0=(size, size),
        target_mpp=None,
        target_magnification=20,
        effective_mpp=None,
    )
    coords = np.array([[x, y, size, size, 0] for x, y in corners], np.int32).reshape(-1, 5)
    return TileGrid(coords=coords, geometry=geometry)


MASK = TissueMask(array=np.kron([[0, 1], [0, 0]], np.ones((15, 20))) > 0, downsample=(10.0, 10.0))


def changed(kind, **more):
    here = view()
    drawn = draw_overlay(kind, here, mask=MASK, **{"grid": None} | more)
    assert drawn.shape == here.image.shape
    assert drawn.dtype == np.uint8
    assert (here.image == 250).all()
    return (drawn != here.image).any(2)


def test_the_grid_outlines_tiles_and_leaves_their_inside():
    found = changed("grid", grid=grid([(100, 100)]))
    expected = np.zeros((30, 40), bool)
    expected[10:21, 10:21] = True
    expected[11:20, 11:20] = False
    assert np.array_equal(found, expected)


def test_tiles_over_the_border_are_clipped():
    found = changed("grid", grid=grid([(350, 250)]))
    assert found[25, 35:].all()
    assert not found[:25].any()


def test_no_tiles_draw_nothing():
    assert not changed("grid", grid=grid([])).any()


def test_a_hundred_thousand_tiles():
    corners = [(x, y) for y in range(0, 25000, 100) for x in range(0, 40000, 100)]
    here = view(400, 300, downsample=100.0)
    drawn = draw_overlay("grid", here, mask=MASK, grid=grid(corners))
    assert (drawn[:250] != 250).any(2).all()


def test_the_mask_tints_its_pixels_only():
    assert np.array_equal(changed("mask"), MASK.array)


def test_a_mask_of_one_pixel_tints_everything():
    one = TissueMask(array=np.ones((1, 1), bool), downsample=(400.0, 300.0))
    assert (draw_overlay("mask", view(), mask=one, grid=None) != 250).any(2).all()


def test_contours_follow_the_mask_within_a_pixel():
    found = changed("contours")
    assert found.any()
    rows, columns = np.nonzero(found)
    assert columns.min() in (19, 20)
    assert rows.max() in (14, 15)
    assert not found[3:12, 23:37].any()


def test_holes_have_their_own_colour():
    array = np.ones((30, 40), bool)
    array[10:20, 10:20] = False
    holed = TissueMask(array=array, downsample=(10.0, 10.0))
    drawn = draw_overlay("contours", view(), mask=holed, grid=None)
    assert tuple(drawn[0, 20]) != tuple(drawn[9, 15])


def test_unknown_overlays_and_missing_grids_are_refused():
    with pytest.raises(ConfigError, match="Available: grid, mask, contours"):
        draw_overlay("heat", view(), mask=MASK, grid=None)
    with pytest.raises(ConfigError, match="needs tiles"):
        draw_overlay("grid", view(), mask=MASK, grid=None)
