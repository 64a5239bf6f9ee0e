"""Regions of tiles: their lattice against brute force, their tiles against another tool's rule."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tilings
from hypothesis import given, settings
from hypothesis import strategies as st
from tilings import all_tissue, at_level0, mask_of, random_tissue

from microtome.errors import ConfigError, GeometryError
from microtome.run.planning.target import settle_target
from microtome.slide import Edge, GridConfig, Lattice, TissueRule, microtome_tilers
from microtome.slide.overlay import draw_overlay
from microtome.slide.regions import REGION, find_regions, group_tiles, view_regions
from microtome.slide.tiling import GridTiler
from microtome.slide.types import (
    SlideRef,
    SlideView,
)
from microtome.store.identity import describe

AT_40X = {"mpp": 0.25, "magnification": 40.0}
slide = partial(tilings.slide, **AT_40X)


def plan(info, mask, **options):
    return GridTiler(GridConfig(magnification=40, **options)).plan(info, mask)


def corners(coords):
    return [tuple(row) for row in coords[:, :2].tolist()]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    side=st.integers(12, 50),
    tiles=st.integers(2, 4),
    scale=st.integers(3, 19),
    origin=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    edge=st.sampled_from(Edge),
    min_tissue=st.sampled_from([0.0, 0.5, 0.55]),
)
def test_regions_are_brute_force_on_random_slides(
    seed, side, tiles, scale, origin, edge, min_tissue
):
    info, mask = random_tissue(seed, scale, **AT_40X)
    grid = plan(
        info,
        mask,
        size=side,
        region_tiles=tiles,
        origin=list(origin),
        edge=edge,
        min_tissue=min_tissue,
    )
    tissue = at_level0(mask, info)
    whole, expected = side * tiles, []
    reach = whole if edge is Edge.drop else 1
    for y in range(origin[1], info.height - reach + 1, whole):
        for x in range(origin[0], info.width - reach + 1, whole):
            share = tissue[y : y + whole, x : x + whole].sum() / whole**2
            if share > 0 and share >= min_tissue - 1e-9:
                expected.append((x, y))
    regions = find_regions(grid)
    assert corners(regions.coords) == expected
    assert regions.index.shape == (len(expected), tiles**2)
    assert len(grid) == regions.index.size == len(np.unique(regions.index))
    for (x, y), rows in zip(expected, regions.index, strict=True):
        assert corners(grid.coords[rows]) == [
            (x + column * side, y + row * side) for row in range(tiles) for column in range(tiles)
        ]
        assert set(grid.columns[REGION][rows].tolist()) == {expected.index((x, y))}
    places = [(y, x) for x, y in corners(grid.coords)]
    assert places == sorted(set(places))
    shares = [tissue[y : y + side, x : x + side].sum() / side**2 for y, x in places]
    np.testing.assert_allclose(grid.columns["tissue_fraction"], shares, atol=1e-6)


@pytest.mark.parametrize("lattice", Lattice)
@pytest.mark.parametrize("downsamples", [(1.0, 4.0), (1.0, 2.0005), (1.0,)])
def test_a_region_is_whole_tiles_of_the_level_that_is_read(downsamples, lattice):
    """The tile comes first: 100 px at 10x is read, and the region is so many of those."""
    info = slide(5003, 4001, downsamples)
    tiler = GridTiler(GridConfig(magnification=10, size=100, region_tiles=3, lattice=lattice))
    grid = tiler.plan(info, all_tissue(info))
    regions = find_regions(grid)
    read = np.array(grid.geometry.read_size)
    assert len(regions) == (5003 // 1200) * (4001 // 1200)
    assert (regions.coords[:, 2:4] == 3 * read).all()
    assert (regions.coords[:, 4] == grid.geometry.level).all()
    ds = grid.geometry.level_downsample
    at = np.rint(grid.coords[:, :2] / ds)
    assert (at + read <= (info.levels[-1].width, info.levels[-1].height)).all()
    tile = np.array(grid.geometry.size_level0)
    offsets = grid.coords[regions.index][:, :, :2] - regions.coords[:, None, :2]
    expected = np.array([(column, row) for row in range(3) for column in range(3)]) * tile
    assert np.abs(offsets - expected).max() <= 1


def test_tiles_are_those_of_another_tool_in_its_order():
    """slide2vec 7.1: sub-tiles row by row, the k-th ``k × tile_size_lv0`` from the region's corner.

    Numbers of its ``build_hierarchical_index`` for regions at (0, 0) and (1536, 0) of 3 × 3 tiles
    of 512 level-0 pixels.
    """
    info = slide(3072, 1600, (1.0, 4.0))
    tiler = GridTiler(GridConfig(magnification=20, size=256, region_tiles=3))
    grid = tiler.plan(info, all_tissue(info))
    regions = find_regions(grid)
    tiles = grid.coords[regions.index.ravel()]
    first = [0, 512, 1024] * 3
    assert corners(regions.coords) == [(0, 0), (1536, 0)]
    assert tiles[:, 0].tolist() == first + [1536 + x for x in first]
    assert tiles[:, 1].tolist() == [0, 0, 0, 512, 512, 512, 1024, 1024, 1024] * 2


def test_a_region_counts_as_a_whole():
    """An eighth of the region is tissue, all of it in one tile."""
    info = slide(400, 200)
    tissue = np.zeros((200, 400))
    tissue[:100, :50] = 1
    options = {"size": 100, "region_tiles": 2}
    kept = plan(info, mask_of(tissue, 1.0), min_tissue=0.125, **options)
    assert kept.columns["tissue_fraction"].tolist() == [0.5, 0, 0, 0]
    assert len(plan(info, mask_of(tissue, 1.0), min_tissue=0.13, **options)) == 0


def test_the_four_points_are_those_of_the_region():
    """Probes at 50 and 150 of a region of 200."""
    info = slide(400, 200)
    tissue = np.zeros((200, 400))
    tissue[45:55, 45:55] = 1  # over one probe of the first, between those of its tiles
    tissue[20:30, 220:230] = 1  # over a probe of a tile of the second alone
    options = {"size": 100, "region_tiles": 2, "rule": TissueRule.four_point}
    assert corners(find_regions(plan(info, mask_of(tissue, 1.0), **options)).coords) == [(0, 0)]


def test_a_region_that_overhangs_is_dropped_or_padded_as_a_whole():
    info = slide(500, 250)
    options = {"size": 100, "region_tiles": 2, "min_tissue": 0.0}
    dropped = plan(info, all_tissue(info), **options)
    padded = plan(info, all_tissue(info), edge=Edge.pad, **options)
    assert corners(find_regions(dropped).coords) == [(0, 0), (200, 0)]
    assert corners(find_regions(padded).coords)[2:] == [
        (400, 0),
        (0, 200),
        (200, 200),
        (400, 200),
    ]
    assert corners(padded.coords)[-1] == (500, 300)
    assert padded.columns["tissue_fraction"][-1] == 0


def test_no_region_on_a_slide_without_tissue():
    info = slide(1000, 600)
    regions = find_regions(plan(info, mask_of(np.zeros((38, 63))), size=50, region_tiles=6))
    assert regions.index.shape == (0, 36)
    assert regions.coords.shape == (0, 5)
    assert regions.index.dtype == regions.coords.dtype == np.int32
    assert len(regions) == 0
    features = np.zeros((0, 7), np.float32)
    assert group_tiles(features, regions.index).shape == (0, 36, 7)
    view = view_regions(features, regions.index)
    assert view is not None
    assert view.shape == (0, 0, 6, 6, 7)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"region_tiles": 1}, "tiler.region_tiles is 1; give 2 or more"),
        ({"region_tiles": 2, "step": 128}, "tiler.step=128 is not tiler.size=256"),
        ({"region_size": 512}, "tiler.region_size=512 does not say how many tiles"),
        (
            {"region_tiles": 3, "region_size": 700},
            "tiler.region_size=700 is not tiler.size=256 × tiler.region_tiles=3, which is 768",
        ),
    ],
    ids=str,
)
def test_regions_that_are_no_whole_tiles_are_refused(options, told):
    with pytest.raises(ConfigError) as refused:
        GridTiler(GridConfig(**options))
    assert told in str(refused.value)


def test_a_region_size_that_fits_changes_nothing():
    (spec,) = microtome_tilers()
    config = GridConfig(region_tiles=3, region_size=768)
    GridTiler(config)
    assert describe(spec, config) == describe(spec, GridConfig(region_tiles=3))


def test_the_size_of_a_region_alone_gives_that_of_its_tiles():
    settled, notes = settle_target(GridConfig(region_tiles=6, region_size=1344), {})
    assert settled.size == 224
    assert notes == ["Tiles are 224 px at 20x in regions of 6 × 6: the resolution is the default."]
    unfitting, _ = settle_target(GridConfig(region_tiles=6, region_size=1000), {})
    with pytest.raises(ConfigError, match=r"tiler\.region_size=1000 is not tiler\.size=256"):
        GridTiler(unfitting)


def test_what_lost_a_tile_is_no_grid_of_regions():
    info = slide(400, 400)
    grid = plan(info, all_tissue(info), size=100, region_tiles=2)
    fewer = replace(
        grid, coords=grid.coords[1:], columns={k: v[1:] for k, v in grid.columns.items()}
    )
    with pytest.raises(GeometryError, match=r"1 of 4 regions do not have 2 × 2 tiles.*has 3"):
        find_regions(fewer)
    with pytest.raises(GeometryError, match=r"tiler\.region_tiles=6"):
        find_regions(plan(info, all_tissue(info), size=100))


@pytest.mark.parametrize("shape", [(3, 1), (2, 3), (1, 4)], ids=str)
def test_a_rectangle_of_regions_is_a_view_of_the_tiles(shape):
    down, across = shape
    info = slide(200 * across, 200 * down)
    grid = plan(info, all_tissue(info), size=50, region_tiles=4)
    index = find_regions(grid).index
    features = np.random.default_rng(0).random((len(grid), 7), np.float32)
    by_hand = np.stack([features[rows] for rows in index])
    view = view_regions(features, index)
    assert view is not None
    assert view.shape == (down, across, 4, 4, 7)
    assert np.shares_memory(view, features)
    np.testing.assert_array_equal(view.reshape(by_hand.shape), by_hand)
    grouped = group_tiles(features, index)
    np.testing.assert_array_equal(grouped, by_hand)
    # Three axes reach regions one below the other only.
    assert np.shares_memory(grouped, features) == (across == 1)


def test_ragged_regions_are_gathered():
    info = slide(600, 600)
    tissue = np.kron([[1, 1, 0], [0, 1, 0], [1, 1, 1]], np.ones((200, 200)))
    grid = plan(info, mask_of(tissue, 1.0), size=100, region_tiles=2)
    index = find_regions(grid).index
    rows = np.arange(len(grid))
    assert view_regions(rows, index) is None
    grouped = group_tiles(rows, index)
    assert grouped.tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 10, 11],
        [12, 13, 18, 19],
        [14, 15, 20, 21],
        [16, 17, 22, 23],
    ]


def test_strips_of_one_length_are_a_view_whatever_lies_between_them():
    info = slide(600, 400)
    tissue = np.kron([[1, 0, 1], [1, 1, 0]], np.ones((200, 200)))
    grid = plan(info, mask_of(tissue, 1.0), size=100, region_tiles=2)
    index = find_regions(grid).index
    rows = np.arange(len(grid))
    view = view_regions(rows, index)
    assert view is not None
    assert np.shares_memory(view, rows)
    np.testing.assert_array_equal(view.reshape(index.shape), rows[index])


def test_a_part_of_the_regions_is_a_view_too():
    info = slide(600, 600)
    index = find_regions(plan(info, all_tissue(info), size=100, region_tiles=2)).index
    rows = np.arange(36)
    for part in (index[3:], index[:6], index[4:5]):
        view = view_regions(rows, part)
        assert view is None or np.array_equal(view.reshape(part.shape), rows[part])
        np.testing.assert_array_equal(group_tiles(rows, part), rows[part])


def test_the_grid_overlay_draws_regions_over_tiles():
    info = slide(400, 400)
    view = SlideView(
        slide=SlideRef(path=info.path, slide_id="a"),
        info=info,
        image=np.full((40, 40, 3), 250, np.uint8),
        covered=None,
        downsample=(10.0, 10.0),
        mpp=None,
    )
    grid = plan(info, all_tissue(info), size=100, region_tiles=2)
    drawn = draw_overlay("grid", view, mask=all_tissue(info), grid=grid)
    plain = draw_overlay(
        "grid",
        view,
        mask=all_tissue(info),
        grid=replace(grid, region_tiles=None),
    )
    tile_line, region_line = drawn[5, 10], drawn[5, 20]
    assert tile_line.tolist() == plain[5, 10].tolist() == plain[5, 20].tolist()
    assert region_line.tolist() != tile_line.tolist()
    changed = (drawn != plain).any(axis=2)
    assert not changed[1:20, 1:20].any()
    assert changed[0].all()
    assert changed[:, 20].all()
