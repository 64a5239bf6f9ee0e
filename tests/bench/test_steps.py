"""What the steps count and compute."""

from __future__ import annotations

import numpy as np
import pytest
from bench.encoders import TINY, WIDE, register
from bench.floors import decode

import microtome
from microtome.plugin.registry import get_registry
from microtome.slide.batch import TileBatch

GRID = {"size": 256, "magnification": 20}


@pytest.fixture
def near_free():
    pytest.importorskip("torch")
    register()
    return lambda name: get_registry().create("encoder", name)


def test_the_floor_decodes_each_jpeg_tile_once(mosaic):
    with microtome.open_slide(mosaic) as slide:
        coords = slide.tiles(**GRID).coords
    # Level 0 is read, 512 px a tile, out of JPEG tiles of 240 px.
    under = {
        (column, row)
        for x, y in coords[:, :2].tolist()
        for column in range(x // 240, (x + 511) // 240 + 1)
        for row in range(y // 240, (y + 511) // 240 + 1)
    }
    found = decode(str(mosaic), GRID, repeats=1)
    assert found["tiles"] == len(coords) > 0
    assert found["native"] == len(under)


def test_the_near_free_encoders_give_what_their_cards_say(near_free):
    colours = np.random.default_rng(0).integers(0, 256, (5, 1, 1, 3), dtype=np.uint8)
    pixels = np.broadcast_to(colours, (5, 256, 256, 3)).copy()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (colours.reshape(5, 3) / 255 - mean) / std
    tiny, wide = near_free(TINY), near_free(WIDE)
    for encoder in (tiny, wide):
        encoder.load("cpu", "fp32")
    batch = TileBatch(pixels, np.zeros((5, 5), np.int32))
    means = tiny.encode(batch).embedding.reshape(5, 3, 16)
    assert np.allclose(means, expected[..., None], atol=1e-5)
    values = wide.encode(batch).embedding
    assert values.shape == (5, wide.card.dim) == (5, 1024)
    assert np.allclose(values, expected[:, :1], atol=1e-5)


def test_flops_are_those_of_the_paper():
    pytest.importorskip("timm")
    from bench.heavy import count_flops

    # Dosovitskiy et al. (2021): ViT-B/16 has 17.6 G multiplications with sums an image.
    assert count_flops("vit_base_patch16_224", 224) == pytest.approx(2 * 17.6e9, rel=0.02)
