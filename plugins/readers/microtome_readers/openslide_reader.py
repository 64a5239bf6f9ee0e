"""Reads whole-slide formats through OpenSlide."""

from __future__ import annotations

import sys
from ctypes import c_uint32
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray
from openslide import lowlevel

from microtome.errors import SlideOpenError, SlideReadError
from microtome.slide.types import RGB, WHITE, Level, SlideInfo
from microtome_readers import OpenSlideConfig
from microtome_readers.tiff.dirs import check_directories
from microtome_readers.tiff.plausible import check_claim, check_tile

_read_region: Any = getattr(lowlevel, "_read_region", None)
_convert: Any = getattr(lowlevel, "_convert", None)
"""openslide-python's own steps, without Pillow between them; private, the same from 1.3 on."""

_OPAQUE = np.uint32(0xFF000000)
"""The least ARGB value of full alpha."""

_MANY_FILES = ("mirax", "dicom")
_INDEXES = (".vms", ".vmu")
"""Slides of several files: the one that is opened does not hold the pixels."""


class OpenSlideReader:
    """One slide, open in OpenSlide.

    Any vendor's slide may have holes, and OpenSlide does not say which: ``channels`` is always
    4. Pixels are what ``openslide.OpenSlide.read_region`` gives, alpha not premultiplied.
    """

    def __init__(self, path: Path, config: OpenSlideConfig) -> None:
        self._path, self._config = Path(path), config
        try:
            check_directories(self._path)
            self._slide = openslide.OpenSlide(self._path)
        except SlideOpenError:
            raise
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise SlideOpenError(_unknown(self._path)) from error
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideOpenError(f"OpenSlide cannot open it ({error})") from error
        try:
            self._info = self._describe()
        except SlideOpenError:
            self._slide.close()
            raise
        self._closed = False
        self._slide.set_cache(openslide.OpenSlideCache(config.cache_mb << 20))

    def __reduce__(self) -> tuple[type[OpenSlideReader], tuple[Path, OpenSlideConfig]]:
        return type(self), (self._path, self._config)

    @staticmethod
    def probe(path: Path) -> bool:
        """Tell from the file whether OpenSlide knows its format."""
        return openslide.OpenSlide.detect_format(path) is not None

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
        if self._closed:
            raise ValueError(f"{self._path} is closed")
        for box, row in zip(boxes.tolist(), rows.tolist(), strict=True):
            self._fill(level, box, out[row])

    def close(self) -> None:
        """Close the slide."""
        if not self._closed:
            self._closed = True
            self._slide.close()

    def _fill(self, level: int, box: list[int], pixels: NDArray[np.uint8]) -> None:
        x, y, w, h = box
        fits = pixels.shape == (h, w, 4) and pixels.flags.c_contiguous
        try:
            if fits and _read_region and _convert:
                buffer = (c_uint32 * (w * h)).from_buffer(pixels.data)
                _read_region(self._slide._osr, buffer, x, y, level, w, h)
                _from_argb(pixels)
            else:
                pixels[:] = np.asarray(self._slide.read_region((x, y), level, (w, h)))
        except openslide.OpenSlideError as error:
            raise SlideReadError(
                f"{self._path}: level {level} at x={x}, y={y}, {w} × {h} pixels cannot be read: "
                f"{error}"
            ) from error

    def _describe(self) -> SlideInfo:
        properties = dict(self._slide.properties)
        vendor = properties.get("openslide.vendor")
        if vendor == "generic-tiff":
            _refuse_deep(self._path)
        if vendor not in _MANY_FILES and self._path.suffix.lower() not in _INDEXES:
            check_claim(self._path, *self._slide.dimensions)
        sizes = zip(self._slide.level_dimensions, self._slide.level_downsamples, strict=True)
        return SlideInfo(
            path=self._path,
            reader="openslide",
            levels=tuple(
                Level(
                    width=width,
                    height=height,
                    downsample=downsample,
                    tile=_tile(properties, index),
                )
                for index, ((width, height), downsample) in enumerate(sizes)
            ),
            channels=4,
            background=_colour(properties.get("openslide.background-color", "")),
            vendor=vendor,
            properties=properties,
        )


def _from_argb(pixels: NDArray[np.uint8]) -> None:
    """Turn premultiplied ARGB, as the processor orders it, into RGBA in place."""
    values = pixels.view(np.uint32)
    if sys.byteorder == "little" and values.min() >= _OPAQUE:
        cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA, dst=pixels)  # a quarter of the time
    else:
        _convert.argb2rgba(values)


def _unknown(path: Path) -> str:
    folder = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and not folder.is_dir():
        return f"its data folder {folder.name} is not beside it"
    return "OpenSlide does not know what it is"


def _tile(properties: dict[str, str], index: int) -> tuple[int, int] | None:
    names = [f"openslide.level[{index}].tile-{side}" for side in ("width", "height")]
    if not all(name in properties for name in names):
        return None
    width, height = (int(properties[name]) for name in names)
    # OpenSlide allocates one as it is told, and aborts where it cannot.
    check_tile(width, height)
    return width, height


def _colour(text: str) -> RGB:
    try:
        red, green, blue = bytes.fromhex(text)
    except ValueError:
        return WHITE
    return red, green, blue


def _refuse_deep(path: Path) -> None:
    """Refuse a plain TIFF of more than 8 bits: OpenSlide would scale it without a word."""
    import tifffile  # 0.2 s, which other formats need not wait for

    from microtome_readers.tiff.tags import TAG_ERRORS

    try:
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            page: Any = tiff.pages[0]
            bits = page.bitspersample
    except TAG_ERRORS as error:
        raise SlideOpenError(f"its TIFF tags cannot be read ({error})") from error
    if bits > 8:
        raise SlideOpenError(
            f"its pixels have {bits} bits and how to scale them to 8 bits is not known: convert "
            "it to 8-bit RGB first"
        )
