"""Pictures for an evaluation's page: slides as small as thumbnails, and single tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from microtome.errors import MicrotomeError
from microtome.slide.imaging import read_tiles, render_view
from microtome.slide.opening import OpenedSlide, open_slide
from microtome.slide.types import SlideRef
from microtome_training.predicting.heatmaps import read_overlay

if TYPE_CHECKING:
    from microtome.run.job import TaskJob

Pixels = NDArray[np.uint8]

Opener = Callable[[], OpenedSlide]

THUMBNAIL_PX = 560


class Pictures(Protocol):
    """What a page shows slides and tiles by. Each says why it has no picture by raising."""

    def thumbnail(self, slide_id: str) -> Pixels:
        """Give a small picture of a slide, (h, w, 3) uint8 RGB.

        Raises:
            MicrotomeError: If there is none.
        """

    def tile(self, slide_id: str, place: NDArray[np.int32]) -> Pixels:
        """Give a tile's pixels, (h, w, 3) uint8 RGB.

        Args:
            slide_id: The slide.
            place: ``x, y, read_w, read_h, level``.

        Raises:
            MicrotomeError: If there are none.
        """


class SlidePictures:
    """Pictures out of the slides themselves, or of heatmaps of them where these are drawn.

    Args:
        slides: Opens each slide, by id.
        heatmaps: Names the picture of a slide's heatmap, by slide id, which may be missing.
        tiles: Gives a tile's pixels as `Pictures.tile` does, out of a patch store: where the
            slides may no longer be.
    """

    def __init__(
        self,
        slides: Mapping[str, Opener],
        heatmaps: Callable[[str], Path] | None = None,
        tiles: Callable[[str, NDArray[np.int32]], Pixels] | None = None,
    ) -> None:
        self._slides, self._heatmaps, self._tiles = slides, heatmaps, tiles

    def thumbnail(self, slide_id: str) -> Pixels:
        """Give a slide's heatmap, or the slide without one."""
        path = self._heatmaps(slide_id) if self._heatmaps else None
        if path is not None and path.is_file():
            return read_overlay(path)
        with self._open(slide_id) as slide:
            view = render_view(slide.ref, slide.reader, slide.info, mpp=None, max_px=THUMBNAIL_PX)
        return view.image

    def tile(self, slide_id: str, place: NDArray[np.int32]) -> Pixels:
        """Give a tile as it is stored, or read, before it is brought to a model's size."""
        if self._tiles is not None:
            return self._tiles(slide_id, place)
        x, y, width, height, level = (int(value) for value in place)
        box = np.array([[x, y, width, height]], np.int64)
        with self._open(slide_id) as slide:
            pixels, _ = read_tiles(slide.reader, level, box)
        tile: Pixels = pixels[0]
        return tile

    def _open(self, slide_id: str) -> OpenedSlide:
        if slide_id not in self._slides:
            raise MicrotomeError(f"nothing says where {slide_id} is")
        return self._slides[slide_id]()


def slide_openers(sources: Mapping[str, str], job: TaskJob) -> dict[str, Opener]:
    """Give what opens slides by their files.

    Args:
        sources: Each slide's file, by id.
        job: Says by which reader.
    """
    reader = job.config.reader
    opened = partial(open_slide, reader=reader.plugin, config=reader.config, registry=job.registry)
    return {
        name: partial(opened, SlideRef(path=Path(source), slide_id=name))
        for name, source in sources.items()
    }
