"""A slide in a notebook: the five lines, and what they promise."""

from __future__ import annotations

import numpy as np
import openslide
import pytest
from PIL import Image

import microtome
from microtome.errors import PluginError, SlideOpenError, UnknownPluginError


@pytest.fixture
def slide(synthetic):
    with microtome.open_slide(synthetic.path) as opened:
        yield opened


def test_five_lines(synthetic):
    slide = microtome.open_slide(synthetic.path)
    mask = slide.tissue()
    grid = slide.tiles(mask, size=256, magnification=20)
    tile = slide.read(grid, 0)
    features = slide.encode(grid, "handcrafted")
    slide.close()
    assert mask.array.any()
    assert tile.shape == (256, 256, 3)
    assert len(features) == len(grid) > 0
    assert np.isfinite(features).all()


def test_the_tissue_is_where_it_is(slide, synthetic):
    found = slide.tissue().array
    truth = np.asarray(
        Image.fromarray(synthetic.tissue).resize(found.shape[::-1], Image.Resampling.NEAREST)
    )
    overlap = (found & truth).sum() / (found | truth).sum()
    assert overlap > 0.8


def test_tiles_are_the_documented_recipe(slide, synthetic):
    grid = slide.tiles(size=100, magnification=10)
    pixels = slide.read(grid, range(len(grid)))
    assert pixels.shape == (len(grid), 100, 100, 3)
    with openslide.OpenSlide(synthetic.path) as wsi:
        for (x, y, w, h, level), tile in zip(grid.coords.tolist(), pixels, strict=True):
            region = wsi.read_region((x, y), level, (w, h)).convert("RGB")
            region = region.resize((100, 100), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(tile, np.asarray(region))


def test_read_keeps_the_order_asked_for(slide):
    grid = slide.tiles(size=256, magnification=20)
    both = slide.read(grid, [3, 1])
    np.testing.assert_array_equal(both[0], slide.read(grid, 3))
    np.testing.assert_array_equal(both[1], slide.read(grid, 1))
    assert slide.read(grid, []).shape == (0, 256, 256, 3)


def test_the_run_gives_the_same_features(slide, synthetic, tmp_path):
    microtome.run_slides(synthetic.path, tmp_path, tiler={"grid": {"magnification": 20}})
    features = slide.encode(slide.tiles(magnification=20, size=256))
    with microtome.open_result(tmp_path / "patches/synthetic.h5") as stored:
        np.testing.assert_array_equal(stored.features("handcrafted"), features)


def test_mpp_override_changes_the_geometry(synthetic):
    with microtome.open_slide(synthetic.path, mpp=0.5) as slide:
        assert slide.resolution.mpp == 0.5
        assert slide.resolution.magnification == 20
        geometry = slide.tiles(size=256, magnification=20).geometry
        assert geometry.size_level0 == (256, 256)


def test_a_thumbnail_keeps_the_aspect(slide):
    assert slide.thumbnail(512).size == (512, 384)


def test_names_that_do_not_exist(slide):
    with pytest.raises(UnknownPluginError, match="Did you mean 'otsu'"):
        slide.tissue("otsuu")
    with pytest.raises(PluginError, match=r"option of tiler grid named .sise"):
        slide.tiles(sise=256)
    with pytest.raises(PluginError, match="rule"):
        slide.tiles(rule="five_point")


def test_what_cannot_be_opened(tmp_path):
    path = tmp_path / "no.svs"
    path.write_bytes(b"nothing")
    with pytest.raises(SlideOpenError, match=r"no\.svs"):
        microtome.open_slide(path)


def test_an_unknown_key_of_a_run(synthetic, tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'encoder'"):
        microtome.run_slides(synthetic.path, tmp_path, encodr="handcrafted")


def test_an_unknown_key_of_the_tissue(synthetic, tmp_path):
    with pytest.raises(ValueError, match="min_region_um2"):
        microtome.run_slides(synthetic.path, tmp_path, tissue={"min_region_um": 3})
