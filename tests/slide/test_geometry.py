"""The sizes of tiles in every frame, against the rules restated."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.errors import ConfigError, GeometryError, ResolutionError
from microtome.slide.geometry import TileTarget, level_to_slide, plan_geometry, slide_to_level
from microtome.slide.types import Level, Resolution, SlideInfo


def slide(
    downsamples=(1.0,), *, mpp=0.25, magnification=40.0, size=(100_000, 80_000), **resolution
):
    mpp_x, mpp_y = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    return SlideInfo(
        path=Path("a slide.svs"),
        reader="fake",
        levels=tuple(
            Level(width=int(size[0] / ds), height=int(size[1] / ds), downsample=ds)
            for ds in downsamples
        ),
        resolution=Resolution(mpp_x=mpp_x, mpp_y=mpp_y, magnification=magnification, **resolution),
    )


def plan(info, **target):
    return plan_geometry(info, TileTarget(**target))


def test_physical_target_of_the_requirements():
    """0.265 µm/px: 512 px at 0.5 µm/px are 512 x 0.5 / 0.265 = 966.04 px at level 0."""
    geometry = plan(slide(mpp=0.265), size=512, mpp=0.5)
    assert geometry.read_size == (966, 966)
    assert geometry.size_level0 == (966.0, 966.0)
    assert geometry.effective_mpp == pytest.approx((966 * 0.265 / 512,) * 2)
    assert geometry.target_mpp == 0.5
    assert geometry.target_magnification is None
    assert geometry.resampled


def test_nominal_target_ignores_mpp():
    """40x to 20x is a half, even where 0.265 µm/px would make it 0.53."""
    geometry = plan(slide(mpp=0.265), size=256, magnification=20)
    assert geometry.read_size == (512, 512)
    assert geometry.effective_mpp == pytest.approx((0.53, 0.53))


def test_nominal_target_without_mpp():
    geometry = plan(slide(mpp=None), size=256, magnification=20)
    assert geometry.read_size == (512, 512)
    assert geometry.effective_mpp is None


@pytest.mark.parametrize(
    ("downsamples", "level", "read"),
    [((1.0, 4.0), 0, 512), ((1.0, 2.0, 4.0), 1, 256), ((1.0, 1.9, 4.0), 1, 269)],
)
def test_level_is_the_coarsest_that_is_fine_enough(downsamples, level, read):
    geometry = plan(slide(downsamples), size=256, magnification=20)
    assert (geometry.level, geometry.read_size) == (level, (read, read))
    assert geometry.level_downsample == downsamples[level]
    assert geometry.resampled == (read != 256)


@pytest.mark.parametrize(("max_upsample", "level"), [(1.05, 1), (1.0, 0)])
def test_max_upsample_admits_a_level_one_percent_too_coarse(max_upsample, level):
    info = slide((1.0, 4.0), mpp=0.252)
    assert plan(info, size=256, mpp=1.0, max_upsample=max_upsample).level == level


def test_float_noise_does_not_cost_a_level():
    info = slide((1.0, 4.0), mpp=0.1 + 0.2)
    assert plan(info, size=256, mpp=1.2, max_upsample=1.0).level == 1


def test_pixels_that_are_not_square_become_square():
    """0.25 by 0.26 µm: each axis by its own for mpp; the coarser keeps a nominal ratio."""
    info = slide(mpp=(0.25, 0.26))
    assert plan(info, size=256, mpp=0.5).read_size == (512, 492)
    assert plan(info, size=256, magnification=20).read_size == (532, 512)
    assert plan(info, size=256, magnification=40).read_size == (266, 256)


def test_overlap_is_a_pitch():
    geometry = plan(slide((1.0, 4.0)), size=256, step=192, magnification=10)
    assert (geometry.level, geometry.read_size, geometry.pitch) == (1, (256, 256), (192, 192))
    assert geometry.size_level0 == (1024.0, 1024.0)
    assert geometry.pitch_level0 == (768.0, 768.0)


def test_finer_than_level_0_is_refused_with_the_option():
    with pytest.raises(GeometryError, match=r"a slide\.svs.*2 times finer.*max_upsample=2\.$"):
        plan(slide(mpp=0.5, magnification=20.0), size=256, magnification=40)
    allowed = plan(slide(mpp=0.5, magnification=20.0), size=256, magnification=40, max_upsample=2)
    assert allowed.read_size == (128, 128)


def test_a_tile_below_one_pixel_is_refused():
    with pytest.raises(GeometryError, match="less than one pixel"):
        plan(slide(), size=1, magnification=100, max_upsample=4)


@pytest.mark.parametrize("target", [{"mpp": 0.5}, {"magnification": 20}])
def test_unknown_resolution_names_the_way_out(target):
    with pytest.raises(ResolutionError, match=r"mpp=0\.25 or mpp_csv=FILE"):
        plan(slide(mpp=None, magnification=None), size=256, **target)


def test_assumed_mpp_serves_a_nominal_target_only():
    info = slide(assumed=True, mpp_source="assumed from aperio.AppMag")
    with pytest.raises(ResolutionError, match=r"assumed from aperio\.AppMag.*mpp="):
        plan(info, size=256, mpp=0.5)
    assert plan(info, size=256, magnification=20).read_size == (512, 512)


@pytest.mark.parametrize(
    "wrong",
    [
        {"magnification": None},
        {"mpp": 0.5},
        {"size": 0},
        {"step": 0},
        {"magnification": 0.0},
        {"magnification": math.inf},
        {"magnification": math.nan},
        {"max_upsample": 0.9},
        {"edge": "wrap"},
        {"resample": "nearest"},
    ],
)
def test_a_target_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match="tiler"):
        TileTarget(**{"size": 256, "magnification": 20.0} | wrong)


mpps = st.floats(0.1, 2.0)
downsamples = st.lists(st.floats(1.001, 64.0), max_size=5).map(lambda more: (1.0, *sorted(more)))
sizes = st.integers(16, 2048)


@given(
    mpp=st.tuples(mpps, st.floats(0.9, 1.1)).map(lambda pair: (pair[0], pair[0] * pair[1])),
    ratio=st.floats(1.2, 100.0),
    levels=downsamples,
    size=sizes,
    step=sizes,
    max_upsample=st.floats(1.0, 1.5),
)
def test_rules_hold_everywhere(mpp, ratio, levels, size, step, max_upsample):
    target = mpp[0] * ratio
    geometry = plan(
        slide(levels, mpp=mpp), size=size, step=step, mpp=target, max_upsample=max_upsample
    )
    ds = geometry.level_downsample
    ratios = (target / mpp[0], target / mpp[1])
    slack = 1 + 1e-8
    assert ds <= min(ratios) * max_upsample * slack
    coarser = [level for level in levels if level > ds]
    assert all(level > min(ratios) * max_upsample / slack for level in coarser)
    for axis in (0, 1):
        read, pitch = geometry.read_size[axis], geometry.pitch[axis]
        assert abs(read * ds - size * ratios[axis]) <= ds / 2 * slack
        assert abs(pitch * ds - step * ratios[axis]) <= ds / 2 * slack
        assert geometry.size_level0[axis] == read * ds
        assert geometry.pitch_level0[axis] == pitch * ds
        assert abs(geometry.effective_mpp[axis] - target) <= mpp[axis] * ds / size / 2 * slack


@given(magnification=st.floats(1.0, 40.0), levels=downsamples, size=sizes)
def test_without_overlap_the_pitch_is_the_size(magnification, levels, size):
    geometry = plan(slide(levels), size=size, magnification=magnification)
    assert geometry.step == size
    assert geometry.pitch == geometry.read_size
    assert geometry.pitch_level0 == geometry.size_level0


@given(ds=st.floats(1.0, 512.0), first=st.integers(0, 10**6))
def test_level_pixels_have_names_at_level_0(ds, first):
    level = Level(width=1, height=1, downsample=ds)
    pixels = np.arange(first, first + 50)
    points = level_to_slide(pixels, level)
    np.testing.assert_array_equal(slide_to_level(points, level), pixels)
    assert (np.diff(points) >= 1).all()
    assert (np.abs(points - pixels * ds) <= 0.5).all()
