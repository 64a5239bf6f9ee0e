"""Pictures of slides that do not exist, for segmenters."""

from __future__ import annotations

import numpy as np

from microtome.slide.types import SlideRef, SlideView
from microtome.testing import make_info


def view_of(image, *, mpp=10.0, covered=None, downsample=40):
    """Make what a segmenter is given out of a picture, at so many level-0 pixels a pixel."""
    height, width = image.shape[:2]
    info = make_info(size=(width * downsample, height * downsample))
    slide = SlideRef(path=info.path, slide_id="sample")
    scale = (float(downsample), float(downsample))
    return SlideView(
        slide=slide, info=info, image=image, covered=covered, downsample=scale, mpp=mpp
    )


def scene(width, height):
    """Paint a dark ellipse on white, and say where it is."""
    y, x = np.mgrid[:height, :width]
    truth = ((x / width - 0.6) / 0.25) ** 2 + ((y / height - 0.4) / 0.3) ** 2 < 1
    image = np.full((height, width, 3), 240, np.uint8)
    image[truth] = 90
    return image, truth
