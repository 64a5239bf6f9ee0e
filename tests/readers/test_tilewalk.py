"""Each native tile is decoded once a call, and kept where its neighbours will want it."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from microtome.errors import SlideReadError
from microtome_readers.tiff.segmentcache import SegmentCache
from microtome_readers.tiff.tilewalk import TileWalk

WIDE, HIGH = 130, 100
TILE = (32, 16)
PICTURE = np.random.default_rng(2).integers(0, 256, (HIGH, WIDE, 3)).astype(np.uint8)


class Tiles:
    """Tiles of a picture; notes what was decoded, and where to."""

    channels, segment = 3, TILE

    def __init__(self, *, fills):
        self.fills = fills
        self.decoded, self.memory = Counter(), []

    def decode(self, row, column, out=None):
        self.decoded[row, column] += 1
        wide, high = TILE
        tile = PICTURE[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
        if not self.fills:
            assert out is None
            return tile.copy()
        full = np.full((high, wide, 3), 99, np.uint8)
        full[: tile.shape[0], : tile.shape[1]] = tile
        if out is None:
            return full
        self.memory.append(out)
        out[:] = full
        return out


@pytest.fixture(params=[True, False], ids=["fills", "own memory"])
def walk(request):
    return TileWalk(Path("a.tif"), 0, (WIDE, HIGH), Tiles(fills=request.param), SegmentCache(10**6))


def read(walk, boxes):
    """Read boxes and compare them with the picture."""
    out = np.zeros((len(boxes), boxes[0][3], boxes[0][2], 3), np.uint8)
    walk.read(boxes, list(out))
    for (x, y, w, h), pixels in zip(boxes, out, strict=True):
        assert np.array_equal(pixels, PICTURE[y : y + h, x : x + w])
    return out


def grid(x, y, side, across, down, step=None):
    step = step or side
    return [(x + step * i, y + step * j, side, side) for j in range(down) for i in range(across)]


def test_boxes_that_are_tiles_are_decoded_where_they_are_wanted(walk):
    boxes = [(32 * i, 16 * j, 32, 16) for j in range(3) for i in range(3)]
    out = read(walk, boxes)
    assert set(walk.source.decoded.values()) == {1}
    assert walk.cache.borrow((0, 0, 0)) is None
    if walk.source.fills:
        assert all(np.shares_memory(memory, out) for memory in walk.source.memory)


def test_a_tile_is_decoded_once_however_many_boxes_want_it(walk):
    read(walk, grid(5, 7, 10, 9, 8))
    assert set(walk.source.decoded.values()) == {1}


def test_neighbouring_calls_share_the_tiles_at_their_border(walk):
    for x in (3, 63):
        for y in (2, 42):
            read(walk, grid(x, y, 20, 3, 2))
    assert set(walk.source.decoded.values()) == {1}


def test_overlapping_boxes_share_too(walk):
    for x in (0, 40):
        read(walk, grid(x, 0, 20, 5, 4, step=10))
    assert walk.source.decoded[0, 1] == 1


def test_what_is_used_up_is_not_kept(walk):
    read(walk, grid(0, 0, 32, 2, 2))
    assert not any(walk.cache.borrow((0, row, column)) for row in range(4) for column in range(2))


def test_the_last_row_and_column_are_cut_off(walk):
    read(walk, [(WIDE - 40, HIGH - 30, 40, 30)])
    read(walk, [(0, 0, WIDE, HIGH)])


def test_one_box_at_a_time_decodes_no_tile_twice(walk):
    for box in grid(1, 1, 16, 8, 6):
        read(walk, [box])
    assert set(walk.source.decoded.values()) == {1}


def test_threads_share_a_walk(walk):
    calls = [grid(x, y, 12, 2, 2) for x in range(0, 100, 9) for y in range(0, 70, 11)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda boxes: read(walk, boxes), calls * 3))


def test_little_memory_gives_the_same_pixels():
    walk = TileWalk(Path("a.tif"), 0, (WIDE, HIGH), Tiles(fills=True), SegmentCache(4000))
    calls = [grid(x, y, 12, 2, 2) for x in range(0, 100, 9) for y in range(0, 70, 11)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda boxes: read(walk, boxes), calls * 5))


def test_no_box_is_nothing_to_do(walk):
    walk.read([], [])
    assert not walk.source.decoded


def test_an_error_names_the_tile(walk, monkeypatch):
    def fail(row, column, out=None):
        raise RuntimeError("bad Huffman code")

    monkeypatch.setattr(walk.source, "decode", fail)
    with pytest.raises(SlideReadError, match=r"a\.tif: tile or strip \(1, 0\).*bad Huffman code"):
        read(walk, [(32, 0, 20, 16)])
