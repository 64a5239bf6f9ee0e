"""Reads tiled TIFF through libvips."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import EXTRASAMPLE, PHOTOMETRIC

from microtome.errors import SlideOpenError, SlideReadError
from microtome.plugin import NoConfig
from microtome.slide.types import SlideInfo
from microtome_readers.tiff.placement import Box, place, read_placed
from microtome_readers.tiff.tags import (
    JPEG2000,
    TiffTags,
    describe_levels,
    read_tags,
    whole_downsamples,
)
from microtome_readers.tiff.tilecheck import TileCheck

try:
    import pyvips
except OSError as error:  # pyvips is there without libvips
    raise ImportError(f"{error}; pyvips[binary] brings libvips") from error

# libvips would keep the last hundred images open, also those that were closed.
pyvips.cache_set_max(0)

_ALPHA = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)


class VipsReader:
    """One slide, open in libvips, which decodes each tile once for all boxes of a neighbourhood.

    For each level, libvips keeps the tiles of one row and a half. Regions are read on the threads
    that ask for them: libvips' own threads have nothing to do.

    An error ends all reading, as it does in OpenSlide: libvips tells of a broken tile once, and
    gives it as black from then on.
    """

    def __init__(self, path: Path, config: NoConfig) -> None:
        self._path, self._config = Path(path), config
        tags = read_tags(self._path)
        check_pages(tags.pages)
        alpha = bool(tags.pages[0].extrasamples) and tags.pages[0].extrasamples[-1] in _ALPHA
        self._channels = 4 if alpha else 3
        try:
            self._images: list[Any] = [self._open(page) for page in tags.pages]
        except pyvips.Error as error:
            raise SlideOpenError(f"libvips cannot open it ({_reason(error)})") from error
        self._tiles = TileCheck(self._path, tags.pages)
        self._local = threading.local()
        self._failure = ""
        self._info = SlideInfo(
            path=self._path,
            reader="vips",
            levels=describe_levels(tags.pages),
            channels=self._channels,
            vendor=tags.vendor,
            properties=tags.properties,
            exact=is_exact(tags),
        )

    def __reduce__(self) -> tuple[type[VipsReader], tuple[Path, NoConfig]]:
        return type(self), (self._path, self._config)

    @property
    def info(self) -> SlideInfo:
        """What the file says of itself."""
        return self._info

    def read_tiles(
        self,
        level: int,
        boxes: NDArray[np.int64],
        out: NDArray[np.uint8],
        rows: NDArray[np.int64],
    ) -> None:
        """Fill some rows of a buffer with regions of one level, as `Reader` says."""
        if not self._images:
            raise ValueError(f"{self._path} is closed")
        geometry = self._info.levels[level]
        read = partial(self._read, level)
        for box, row in zip(boxes.tolist(), rows.tolist(), strict=True):
            out[row] = read_placed(read, place(box, geometry.downsample), geometry)

    def close(self) -> None:
        """Close the slide."""
        self._images = []
        self._local = threading.local()  # drops the regions of all threads
        self._tiles.close()

    def _open(self, page: Any) -> Any:
        """Open a level: its image, of as many channels as the slide's pixels."""
        where = dict(zip(("page", "subifd"), page.treeindex, strict=False))
        image = pyvips.Image.tiffload(str(self._path), fail_on="warning", **where)
        if (image.width, image.height) != (page.imagewidth, page.imagelength):
            raise SlideOpenError(
                f"libvips is not trusted with it: it sees a level of {image.width} × "
                f"{image.height} pixels, where the tags have {page.imagewidth} × "
                f"{page.imagelength}"
            )
        # Grey has one channel, and one more of alpha; others have channels that mean nothing.
        if image.bands < 3:
            image = image[0].bandjoin([image[0], *image.bandsplit()])
        if image.bands > self._channels:  # not always: it takes as long as decoding
            image = image[: self._channels]
        pyvips.Region.new(image).fetch(0, 0, 1, 1)  # is its codec there?
        return image

    def _read(self, level: int, box: Box) -> NDArray[np.uint8]:
        self._tiles.check(level, box)
        x, y, w, h = box
        regions: dict[int, Any] = self._local.__dict__.setdefault("regions", {})
        try:
            if level not in regions:
                regions[level] = pyvips.Region.new(self._images[level])
            data = regions[level].fetch(x, y, w, h)
        except pyvips.Error as error:
            self._failure = self._failure or (
                f"{self._path}: level {level} at pixel ({x}, {y}), {w} × {h} pixels cannot be "
                f"read: {_reason(error)}"
            )
        if self._failure:
            raise SlideReadError(self._failure)
        return np.frombuffer(data, np.uint8).reshape(h, w, self._channels)


def check_pages(pages: list[Any]) -> None:
    """Refuse what libvips does not read by tiles, or not to 8-bit RGB of one meaning.

    Raises:
        SlideOpenError: Says what.
    """
    colours = (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR, PHOTOMETRIC.MINISBLACK)
    for page in pages:
        wanted = {
            "it is not tiled, and libvips would decode it as a whole": page.is_tiled,
            f"its pixels have {page.bitspersample} bits": page.bitspersample == 8,
            f"its colours are {getattr(page.photometric, 'name', page.photometric)}": (
                page.photometric in colours
            ),
            "its colours are in separate planes": page.planarconfig == 1,
            "some of its tiles are left out": 0 not in page.databytecounts,
            "it is three-dimensional": page.imagedepth == 1,
        }
        for complaint, fine in wanted.items():
            if not fine:
                raise SlideOpenError(f"libvips is not given it: {complaint}")


def is_exact(tags: TiffTags) -> bool:
    """Whether libvips' pixels are everybody's: its JPEG 2000 and premultiplied alpha round."""
    page = tags.pages[0]
    premultiplied = EXTRASAMPLE.ASSOCALPHA in page.extrasamples
    return whole_downsamples(tags.pages) and page.compression not in JPEG2000 and not premultiplied


def _reason(error: pyvips.Error) -> str:
    lines = [line.strip() for line in str(error.detail).splitlines() if line.strip()]
    return lines[0] if lines else str(error.message)
