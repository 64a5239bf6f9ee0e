"""The grid tiler, against brute force on small slides and against another tool's tiles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tilings import all_tissue, at_level0, mask_of, random_tissue, slide

from microtome.errors import ConfigError, GeometryError
from microtome.slide import Edge, GridConfig, Lattice, Resample, TissueRule, microtome_tilers
from microtome.slide.geometry import slide_to_level
from microtome.slide.tiling import GridTiler
from microtome.slide.types import Level, Resolution, SlideInfo


def plan(info, mask, **options):
    return GridTiler(GridConfig(**options)).plan(info, mask)


def places(grid):
    return [tuple(row) for row in grid.coords[:, :2].tolist()]


def test_the_hook_names_a_plugin_that_loads():
    (spec,) = microtome_tilers()
    assert (spec.name, spec.config) == ("grid", GridConfig)
    assert spec.target == f"{GridTiler.__module__}:{GridTiler.__name__}"


def test_listing_the_tiler_imports_nothing_heavy():
    code = (
        "import sys; from microtome.slide import microtome_tilers; list(microtome_tilers());"
        "print(sorted({'numpy', 'cv2', 'PIL', 'torch'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_options_are_ones_that_a_configuration_can_hold():
    words = ["rule=four_point", "edge=pad", "resample=area", "origin=[64,0]", "mpp=0.5", "size=224"]
    node = OmegaConf.merge(OmegaConf.structured(GridConfig), OmegaConf.from_dotlist(words))
    config = OmegaConf.to_object(node)
    assert config == GridConfig(
        rule=TissueRule.four_point,
        edge=Edge.pad,
        resample=Resample.area,
        origin=[64, 0],
        mpp=0.5,
        size=224,
    )
    assert GridTiler(config).target.resample == "area"


def test_256_px_at_20x_where_nothing_is_asked():
    info = slide(1000, 600)
    grid = GridTiler().plan(info, all_tissue(info))
    assert grid.geometry.target_magnification == 20
    assert places(grid) == [(0, 0), (256, 0), (512, 0), (0, 256), (256, 256), (512, 256)]
    assert grid.coords.dtype == np.int32
    assert grid.coords[:, 2:].tolist() == [[256, 256, 0]] * 6
    fractions = grid.columns["tissue_fraction"]
    assert fractions.dtype == np.float32
    assert (fractions == 1).all()


def test_pad_covers_the_slide_and_counts_only_what_is_there():
    info = slide(600, 256)
    grid = plan(info, all_tissue(info), edge=Edge.pad, min_tissue=0.0)
    assert places(grid) == [(0, 0), (256, 0), (512, 0)]
    assert grid.columns["tissue_fraction"][-1] == pytest.approx((600 - 512) / 256)


def test_no_tissue_is_an_empty_grid():
    grid = plan(slide(1000, 600), mask_of(np.zeros((38, 63))), min_tissue=0.0)
    assert grid.coords.shape == (0, 5)
    assert grid.columns["tissue_fraction"].shape == (0,)


def test_a_slide_smaller_than_a_tile():
    info = slide(200, 100)
    assert len(plan(info, all_tissue(info))) == 0
    assert places(plan(info, all_tissue(info), edge=Edge.pad, min_tissue=0.0)) == [(0, 0)]


def test_min_tissue_is_a_share_that_is_enough():
    """Half of each tile is tissue, to the pixel."""
    array = np.zeros((10, 10))
    array[:, ::2] = 1
    info = slide(1000, 1000)
    half = {"size": 200, "min_tissue": 0.5}
    assert len(plan(info, mask_of(array, 100.0), **half)) == 25
    assert len(plan(info, mask_of(array, 100.0), **half | {"min_tissue": 0.51})) == 0


@pytest.mark.parametrize("downsample", [7.0, 16.0, 37.3])
def test_whole_tissue_is_a_whole_share(downsample):
    info = slide(20_000, 9_000)
    mask = mask_of(np.ones((2000, 4000)), downsample)
    inside = plan(info, mask, size=300, min_tissue=1.0)
    covered = min(20_000, 4000 * downsample), min(9_000, 2000 * downsample)
    assert len(inside) == int(covered[0] // 300) * int(covered[1] // 300)


def test_origin_starts_the_lattice_at_a_pixel_of_the_level():
    info = slide(4096, 4096, (1.0, 4.0))
    grid = plan(info, all_tissue(info), magnification=5, origin=[66, 5], edge=Edge.pad)
    assert grid.geometry.level == 1
    assert places(grid)[:2] == [(64, 4), (1088, 4)]


def test_rows_lie_on_pixels_of_a_level_with_an_odd_downsample():
    """TCGA-CR-7395: levels 4443 and 2221 px wide, downsample 2.0005."""
    ds = (4443 / 2221 + 3567 / 1783) / 2
    info = SlideInfo(
        path=Path("tcga.svs"),
        reader="fake",
        levels=(
            Level(width=4443, height=3567, downsample=1.0),
            Level(width=2221, height=1783, downsample=ds),
        ),
        resolution=Resolution(mpp_x=0.25, mpp_y=0.25, magnification=40.0),
    )
    grid = plan(info, all_tissue(info), size=256, magnification=20)
    assert grid.geometry.level == 1
    assert grid.geometry.read_size == (256, 256)
    at = slide_to_level(grid.coords[:, :2], info.levels[1])
    assert (at % 256 == 0).all()
    assert len(grid) == (2221 // 256) * (1783 // 256)


def test_too_many_places_are_refused_before_they_are_made():
    info = slide(100_000, 100_000)
    with pytest.raises(GeometryError, match=r"Raise tiler\.step"):
        plan(info, all_tissue(info, 1000.0), step=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_tissue": 1.2}, "min_tissue"),
        ({"min_tissue": -0.1}, "min_tissue"),
        ({"origin": [0]}, "origin"),
        ({"origin": [-1, 0]}, "origin"),
        ({"magnification": 20, "mpp": 0.5}, "one of them"),
        ({"level": 1, "mpp": 0.5}, "one of them"),
        ({"level": 0, "magnification": 20}, "one of them"),
        ({"level": -1}, r"tiler\.level is -1"),
        ({"level": 1, "lattice": Lattice.slide}, r"Give tiler\.lattice=level"),
        ({"step": 0}, "step"),
    ],
)
def test_options_that_make_no_grid_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        GridTiler(GridConfig(**options))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    side=st.integers(20, 90),
    step=st.integers(10, 120),
    scale=st.integers(3, 19),
    origin=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    edge=st.sampled_from(Edge),
    min_tissue=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_the_grid_is_brute_force_on_random_slides(
    seed, side, step, scale, origin, edge, min_tissue
):
    info, mask = random_tissue(seed, scale)
    grid = plan(
        info, mask, size=side, step=step, origin=list(origin), edge=edge, min_tissue=min_tissue
    )
    reach = side if edge is Edge.drop else 1
    tissue, expected = at_level0(mask, info), {}
    for y in range(origin[1], info.height - reach + 1, step):
        for x in range(origin[0], info.width - reach + 1, step):
            share = tissue[y : y + side, x : x + side].sum() / side**2
            if share > 0 and share >= min_tissue - 1e-9:
                expected[x, y] = share
    assert places(grid) == list(expected)
    np.testing.assert_allclose(grid.columns["tissue_fraction"], list(expected.values()), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    mpp=st.floats(0.1, 1.0),
    ratio=st.floats(1.0, 12.0),
    downsamples=st.lists(st.floats(1.5, 16.0), max_size=3).map(lambda more: (1.0, *sorted(more))),
    size=st.integers(32, 256),
    step=st.integers(16, 300),
    edge=st.sampled_from(Edge),
)
def test_rows_are_sorted_unique_and_inside(mpp, ratio, downsamples, size, step, edge):
    info = slide(5003, 4001, downsamples, mpp=mpp)
    grid = plan(info, all_tissue(info), size=size, step=step, mpp=mpp * ratio, edge=edge)
    geometry, level = grid.geometry, info.levels[grid.geometry.level]
    rows = [(y, x) for x, y in places(grid)]
    assert rows == sorted(set(rows))
    at = slide_to_level(grid.coords[:, :2], level)
    extent = np.array([level.width, level.height])
    assert (at >= 0).all()
    assert (at < extent).all()
    assert (at % geometry.pitch == 0).all()
    if edge is Edge.drop:
        assert (at + geometry.read_size <= extent).all()
    assert (grid.coords[:, 2:] == (*geometry.read_size, geometry.level)).all()


def test_four_point_rule():
    """A tile of 100 on tissue of 100: probes at 25 and 75 along each axis."""
    info = slide(400, 100)
    four = {"size": 100, "rule": TissueRule.four_point}
    tissue = np.zeros((100, 400))
    tissue[:, 0:20] = 1  # between the side and the probes of the first tile
    tissue[:, 120:130] = 1  # over the left probes of the second
    tissue[70:80, 270:280] = 1  # over one probe of the third
    tissue[45:55, 345:355] = 1  # over the centre of the fourth alone
    assert places(plan(info, mask_of(tissue, 1.0), **four)) == [(100, 0), (200, 0)]


def test_four_point_rule_drops_a_centre_in_a_hole_but_not_in_open_background():
    info = slide(200, 100)
    ring = np.ones((100, 200))
    ring[40:60, 40:60] = 0  # enclosed
    ring[40:100, 140:160] = 0  # open below
    grid = plan(info, mask_of(ring, 1.0), size=100, rule=TissueRule.four_point)
    assert places(grid) == [(100, 0)]
    assert grid.columns["tissue_fraction"][0] == pytest.approx(1 - 60 * 20 / 100**2)


def test_default_share_is_the_four_point_rule_along_a_straight_edge():
    """Tissue that ends at a quarter of a tile is where both rules turn."""
    info = slide(100, 100)
    for columns, kept in ((24, 0), (26, 1)):
        tissue = np.zeros((100, 100))
        tissue[:, :columns] = 1
        mask = mask_of(tissue, 1.0)
        assert len(plan(info, mask, size=100)) == kept
        assert len(plan(info, mask, size=100, rule=TissueRule.four_point)) == kept


def test_hs2p_tiles_of_a_prostate(shared_data):
    """hs2p 6.1 tiled this slide by a 64 times smaller mask, from its own origin.

    The file gives 224 px at 0.5 µm/px, 10 % tissue, on 0.252 µm/px. The slide is not here; the
    mask has one pixel for 16 by 16 of its.
    """
    import cv2

    array = cv2.imread(str(shared_data / "tissue/pairs/hs2p_prostate_mask.tif"), -1) > 0
    info = slide(array.shape[1] * 16, array.shape[0] * 16, mpp=0.252)
    options = {"size": 224, "mpp": 0.5, "origin": [64, 0], "edge": Edge.pad}
    grid = plan(info, mask_of(array), min_tissue=0.1, **options)
    anything = plan(info, mask_of(array), min_tissue=0.0, **options)
    with np.load(shared_data / "peers/hs2p/test-wsi.coordinates.npz") as peer:
        theirs = set(zip(peer["x"].tolist(), peer["y"].tolist(), strict=True))
    assert grid.geometry.pitch_level0 == (444.0, 444.0)
    assert grid.geometry.effective_mpp == pytest.approx((0.4995, 0.4995))
    assert len(theirs) == 459
    assert len(theirs & set(places(grid))) >= 447
    # What only they have is on the mask's edge: some tissue, less than a tenth of the tile.
    shares = dict(zip(places(anything), anything.columns["tissue_fraction"].tolist(), strict=True))
    assert all(0 < shares[place] < 0.1 for place in theirs - set(places(grid)))
    # What only we have is never within tissue: the rims and specks that a coarser mask loses.
    assert all(0.1 <= shares[place] < 0.6 for place in set(places(grid)) - theirs)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"min_hole_px": -1}, "tiler.min_hole_px is -1"),
        ({"max_holes": -1}, "tiler.max_holes is -1"),
        ({"min_region_fraction": float("inf")}, "tiler.min_region_fraction is inf"),
        ({"level_tolerance": -0.1}, "tiler.level_tolerance is -0.1"),
    ],
    ids=str,
)
def test_limits_below_nothing_are_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        GridTiler(GridConfig(**options))


def test_the_lattice_of_the_slide_has_whole_strides_at_level_0():
    """A level 2.0005 times smaller: its own lattice drifts, the slide's does not."""
    info = slide(4096, 4096, (1.0, 2.0005), mpp=0.25, magnification=40.0)
    options = {"magnification": 20, "max_upsample": 1.0, "level_tolerance": 0.01}
    drifting, whole = (
        plan(info, all_tissue(info), lattice=lattice, **options) for lattice in Lattice
    )
    assert drifting.geometry.level == whole.geometry.level == 1
    assert drifting.coords[:, 0].max() == 3073
    assert whole.coords[:, 0].max() == 3584
    assert (whole.coords[:, :2] % 512 == 0).all()
    assert whole.geometry.size_level0 == whole.geometry.pitch_level0 == (512, 512)
    assert whole.geometry.read_size == whole.geometry.pitch == (256, 256)


def test_without_tolerance_such_a_level_is_too_coarse():
    info = slide(4096, 4096, (1.0, 2.0005), mpp=0.25, magnification=40.0)
    strict = {"magnification": 20, "max_upsample": 1.0}
    assert plan(info, all_tissue(info), **strict).geometry.level == 0
    assert plan(info, all_tissue(info), level_tolerance=0.0005, **strict).geometry.level == 0
    assert plan(info, all_tissue(info), level_tolerance=0.00051, **strict).geometry.level == 1
