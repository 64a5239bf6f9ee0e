"""Tell tissue from glass by brightness."""

from __future__ import annotations

from collections.abc import Sequence

from microtome.slide.types import SlideView, TissueMask
from microtome_toolbox import DarkerConfig


class DarkerSegmenter:
    """Calls everything tissue whose darkest channel is below the threshold."""

    def __init__(self, config: DarkerConfig) -> None:
        self.threshold = config.threshold

    def segment(self, views: Sequence[SlideView]) -> list[TissueMask]:
        """Compare each pixel with the threshold."""
        return [
            TissueMask(
                array=view.image.min(axis=2) < self.threshold,
                downsample=view.downsample,
            )
            for view in views
        ]
