"""Boxes in their levels, and interpolation between pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from readers import tiffs

from microtome.slide.types import Level
from microtome_readers.tiff.placement import Placement, interpolate, place, read_placed

PIXELS = tiffs.colours(40, 50)
LEVEL = Level(width=50, height=40, downsample=2.0)


def region(box):
    x, y, w, h = box
    assert x >= 0
    assert y >= 0
    assert x + w <= 50
    assert y + h <= 40
    return PIXELS[y : y + h, x : x + w]


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from([1.0, 2.0, 4.0, 16.0]))
def test_whole_downsamples_place_lattice_points_exactly(column, row, downsample):
    box = (int(column * downsample), int(row * downsample), 7, 9)
    assert place(box, downsample) == Placement(column, row, 7, 9)


@given(st.integers(0, 10**6), st.floats(1.0, 64.0))
def test_nothing_is_lost_in_placing(x, downsample):
    placed = place((x, 0, 1, 1), downsample)
    assert 0 <= placed.right < 1
    assert placed.x + placed.right == pytest.approx(x / downsample, abs=1 / 512)


def test_whole_positions_read_what_is_there():
    assert np.array_equal(
        read_placed(region, place((20, 10, 9, 8), 2.0), LEVEL), region((10, 5, 9, 8))
    )


@given(st.integers(0, 80), st.integers(0, 60))
def test_between_pixels_is_the_mean_of_its_neighbours(x, y):
    """At a downsample of 2, odd positions lie half-way: numpy does the same sum by slices."""
    pixels = read_placed(region, place((x, y, 9, 9), 2.0), LEVEL)
    padded = np.pad(PIXELS, ((0, 1), (0, 1), (0, 0)), mode="edge").astype(float)
    rows = [padded[y // 2 + i : y // 2 + i + 9] for i in {0, y % 2}]
    parts = [r[:, x // 2 + j : x // 2 + j + 9] for r in rows for j in {0, x % 2}]
    assert np.abs(pixels - np.mean(parts, axis=0)).max() <= 0.5


def test_the_last_pixels_are_repeated_at_the_end_of_a_level():
    pixels = read_placed(region, Placement(41, 31, 9, 9, 0.25, 0.25), LEVEL)
    assert np.array_equal(pixels[-1, -1], PIXELS[-1, -1])


def test_what_is_transparent_lends_no_colour():
    pixels = np.zeros((1, 2, 4), np.uint8)
    pixels[0, 0] = (200, 100, 50, 255)
    # Half-way to a transparent black pixel: the same colour, half as opaque.
    assert interpolate(pixels, right=0.5, down=0)[0, 0].tolist() == [200, 100, 50, 128]
