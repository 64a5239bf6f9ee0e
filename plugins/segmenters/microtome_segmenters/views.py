"""What every segmenter of this room does with its views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from microtome.errors import TissueError
from microtome.slide.types import SlideView, TissueMask

if TYPE_CHECKING:
    from microtome_segmenters.glass import Mask


def to_masks(views: Sequence[SlideView], segment: Callable[[SlideView], Mask]) -> list[TissueMask]:
    """Segment views one by one, naming the slide in an error.

    Raises:
        TissueError: As ``segment`` does, after the slide's name.
    """
    masks = []
    for view in views:
        try:
            array = segment(view)
        except TissueError as error:
            raise TissueError(f"{view.slide.path.name}: {error}") from error
        masks.append(TissueMask(array=array, downsample=view.downsample))
    return masks
