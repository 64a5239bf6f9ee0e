"""Reads tiled JPEG and JPEG 2000 TIFF through cuCIM."""

from __future__ import annotations

import atexit
import json
import math
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import SlideOpenError, SlideReadError
from microtome.slide.types import SlideInfo
from microtome_readers import CucimConfig
from microtome_readers.cucim_check import check_file
from microtome_readers.placement import Box, place, read_placed
from microtome_readers.tifftags import JPEG, describe_levels, whole_downsamples

_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, MemoryError)
"""What cuCIM raises."""

_SETTINGS = "CUFILE_ENV_PATH_JSON"


class CucimReader:
    """One slide, open in cuCIM after `check_file` has made sure that it may be.

    Metadata comes from the file's tags: cuCIM reports a spacing of 1.0 for Aperio's slides.
    """

    def __init__(self, path: Path, config: CucimConfig) -> None:
        self._path, self._config = Path(path), config
        _prepare()
        tags = check_file(self._path, config.probe_timeout)
        self._slide: Any = open_cucim(self._path)
        levels = describe_levels(tags.pages)
        found = self._slide.resolutions["level_dimensions"]
        if [tuple(size) for size in found] != [(level.width, level.height) for level in levels]:
            raise SlideOpenError(
                f"cuCIM is not trusted with it: it sees levels of {found}, where the tags have "
                f"{[(level.width, level.height) for level in levels]}"
            )
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
        geometry = self._info.levels[level]
        region = partial(self._region, level)
        for box, row in zip(boxes.tolist(), rows.tolist(), strict=True):
            out[row] = read_placed(region, place(box, geometry.downsample), geometry)

    def close(self) -> None:
        """Close the slide."""
        if self._slide is not None:
            self._slide.close()
            self._slide = None

    def _region(self, level: int, box: Box) -> NDArray[np.uint8]:
        if self._slide is None:
            raise ValueError(f"{self._path} is closed")
        try:
            return read_whole(self._slide, level, box)
        except _ERRORS as error:
            x, y, w, h = box
            raise SlideReadError(
                f"{self._path}: level {level} at pixel ({x}, {y}), {w} × {h} pixels cannot be "
                f"read: {error}"
            ) from error


def read_whole(slide: Any, level: int, box: Box) -> NDArray[np.uint8]:
    """Read whole pixels of a level.

    Args:
        slide: Of `open_cucim`.
        level: Its index.
        box: In pixels of the level.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: If cuCIM gives anything else.
    """
    # cuCIM takes level-0 positions and rounds them down to pixels of the level.
    ratio = float(slide.resolutions["level_downsamples"][level])
    x, y, w, h = box
    location = (math.ceil(x * ratio), math.ceil(y * ratio))
    pixels = np.asarray(slide.read_region(location, (w, h), level))
    if pixels.shape != (h, w, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"cuCIM gives {pixels.shape} {pixels.dtype}")
    return pixels


def open_cucim(path: Path) -> Any:
    """Open a file in cuCIM, which may kill the process: only after `check_file`."""
    _prepare()
    from cucim.clara import CuImage

    try:
        return CuImage(str(path))
    except _ERRORS as error:
        raise SlideOpenError(f"cuCIM cannot open it ({error})") from error


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
