"""The default segmenter: stain seen through the glass, without a learned model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from microtome_segmenters import ClassicConfig, morphology
from microtome_segmenters.glass import (
    Floats,
    Image,
    Mask,
    estimate_glass,
    find_frame,
    refuse_fluorescence,
)
from microtome_segmenters.pen import find_pen
from microtome_segmenters.stain import GLASS, Stain, dark_fringe, doubt_flat, see_through, weigh
from microtome_segmenters.views import to_masks

if TYPE_CHECKING:
    from microtome.slide.types import SlideView, TissueMask

_WORK = 1024
"""Longest side in pixels that is looked at: finer detail is beyond any tile."""

_FIRST_LOOK = 512
"""The same for the first look, which only finds where to measure the glass."""

_NOISE_STEPS = 4.0
"""Threshold above the glass, in standard deviations of the glass."""

_LEAST, _MOST = 0.018, 0.07
"""Bounds of that threshold: faint tissue lies above the first, so does nothing below it."""

_OF_USUAL = 0.17
"""Tissue is at least this share of the slide's usual stain, which cuts off halos of JPEG."""

_FRINGE = 0.006
"""Width of the coloured lines along frames, as a share of the longest side; they lie within two."""

_SURE = 1.8
"""Times the threshold from which a pixel vouches for the region around it."""


@dataclass(frozen=True)
class _Shape:
    """Radii and areas of the cleaning, in pixels of the working image."""

    close: int
    blur: float
    hole: float
    region: float


class ClassicSegmenter:
    """Segments bright-field slides, H&E or immunohistochemistry."""

    def __init__(self, config: ClassicConfig) -> None:
        self.config = config

    def segment(self, views: Sequence[SlideView]) -> list[TissueMask]:
        """Tell tissue from glass.

        Raises:
            TissueError: If a slide is not bright field.
        """
        return to_masks(
            views, lambda v: segment_image(v.image, v.mpp, v.covered, config=self.config)
        )


def segment_image(
    rgb: Image,
    mpp: float | None = None,
    covered: Mask | None = None,
    *,
    config: ClassicConfig | None = None,
) -> Mask:
    """Tell tissue from glass in a bright-field picture.

    Args:
        rgb: (h, w, 3) uint8.
        mpp: µm per pixel. It only bounds the shapes that are closed and filled; without it they
            are shares of the image.
        covered: (h, w) bool, False where the slide holds no data, or None.
        config: Options; the defaults if None.

    Returns:
        (h, w) bool, True on tissue.

    Raises:
        TissueError: If the picture is not bright field.
    """
    config = config or ClassicConfig()
    height, width = rgb.shape[:2]
    scale = min(1.0, _WORK / max(height, width))
    work, known = _resized(rgb, covered, scale)
    refuse_fluorescence(work, known)
    mask = _segment(work, known, config, None if mpp is None else mpp / scale)
    if scale == 1.0:
        return mask
    return cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0


def _resized(rgb: Image, covered: Mask | None, scale: float) -> tuple[Image, Mask | None]:
    if scale == 1.0:
        return rgb, covered
    size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    small = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    if covered is None:
        return small, None
    return small, cv2.resize(covered.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0


def _segment(image: Image, covered: Mask | None, config: ClassicConfig, mpp: float | None) -> Mask:
    frame = find_frame(image, covered)
    tissue, stain, evidence = _look(image, frame, _occupied(image, frame, config), config)
    if config.pen:
        pen = find_pen(stain, evidence > _MOST, frame)
        if pen.any():
            evidence[pen] = 0
            tissue = _threshold(evidence, stain, ~(frame | pen), config)
            frame = frame | pen
    tissue &= ~_fringe(tissue, frame)
    return _shaped(tissue, evidence, config, _shape(tissue.shape, config, mpp)) & ~frame


def _fringe(tissue: Mask, frame: Mask) -> Mask:
    """Find thin lines along frames and pens: lenses and JPEG break their edges into colours."""
    if not frame.any():
        return frame
    reach = max(2, round(_FRINGE * max(tissue.shape)))
    thick = morphology.dilate(morphology.opened(tissue, reach // 2 + 1), 1)
    return morphology.dilate(frame, 2 * reach) & ~thick


def _occupied(image: Image, frame: Mask, config: ClassicConfig) -> Mask:
    """Look once at a small picture, to measure the glass away from tissue afterwards."""
    scale = min(1.0, _FIRST_LOOK / max(image.shape[:2]))
    small, known = _resized(image, ~frame, scale)
    border = np.zeros(small.shape[:2], bool) if known is None else ~known
    tissue = morphology.dilate(_look(small, border, border, config)[0], 2) | border
    size = (image.shape[1], image.shape[0])
    return cv2.resize(tissue.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0


def _look(
    image: Image, frame: Mask, excluded: Mask, config: ClassicConfig
) -> tuple[Mask, Stain, Floats]:
    """Find stained regions, measuring the glass outside ``excluded``."""
    sigma = float(np.clip(0.7 * max(image.shape[:2]) / 512, 0.7, 1.4))
    smooth = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    stain = see_through(smooth, estimate_glass(smooth, excluded))
    evidence = doubt_flat(weigh(stain), image, stain, ~excluded)
    evidence[frame | dark_fringe(stain, max(2, round(0.012 * max(image.shape[:2]))))] = 0
    return _threshold(evidence, stain, ~frame, config), stain, evidence


def _threshold(evidence: Floats, stain: Stain, usable: Mask, config: ClassicConfig) -> Mask:
    """Cut above the noise of the glass, at a share of the slide's own stain."""
    values = evidence[usable][::3]
    least = _LEAST
    glass = evidence[usable & (stain.low > GLASS)][::3]
    if glass.size > 100:
        below, middle = np.percentile(glass, (16, 50))
        least = float(np.clip(middle + _NOISE_STEPS * (middle - below), _LEAST, _MOST))
    stained = values[values > 2 * least]
    usual = float(np.median(stained)) if stained.size > 20 else 0.0
    cut = max(least, _OF_USUAL * usual) / config.sensitivity
    return morphology.touching(evidence > cut, evidence > _SURE * cut, 0.05)


def _shape(size: tuple[int, ...], config: ClassicConfig, mpp: float | None) -> _Shape:
    """Turn shares of the image into pixels, within what makes sense in µm."""
    side, area = max(size), size[0] * size[1]
    close, hole = config.close * side, config.max_hole * area
    if mpp is not None:
        close = min(float(np.clip(close, 15 / mpp, 60 / mpp)), 0.03 * side)
        hole = min(max(hole, 2e3 / mpp**2), 1e5 / mpp**2)
    return _Shape(max(1, round(close)), max(2.0, 2.5 * close), hole, config.min_region * area)


def _shaped(tissue: Mask, evidence: Floats, config: ClassicConfig, shape: _Shape) -> Mask:
    """Drop specks, close gaps, fill what is mostly tissue, and holes."""
    kept = _heavy(tissue, evidence, 0.09 * shape.region)
    closed = morphology.close(kept, shape.close)
    closed |= cv2.GaussianBlur(closed.astype(np.float32), (0, 0), shape.blur) > 0.6
    filled = morphology.fill_holes(closed, shape.hole)
    return morphology.drop_regions(filled, shape.region)


def _heavy(mask: Mask, evidence: Floats, least: float) -> Mask:
    """Keep regions by their area times their evidence: faint specks go, small deep ones stay."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    weight = np.bincount(labels.ravel(), evidence.ravel(), count)
    kept = weight > least
    kept[0] = False
    found: Mask = kept[labels]
    return found
