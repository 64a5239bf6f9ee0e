"""Reads tiled JPEG and JPEG 2000 TIFF through cuCIM."""

from __future__ import annotations

import atexit
import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import SlideOpenError, SlideReadError
from microtome.slide.types import Level, SlideInfo
from microtome_readers import CucimConfig
from microtome_readers.cucim_check import check_file
from microtome_readers.tiff.placement import Box, Placement, Region, place, read_placed
from microtome_readers.tiff.tags import JPEG, describe_levels, whole_downsamples
from microtome_readers.tiff.tilecheck import TileCheck

CUCIM_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, MemoryError)
"""What cuCIM raises."""

_SHARED = 1.25
"""How much more often native tiles must be decoded for one large read to be the faster way."""

_SETTINGS = "CUFILE_ENV_PATH_JSON"


class CucimReader:
    """One slide, open in cuCIM after `check_file` has made sure that it may be.

    Metadata comes from the file's tags: cuCIM reports a spacing of 1.0 for Aperio's slides.
    """

    def __init__(self, path: Path, config: CucimConfig) -> None:
        self._path, self._config = Path(path), config
        _prepare()
        tags = check_file(self._path, config.probe_timeout)
        self._slide: CucimFile | None = CucimFile(self._path)
        levels = describe_levels(tags.pages)
        sizes = [(level.width, level.height) for level in levels]
        if self._slide.sizes != sizes:
            self._slide.close()
            raise SlideOpenError(
                f"cuCIM is not trusted with it: it sees levels of {self._slide.sizes}, where the "
                f"tags have {sizes}"
            )
        self._tiles = TileCheck(self._path, tags.pages)
        self._info = SlideInfo(
            path=self._path,
            reader="cucim",
            levels=levels,
            vendor=tags.vendor,
            properties=tags.properties,
            # Its JPEG 2000 codec rounds another way than OpenSlide's: by up to one level.
            exact=whole_downsamples(tags.pages) and tags.pages[0].compression == JPEG,
        )

    def __reduce__(self) -> tuple[type[CucimReader], tuple[Path, CucimConfig]]:
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
        if not len(boxes):
            return
        geometry = self._info.levels[level]
        placed = [place(box, geometry.downsample) for box in boxes.tolist()]
        region = self._region(level, placed)
        for placement, row in zip(placed, rows.tolist(), strict=True):
            out[row] = read_placed(region, placement, geometry)

    def close(self) -> None:
        """Close the slide."""
        if self._slide is not None:
            self._slide.close()
            self._slide = None
            self._tiles.close()

    def _region(self, level: int, placed: Sequence[Placement]) -> Region:
        """Choose how to read boxes: each by itself, or all at once and then cut.

        cuCIM is at its best with boxes of whole native tiles. But others share native tiles, and
        each box would decode them again.
        """
        geometry = self._info.levels[level]
        spans = np.array([_span(placement, geometry) for placement in placed])
        hull = np.concatenate([spans[:, :2].min(axis=0), spans[:, 2:].max(axis=0)])
        if _count_tiles(spans, geometry) <= _SHARED * _count_tiles(hull[np.newaxis], geometry):
            return partial(self._read, level)
        left, top, right, bottom = hull.tolist()
        canvas = self._read(level, (left, top, right - left, bottom - top))
        return lambda box: canvas[
            box[1] - top : box[1] - top + box[3], box[0] - left : box[0] - left + box[2]
        ]

    def _read(self, level: int, box: Box) -> NDArray[np.uint8]:
        if self._slide is None:
            raise ValueError(f"{self._path} is closed")
        self._tiles.check(level, box)
        try:
            return self._slide.read(level, box)
        except CUCIM_ERRORS as error:
            x, y, w, h = box
            raise SlideReadError(
                f"{self._path}: level {level} at pixel ({x}, {y}), {w} × {h} pixels cannot be "
                f"read: {error}"
            ) from error


class CucimFile:
    """A file open in cuCIM, which may kill the process: only after `check_file`.

    Attributes:
        sizes: (width, height) of each level.
    """

    def __init__(self, path: Path) -> None:
        _prepare()
        from cucim.clara import CuImage

        try:
            self._image: Any = CuImage(str(path))
        except CUCIM_ERRORS as error:
            raise SlideOpenError(f"cuCIM cannot open it ({error})") from error
        resolutions = self._image.resolutions  # made anew each time it is asked for
        self.sizes = [tuple(size) for size in resolutions["level_dimensions"]]
        self._ratios = [float(ratio) for ratio in resolutions["level_downsamples"]]

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Read whole pixels of a level.

        Args:
            level: Its index.
            box: In pixels of the level.

        Returns:
            (height, width, 3) uint8.

        Raises:
            ValueError: If cuCIM gives anything else.
        """
        # cuCIM takes level-0 positions and rounds them down to pixels of the level.
        x, y, w, h = box
        ratio = self._ratios[level]
        location = (math.ceil(x * ratio), math.ceil(y * ratio))
        pixels = np.asarray(self._image.read_region(location, (w, h), level))
        if pixels.shape != (h, w, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"cuCIM gives {pixels.shape} {pixels.dtype}")
        return pixels

    def close(self) -> None:
        """Close the file."""
        self._image.close()


def _span(placement: Placement, level: Level) -> Box:
    """Give the first pixels of a box in its level and those behind its last, ``x0, y0, x1, y1``."""
    p = placement
    right, bottom = p.x + p.width + (p.right > 0), p.y + p.height + (p.down > 0)
    return p.x, p.y, min(right, level.width), min(bottom, level.height)


def _count_tiles(spans: NDArray[np.int64], level: Level) -> int:
    """Count the native tiles that each box touches, those of several as often as they do."""
    tile = level.tile or (1, 1)
    return int((-(-spans[:, 2:] // tile) - spans[:, :2] // tile).prod(axis=1).sum())


def _prepare() -> None:
    """Keep cuFile out of its compatibility mode, and its log out of the working directory.

    Importing cuCIM after a CUDA build of torch, on a machine without a GPU, hangs for ever in
    cuFile's driver (cuCIM 26) unless this is set before. cuFile writes its log somewhere in any
    case: into a folder that goes with the process.
    """
    if _SETTINGS in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="microtome-cufile-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    settings = {
        "logging": {"dir": str(folder), "level": "ERROR"},
        "properties": {"allow_compat_mode": False},
    }
    (folder / "cufile.json").write_text(json.dumps(settings), encoding="utf-8")
    os.environ[_SETTINGS] = str(folder / "cufile.json")
