"""A slide's tissue: the picture that a segmenter wants, its mask, the cleaning."""

from __future__ import annotations

from microtome.plugin.protocols import Segmenter
from microtome.plugin.specs import SegmenterSpec
from microtome.run.settings import TissueSettings
from microtome.slide.imaging import render_view
from microtome.slide.opening import OpenedSlide
from microtome.slide.tissue import clean_mask
from microtome.slide.types import TissueMask


def find_tissue(
    slide: OpenedSlide, segmenter: Segmenter, spec: SegmenterSpec, settings: TissueSettings
) -> TissueMask:
    """Draw a slide as a segmenter wants it, segment it, and clean the mask.

    Raises:
        SlideReadError: If the picture cannot be read.
        TissueError: If nothing honest can be said of the slide.
    """
    view = render_view(
        slide.ref,
        slide.reader,
        slide.info,
        mpp=spec.input_mpp,
        max_px=spec.max_px,
        min_px=spec.min_px,
    )
    (mask,) = segmenter.segment([view])
    return clean_mask(mask, settings, slide.info.resolution.mpp)
