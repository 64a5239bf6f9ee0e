"""Tiles of a level's own pixels: tiler.level."""

from __future__ import annotations

import numpy as np
import openslide
import pytest

import microtome
from microtome.errors import ConfigError, GeometryError
from microtome.slide import Edge, GridConfig
from microtome.slide.geometry import TileTarget, plan_geometry
from microtome.slide.tiling import GridTiler
from microtome.testing import make_slide
from microtome.testing.samples import make_info, make_mask

NO_MPP = {"record_mpp": False, "magnification": None, "aperio": False}


def plan(levels, **target):
    return plan_geometry(make_info(levels=levels), TileTarget(**target))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_sizes_are_pixels_of_the_level_where_downsamples_are_whole(index):
    geometry = plan((1, 4, 16), size=200, step=150, target_level=index)
    ds = (1, 4, 16)[index]
    assert (geometry.level, geometry.target_level, geometry.level_downsample) == (index, index, ds)
    assert geometry.read_size == (200, 200)
    assert geometry.pitch == (150, 150)
    assert geometry.size_level0 == (200 * ds, 200 * ds)
    assert geometry.pitch_level0 == (150 * ds, 150 * ds)
    assert not geometry.resampled
    assert (geometry.target_mpp, geometry.target_magnification) == (None, None)
    mpp = make_info(levels=(1, 4, 16)).resolution.mpp
    assert geometry.effective_mpp == pytest.approx((mpp * ds, mpp * ds))


def test_sizes_are_pixels_of_the_level_where_downsamples_are_not_whole():
    info = make_info(levels=(1, 2.0005, 7.998))
    grid = GridTiler(GridConfig(size=224, level=2)).plan(info, make_mask(info))
    assert grid.geometry.read_size == (224, 224)
    assert grid.geometry.size_level0 == pytest.approx((224 * 7.998, 224 * 7.998))
    assert (grid.coords[:, 2:] == (224, 224, 2)).all()
    for axis in (0, 1):  # every tile begins on a multiple of its side, in pixels of the level
        at_level = np.rint(grid.coords[:, axis] / 7.998)
        assert (at_level % 224 == 0).all()
        np.testing.assert_array_equal(np.rint(at_level * 7.998), grid.coords[:, axis])


def test_a_level_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(GeometryError, match=r"no level 3, its levels are 0 \(\d+ × \d+ px\), 1 \("):
        plan((1, 4, 16), size=256, target_level=3)
    with pytest.raises(GeometryError, match=r"no level 1, its only one is 0 \("):
        plan((1,), size=256, target_level=1)


def test_the_api_reads_the_level_as_it_is(tmp_path):
    """No µm per pixel, no magnification: a level needs neither."""
    path = make_slide(tmp_path / "a.tif", size=(2048, 1536), levels=(1, 2, 4), **NO_MPP).path
    with microtome.open_slide(path) as slide, openslide.OpenSlide(path) as wsi:
        assert (slide.resolution.mpp, slide.resolution.magnification) == (None, None)
        mask = make_mask(slide.info)
        grid = slide.tiles(mask, level=2, size=128, min_tissue=0)
        assert len(grid) == (2048 // 512) * (1536 // 512)
        assert grid.geometry.effective_mpp is None
        whole = np.asarray(wsi.read_region((0, 0), 2, wsi.level_dimensions[2]).convert("RGB"))
        for (x, y, w, h, _), tile in zip(
            grid.coords.tolist(), slide.read(grid, range(len(grid))), strict=True
        ):
            np.testing.assert_array_equal(tile, whole[y // 4 :, x // 4 :][:h, :w])
        with pytest.raises(ConfigError, match="one of them"):
            slide.tiles(mask, level=2, magnification=20)
        with pytest.raises(GeometryError, match="no level 7"):
            slide.tiles(mask, level=7)


@pytest.mark.parametrize(
    ("name", "levels"), [("tcga-cr-7395-01a-01-ts1.svs", 2), ("fluorescence_dapi.ndpi", 7)]
)
def test_levels_of_real_slides(shared_data, name, levels):
    """One has a fractional downsample and no µm per pixel, the other many levels."""
    path = shared_data / "slides" / name
    with microtome.open_slide(path, reader="openslide") as slide, openslide.OpenSlide(path) as wsi:
        mask = slide.tissue("none")
        level = levels - 1
        grid = slide.tiles(mask, level=level, size=48, min_tissue=0, edge=Edge.drop)
        width, height = wsi.level_dimensions[level]
        assert len(grid) == (width // 48) * (height // 48)
        last = len(grid) - 1
        for row in (0, last):
            x, y, *size = grid.coords[row].tolist()
            region = wsi.read_region((x, y), size[2], (size[0], size[1])).convert("RGB")
            np.testing.assert_array_equal(slide.read(grid, row), np.asarray(region))
        with pytest.raises(GeometryError, match=rf"no level {levels}, its levels are 0 \("):
            slide.tiles(mask, level=levels)
