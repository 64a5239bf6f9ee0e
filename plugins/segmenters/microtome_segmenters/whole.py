"""No segmentation: for slides that are cropped to tissue, and for fluorescence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from microtome.plugin.specs import NoConfig
from microtome.slide.types import TissueMask

if TYPE_CHECKING:
    from microtome.slide.types import SlideView


class WholeSegmenter:
    """Calls the whole slide tissue: one mask pixel as large as the slide."""

    def __init__(self, config: NoConfig) -> None:
        del config

    def segment(self, views: Sequence[SlideView]) -> list[TissueMask]:
        """Give a 1 × 1 mask for each slide."""
        return [
            TissueMask(
                array=np.ones((1, 1), bool),
                downsample=(float(view.info.width), float(view.info.height)),
            )
            for view in views
        ]
