"""Slides and masks that do not exist, for tests of tilers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from microtome.slide.types import Level, Resolution, SlideInfo, TissueMask


def slide(width, height, downsamples=(1.0,), *, mpp=0.5, magnification=20.0):
    """Describe a slide, its levels rounded down to whole pixels."""
    return SlideInfo(
        path=Path("a slide.svs"),
        reader="fake",
        levels=tuple(
            Level(width=int(width / ds), height=int(height / ds), downsample=ds)
            for ds in downsamples
        ),
        resolution=Resolution(mpp_x=mpp, mpp_y=mpp, magnification=magnification),
    )


def mask_of(array, downsample=16.0):
    """Make a mask."""
    return TissueMask(array=np.asarray(array, bool), downsample=(downsample, downsample))


def all_tissue(info, downsample=16.0):
    """Make a mask of a slide that is all tissue."""
    shape = (-(-info.height // int(downsample)), -(-info.width // int(downsample)))
    return mask_of(np.ones(shape), downsample)


def random_tissue(seed, scale, **resolution):
    """Draw a slide's size and its mask, of which one pixel is so many by so many of the slide."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(100, 400, 2).tolist()
    array = rng.random((-(-height // scale), -(-width // scale))) > 0.5
    return slide(width, height, **resolution), mask_of(array, float(scale))


def at_level0(mask, info):
    """Blow a mask up to the slide's pixels; its scale must be whole."""
    scale = int(mask.downsample[0])
    return np.repeat(np.repeat(mask.array, scale, 0), scale, 1)[: info.height, : info.width]
