"""The order in which tiles are read."""

from __future__ import annotations

import numpy as np
import pytest

from microtome.slide.blocks import block_order
from microtome.slide.geometry import TileTarget, plan_geometry
from microtome.slide.types import Level, Resolution, SlideInfo, TileGrid


def grid_of(coords, *, size=256, step=None, magnification=40.0):
    info = SlideInfo(
        path="x",
        reader="x",
        levels=(Level(width=40000, height=30000, downsample=1.0),),
        resolution=Resolution(mpp_x=0.25, mpp_y=0.25, magnification=40.0),
    )
    target = TileTarget(size=size, step=step, magnification=magnification)
    return TileGrid(coords=np.asarray(coords, np.int32), geometry=plan_geometry(info, target))


def lattice(columns, rows, pitch, read):
    return [(x * pitch, y * pitch, read, read, 0) for y in range(rows) for x in range(columns)]


@pytest.fixture
def whole():
    return grid_of(lattice(20, 10, 256, 256))


def test_every_tile_comes_once(whole):
    order, _ = block_order(whole)
    assert sorted(order.tolist()) == list(range(len(whole)))


def test_a_square_is_finished_before_the_next_begins(whole):
    order, block = block_order(whole)
    assert (np.diff(block) >= 0).all()
    assert len(np.unique(block)) == 3 * 2
    corners = whole.coords[order, :2] // 2048
    for number in np.unique(block):
        assert len(np.unique(corners[block == number], axis=0)) == 1


def test_within_a_square_the_order_is_the_grids(whole):
    order, block = block_order(whole)
    for number in np.unique(block):
        assert (np.diff(order[block == number]) > 0).all()


def test_squares_hold_whole_tiles_whatever_the_pitch():
    grid = grid_of(lattice(21, 7, 600, 600), size=300, magnification=20.0)
    order, block = block_order(grid)
    # Three tiles of 600 fit into 2048, so no square has a part of a fourth.
    assert len(np.unique(block)) == 7 * 3
    assert np.bincount(block, minlength=1).max() == 9
    assert sorted(order.tolist()) == list(range(len(grid)))


def test_a_tile_larger_than_a_square_is_one_of_its_own():
    _, block = block_order(grid_of(lattice(3, 3, 4096, 4096), size=4096))
    assert len(np.unique(block)) == 9


def test_squares_are_counted_from_the_first_tile():
    moved = [(x + 1000, y + 700, w, h, level) for x, y, w, h, level in lattice(8, 8, 256, 256)]
    _, block = block_order(grid_of(moved))
    assert len(np.unique(block)) == 1


def test_strips_are_read_a_row_of_tiles_at_a_time(whole):
    order, block = block_order(whole, striped=True)
    assert order.tolist() == list(range(len(whole)))
    assert np.bincount(block).tolist() == [20] * 10


def test_no_tile():
    order, block = block_order(grid_of(np.empty((0, 5))))
    assert order.shape == block.shape == (0,)
