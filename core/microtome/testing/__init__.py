"""The kit for those who test plugins: contracts to subclass, synthetic slides to run on.

`microtome.testing.contracts` needs pytest; everything else needs the base install alone.
"""

from microtome.testing.synthetic import (
    MASK_DOWNSAMPLE,
    SlideRecipe,
    SyntheticSlide,
    make_plain_image,
    make_slide,
)

__all__ = [
    "MASK_DOWNSAMPLE",
    "SlideRecipe",
    "SyntheticSlide",
    "make_plain_image",
    "make_slide",
]
