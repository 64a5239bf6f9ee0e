"""Finds marks of red, green and blue pens by their dyes' hue and their strength.

A pen is found by pixels that no stain of tissue reaches (the seeds), then followed into its
thin and dry parts, where hue alone tells it from stain. What lies inside tissue is left: ink
over tissue is still tissue, and blood is as red as ink. Black ink needs no search, for the
evidence is blind to grey.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from microtome_segmenters import morphology
from microtome_segmenters.glass import Floats, Mask
from microtome_segmenters.stain import Stain, optical_density


def find_pen(stain: Stain, tissue: Mask, frame: Mask) -> Mask:
    """Mark pen that lies off the tissue, with a margin for its blurred edge.

    Args:
        stain: The image seen through its glass.
        tissue: (h, w) True on anything stained, pens included.
        frame: (h, w) True where there is no slide.
    """
    side = max(tissue.shape)
    pen = np.zeros(tissue.shape, bool)
    for weak, seeds in _inks(stain, tissue & ~frame):
        strong = morphology.drop_regions(
            morphology.opened(seeds & ~frame, 1), max(9.0, 4e-5 * seeds.size)
        )
        if strong.any():
            reach = max(1, round(0.008 * side))
            spread = morphology.dilate(weak | strong, reach)
            pen |= (weak | strong) & morphology.touching(spread, strong, 0.06)
    if not pen.any():
        return pen
    inside = _inside_tissue(tissue & ~morphology.dilate(pen, 1), side)
    off = morphology.drop_regions(morphology.close(pen & ~inside, 1), 3e-5 * pen.size)
    return morphology.dilate(off, max(1, round(0.006 * side))) & ~inside


def _inside_tissue(rest: Mask, side: int) -> Mask:
    """Fill what tissue surrounds, looking at solid tissue only."""
    solid = morphology.drop_regions(morphology.opened(rest, max(1, side // 500)), 2e-4 * rest.size)
    closed = morphology.close(solid, max(2, round(0.015 * side)))
    return morphology.fill_holes(closed, 0.004 * rest.size)


def _inks(stain: Stain, tissue: Mask) -> Iterator[tuple[Mask, Mask]]:
    """Give, for each ink, where its hue is and where it is beyond doubt."""
    red, green, blue, top = stain.red, stain.green, stain.blue, stain.top
    chroma = stain.chroma
    if ((chroma > 0.4) & (red >= top)).any():
        yield _red_ink(stain, tissue)
    bluish = np.maximum(blue - red, 0.02)
    teal = (green - red) / bluish
    yield (green - red > 0.03) & (teal > 0.5), (green - red > 0.06) & (chroma > 0.14) & (teal > 0.6)
    azure = (blue >= top) & (green - red > -0.03)
    yield azure & (chroma > 0.15), azure & (chroma > 0.4) & (chroma > 0.5 * top)


def _red_ink(stain: Stain, tissue: Mask) -> tuple[Mask, Mask]:
    """Tell red ink from eosin: it absorbs blue nearly as much as green.

    Eosin's optical density in blue is about 0.3 to 0.6 of that in green (red taken off), ink's
    0.65 to 0.9. Scanners shift both, so a hue is compared with that of the slide's own tissue,
    unless it is as dense as ink alone is.
    """
    ratio = _blue_to_green(stain)
    chroma, low = stain.chroma, stain.low
    reddest = stain.red >= stain.top
    usual = ratio[tissue & reddest & (chroma > 0.1) & (chroma < 0.4)][::5]
    base = float(np.median(usual)) if usual.size > 50 else 0.5
    weak = reddest & (ratio > max(0.58, min(base + 0.03, 0.7))) & (ratio < 1.3) & (chroma > 0.05)
    dense = (ratio > 0.67) & (low < 0.2) & (chroma > 0.55)
    seeds = weak & (dense | ((ratio > max(0.67, base + 0.1)) & (chroma > 0.4) & (low < 0.45)))
    if morphology.opened(seeds, 1).sum() > 5e-4 * seeds.size:
        # There is such a pen: its dry strokes count too.
        seeds |= weak & (ratio > max(0.62, base + 0.04)) & (chroma > 0.2)
    return weak, seeds


def _blue_to_green(stain: Stain) -> Floats:
    red = optical_density(stain.red)
    green = np.maximum(optical_density(stain.green) - red, 0.02)
    ratio: Floats = ((optical_density(stain.blue) - red) / green).astype(np.float32)
    return ratio
