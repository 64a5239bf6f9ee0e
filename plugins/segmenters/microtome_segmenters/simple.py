"""One threshold on one feature: well known, and good on clean slides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from microtome_segmenters import EntropyConfig, OtsuConfig, ThresholdConfig, morphology
from microtome_segmenters.glass import Floats, Image, Mask, refuse_fluorescence
from microtome_segmenters.views import to_masks

if TYPE_CHECKING:
    from microtome.slide.types import SlideView, TissueMask

_LEAST_SATURATION = 8
"""Otsu splits anything in two, glass too: a threshold below this one splits noise."""

_GREYS = 32
"""Grey levels that entropy is counted over: 5 bits, so that noise of the camera counts little."""


class _OneByOne(ABC):
    """Segments each view by itself."""

    def segment(self, views: Sequence[SlideView]) -> list[TissueMask]:
        """Tell tissue from glass.

        Raises:
            TissueError: If a slide is not bright field.
        """
        return to_masks(views, self._segment)

    @abstractmethod
    def _segment(self, view: SlideView) -> Mask:
        """Segment one view."""


class OtsuSegmenter(_OneByOne):
    """Cuts smoothed saturation where Otsu's criterion says."""

    def __init__(self, config: OtsuConfig) -> None:
        self.config = config

    def _segment(self, view: SlideView) -> Mask:
        refuse_fluorescence(view.image, view.covered)
        saturation, value = _saturation_and_value(view.image, self.config.blur)
        usable = _usable(view, value, darkest=40)
        if not usable.any():
            return usable
        level, _ = cv2.threshold(saturation[usable], 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        tissue = usable & (saturation > max(level, _LEAST_SATURATION))
        return _tidy(tissue, self.config)


class ThresholdSegmenter(_OneByOne):
    """Cuts smoothed saturation at a fixed value."""

    def __init__(self, config: ThresholdConfig) -> None:
        self.config = config

    def _segment(self, view: SlideView) -> Mask:
        refuse_fluorescence(view.image, view.covered)
        saturation, value = _saturation_and_value(view.image, self.config.blur)
        usable = _usable(view, value, darkest=self.config.value)
        return _tidy(usable & (saturation >= self.config.saturation), self.config)


class EntropySegmenter(_OneByOne):
    """Calls tissue what has many grey levels in a small neighbourhood, stained or not."""

    def __init__(self, config: EntropyConfig) -> None:
        self.config = config

    def _segment(self, view: SlideView) -> Mask:
        refuse_fluorescence(view.image, view.covered)
        entropy = local_entropy(view.image, self.config.radius)
        usable = _usable(view, view.image.max(2), darkest=40)
        return _tidy(usable & (entropy >= self.config.entropy), self.config)


def local_entropy(image: Image, radius: int) -> Floats:
    """Give Shannon's entropy of the grey levels around each pixel.

    Args:
        image: (h, w, 3) uint8 RGB.
        radius: Half the side of the square neighbourhood, in pixels.

    Returns:
        (h, w) float32 in bits, 0 to 5: grey is counted in 32 levels.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) // (256 // _GREYS)
    side = (2 * radius + 1,) * 2
    entropy = np.zeros(grey.shape, np.float32)
    for level in np.unique(grey):
        share = cv2.boxFilter((grey == level).astype(np.float32), -1, side)
        entropy -= share * np.log2(np.maximum(share, 1e-6))
    return entropy


def _saturation_and_value(image: Image, blur: float) -> tuple[Image, Image]:
    smooth = cv2.GaussianBlur(image, (0, 0), blur) if blur > 0 else image
    _, saturation, value = cv2.split(cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV))
    return np.asarray(saturation, np.uint8), np.asarray(value, np.uint8)


def _usable(view: SlideView, value: Image, *, darkest: int) -> Mask:
    """Leave out what is black, whose saturation is noise, and what holds no data."""
    usable: Mask = value >= darkest
    return usable if view.covered is None else usable & view.covered


def _tidy(mask: Mask, config: OtsuConfig | ThresholdConfig | EntropyConfig) -> Mask:
    """Close gaps, fill holes and drop specks."""
    closed = morphology.close(mask, config.close)
    filled = morphology.fill_holes(closed, config.max_hole * mask.size)
    return morphology.drop_regions(filled, config.min_region * mask.size)
