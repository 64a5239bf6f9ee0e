"""The content filter, its thresholds pixel by pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from microtome.run.settings import FilterSettings
from microtome.slide.content import content_keep

DEFAULTS = FilterSettings(enabled=True)
PINK = (200, 120, 180)


def tile(colour, share, rest=PINK):
    """Ten by ten pixels, a share of them of one colour."""
    pixels = np.empty((100, 3), np.uint8)
    pixels[:] = rest
    pixels[: round(share * 100)] = colour
    return pixels.reshape(10, 10, 3)


def keep(*tiles, settings=DEFAULTS):
    return content_keep(np.stack(tiles), settings).tolist()


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0)])
def test_a_share_that_is_reached_drops(colour):
    assert keep(tile(colour, 0.69), tile(colour, 0.70), tile(colour, 1.0)) == [True, False, False]


def test_white_and_black_do_not_add_up():
    assert keep(tile((255, 255, 255), 0.5, rest=(0, 0, 0))) == [True]


@pytest.mark.parametrize(
    ("colour", "white"),
    [
        ((200, 200, 200), True),  # value 200 is from 200
        ((199, 199, 199), False),
        ((255, 241, 255), True),  # saturation 255 x 14 / 255 = 14, below 15
        ((255, 240, 255), False),  # 15
        ((210, 190, 200), False),  # 255 x 20 / 210 = 24.3
    ],
)
def test_what_white_is(colour, white):
    assert keep(tile(colour, 1.0)) == [not white]


@pytest.mark.parametrize(
    ("colour", "black"),
    [
        ((49, 49, 49), True),
        ((50, 50, 50), False),
        ((0, 0, 255), True),  # luma 0.114 x 255 = 29
        ((0, 255, 0), False),  # luma 0.587 x 255 = 150
        ((255, 0, 0), False),  # luma 0.299 x 255 = 76
    ],
)
def test_what_black_is(colour, black):
    assert keep(tile(colour, 1.0)) == [not black]


def test_every_constant_can_be_set():
    pale = tile((255, 230, 255), 0.5)  # saturation 25
    dim = tile((150, 150, 150), 0.5)
    dark = tile((60, 60, 60), 0.5)
    assert keep(pale, dim, dark) == [True, True, True]
    half = replace(DEFAULTS, white_drop_from=0.5, black_drop_from=0.5)
    assert keep(pale, dim, dark, settings=half) == [True, True, True]
    assert keep(pale, settings=replace(half, white_saturation_below=26)) == [False]
    assert keep(dim, settings=replace(half, white_value_from=150)) == [False]
    assert keep(dark, settings=replace(half, black_gray_below=61)) == [False]


def test_order_and_tiles_without_pixels():
    rng = np.random.default_rng(0)
    mixed = [tile((255, 255, 255), share) for share in rng.random(50)]
    together = keep(*mixed)
    assert together == [keep(one)[0] for one in mixed]
    assert 0 < sum(together) < 50
    assert content_keep(np.empty((0, 10, 10, 3), np.uint8), DEFAULTS).shape == (0,)


def test_pixels_need_not_be_contiguous():
    wide = np.concatenate([tile((255, 255, 255), 1.0), tile(PINK, 1.0)], axis=1)
    assert content_keep(wide[np.newaxis, :, 10:], DEFAULTS).tolist() == [True]
