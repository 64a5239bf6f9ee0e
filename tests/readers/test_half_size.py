"""Levels of half the size, decoded at that size inside JPEG."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from readers import tiffs
from readers.jpegslides import Recipe, write

from microtome_readers import TiffConfig
from microtome_readers.tiff.reader import TiffReader

RECIPES = {
    "4:2:0": Recipe(sizes=()),
    "4:4:4": Recipe(sizes=(), subsampling="444"),
    "shared tables": Recipe(sizes=(), shared=True),
    "RGB": Recipe(sizes=(), ycbcr=False),
    "RGB, shared tables": Recipe(sizes=(), ycbcr=False, shared=True),
    "240 px tiles": Recipe(sizes=(), tile=240),
}


def reader(path, **options):
    return TiffReader(path, TiffConfig(half_size=True, **options))


@pytest.mark.parametrize("kind", RECIPES)
def test_pixels_are_about_the_mean_of_four(tmp_path, kind):
    path = write(tmp_path / "a.svs", RECIPES[kind])
    slide = reader(path)
    full, half = slide.info.levels
    assert (half.width, half.height, half.downsample) == (full.width // 2, full.height // 2, 2.0)
    mean = cv2.resize(tiffs.whole(slide), (half.width, half.height), interpolation=cv2.INTER_AREA)
    off = np.abs(tiffs.whole(slide, 1).astype(int) - mean)
    # Another transform, not another picture; colours that were mistaken would be far off.
    assert off.mean() < 1.5
    assert off.max() <= 32


def test_any_box_is_a_part_of_the_level(tmp_path):
    slide = reader(write(tmp_path / "a.svs", Recipe(sizes=(), tile=112)))
    whole = tiffs.whole(slide, 1)
    for x, y in ((0, 0), (56, 56), (13, 77), (250, 150)):
        box = tiffs.read(slide, 2 * x, 2 * y, 100, 100, 1)
        assert np.array_equal(box, whole[y : y + 100, x : x + 100])


def test_levels_are_added_where_none_is_near(tmp_path):
    path = write(tmp_path / "a.svs", Recipe(size=(1600, 1200), sizes=((800, 600), (200, 150))))
    downsamples = [level.downsample for level in reader(path).info.levels]
    assert downsamples == [1, 2, 4, 8, 16]


def test_a_tile_that_is_left_out_stays_transparent(tmp_path):
    path = write(tmp_path / "a.tif", Recipe(aperio=False, sizes=()))
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        counts = list(tiff.pages[0].databytecounts)
    tiffs.set_tag(path, "TileByteCounts", [counts[0], 0, *counts[2:]])
    half = tiffs.whole(reader(path), 1)
    assert (half[:128, 128:256] == 0).all()
    assert (half[:, :128, 3] == 255).all()


def test_it_is_off_by_default_and_changes_what_the_pixels_are_worth(tmp_path):
    path = write(tmp_path / "a.svs", Recipe(sizes=()))
    plain = TiffReader(path, TiffConfig())
    assert len(plain.info.levels) == 1
    assert plain.info.exact
    assert not reader(path).info.exact


def test_other_tiles_than_jpeg_have_no_half(tmp_path):
    path = tiffs.write(tmp_path / "a.tif", tiffs.colours(), tile=(32, 32), compression="lzw")
    slide = reader(path)
    assert len(slide.info.levels) == 1
    assert slide.info.exact


def test_it_is_part_of_the_identity():
    from microtome.plugin.registry import get_registry
    from microtome.store.identity import describe

    spec = get_registry().find("reader", "tiff").spec
    assert describe(spec, TiffConfig(half_size=True))["half_size"] is True
    assert "half_size" not in describe(spec, TiffConfig())
    assert "cache_mb" not in describe(spec, TiffConfig(cache_mb=3))
