"""Tiles are brought to size by recipes that Pillow and numpy make again."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from microtome.errors import ConfigError
from microtome.slide import resampling
from microtome.slide.resampling import resample_tiles

RNG = np.random.default_rng(7)


def noise(height, width, channels=3, high=256):
    return RNG.integers(0, high, (height, width, channels), dtype=np.uint8)


def pil_resize(tiles, size):
    return np.stack(
        [np.asarray(Image.fromarray(t).resize((size, size), Image.BILINEAR)) for t in tiles]
    )


@pytest.mark.parametrize("high", [256, 2, 3])
@pytest.mark.parametrize(
    ("read", "size"),
    [
        *((512, 256), (336, 224), (672, 224), (896, 224), (448, 224), (560, 224), (1344, 224)),
        *((444, 224), (228, 224), (213, 224), (112, 224), (3, 2), (2, 1), (3, 1), (255, 85)),
    ],
)
def test_resampling_is_pillows_with_torch_loaded(read, size, high):
    """Few grey levels make ties, where two kernels that differ at all would differ."""
    pytest.importorskip("torch")
    tiles = noise(2 * read, read, 3, high).reshape(2, read, read, 3)
    resampled = resample_tiles(tiles, size)
    np.testing.assert_array_equal(resampled, pil_resize(tiles, size))
    assert resampled.flags.c_contiguous


def test_torch_is_used_at_the_ratio_of_40x_to_20x(monkeypatch):
    pytest.importorskip("torch")
    called = []
    kernel = resampling._torch_bilinear
    monkeypatch.setattr(resampling, "_torch_bilinear", lambda *a: called.append(a) or kernel(*a))
    tiles = noise(64, 64)[np.newaxis]
    tiles.flags.writeable = False
    resample_tiles(tiles, 32)
    resample_tiles(tiles, 25)
    assert [out.shape[1] for _, out in called] == [32]


def test_resampling_does_not_import_torch():
    code = (
        "import sys, numpy as np; from microtome.slide.resampling import resample_tiles;"
        "resample_tiles(np.zeros((1, 8, 8, 3), np.uint8), 4); print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_regions_that_are_not_square_become_so():
    tiles = noise(2 * 30, 40).reshape(2, 30, 40, 3)
    np.testing.assert_array_equal(resample_tiles(tiles, 20), pil_resize(tiles, 20))


def test_resampling_leaves_what_fits():
    tiles = noise(16, 16)[np.newaxis]
    assert resample_tiles(tiles, 16) is tiles
    assert resample_tiles(tiles[:0], 8).shape == (0, 8, 8, 3)


def test_area_is_the_mean():
    tiles = noise(2 * 96, 96).reshape(2, 96, 96, 3)
    mean = tiles.reshape(2, 32, 3, 32, 3, 3).mean(axis=(2, 4))
    assert np.abs(resample_tiles(tiles, 32, "area") - mean).max() <= 0.5 + 1e-6


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ConfigError, match="pil-bilinear, area"):
        resample_tiles(noise(8, 8)[np.newaxis], 4, "nearest")


@pytest.mark.parametrize(("side", "size"), [(64, 32), (96, 32), (80, 32), (50, 32)])
def test_area_looks_at_one_tile_at_a_time(side, size):
    tiles = np.stack([noise(side, side), 255 - noise(side, side), noise(side, side) // 2])
    together = resample_tiles(tiles, size, "area")
    for tile, one in zip(tiles, together, strict=True):
        np.testing.assert_array_equal(resample_tiles(tile[np.newaxis], size, "area")[0], one)
