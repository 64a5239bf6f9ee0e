"""Reads plain images through Pillow: decoded as a whole, at the first read."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from microtome.errors import SlideOpenError, SlideReadError
from microtome.slide.types import Level, SlideInfo
from microtome_readers import PillowConfig

# What Pillow raises on files that it cannot make sense of.
_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, RuntimeError)

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")
"""Of Pillow: it also opens TIFF, but only whole."""

_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")

_UNASKED = 1 << 26
_PER_BYTE = 100
"""Pixels that any image may have, and for each of its bytes: an image of tissue has 10.

Decoding a pixel takes 7 bytes."""

_GLOBALS = threading.Lock()


class PillowReader:
    """One plain image, of one level.

    Pixels are as stored: an orientation tag is not applied, and of an animation the first frame
    is read. Palettes, grey and CMYK become RGB; transparency of any kind becomes alpha.
    """

    def __init__(self, path: Path, config: PillowConfig) -> None:
        self._path, self._config = Path(path), config
        with self._open() as image:
            width, height = image.size
            self._mode = "RGBA" if image.has_transparency_data else "RGB"
            properties = _properties(image)
        self._info = SlideInfo(
            path=self._path,
            reader="pillow",
            levels=(Level(width=width, height=height, downsample=1.0),),
            channels=len(self._mode),
            properties=properties,
        )
        self._pixels: NDArray[np.uint8] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[PillowReader], tuple[Path, PillowConfig]]:
        return type(self), (self._path, self._config)

    @staticmethod
    def probe(path: Path) -> bool:
        """Tell from its first bytes whether Pillow knows the file."""
        try:
            with _strict(), Image.open(path, formats=_FORMATS):
                return True
        except _ERRORS:
            return False

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
        """Fill some rows of a buffer with regions, as `Reader` says; ``level`` is 0."""
        if level != 0:
            raise IndexError(f"{self._path} has one level, not {level + 1}")
        pixels = self._decoded()
        for (x, y, w, h), row in zip(boxes.tolist(), rows.tolist(), strict=True):
            out[row] = pixels[y : y + h, x : x + w]

    def close(self) -> None:
        """Drop the pixels."""
        self._closed, self._pixels = True, None

    def _decoded(self) -> NDArray[np.uint8]:
        with self._lock:
            if self._closed:
                raise ValueError(f"{self._path} is closed")
            if self._pixels is None:
                self._pixels = self._decode()
            return self._pixels

    def _decode(self) -> NDArray[np.uint8]:
        try:
            with self._open() as image, _strict():
                return np.asarray(image.convert(self._mode))
        except _ERRORS as error:
            raise SlideReadError(f"{self._path} cannot be decoded: {error}") from error

    @contextmanager
    def _open(self) -> Iterator[Image.Image]:
        try:
            with _strict():
                image = Image.open(self._path, formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise SlideOpenError("Pillow does not know what it is") from error
        except _ERRORS as error:
            raise SlideOpenError(f"Pillow cannot open it ({error})") from error
        with image:
            _check(image, self._config.max_megapixels)
            yield image


def _check(image: Image.Image, limit: float) -> None:
    width, height = image.size
    if width * height > limit * 1e6:
        raise SlideOpenError(
            f"it has {width * height / 1e6:.0f} megapixels, and a plain image is decoded as a "
            f"whole: convert it to a pyramidal TIFF, or raise reader.max_megapixels={limit:g}"
        )
    stored = Path(str(image.filename)).stat().st_size  # type: ignore[attr-defined]
    if width * height > max(_UNASKED, _PER_BYTE * stored):
        raise SlideOpenError(
            f"it claims {width} × {height} pixels in {stored} bytes, far more than an image has"
        )
    tiles: list[Any] = getattr(image, "tile", [])
    raw = str([tile[3] for tile in tiles])  # Pillow opens 16-bit RGB as RGB, cut to 8 bits
    if image.mode in _DEEP_MODES or re.search(";16[BLN]", raw):
        raise SlideOpenError(
            "its pixels have more than 8 bits and how to scale them is not known: convert it to "
            "8-bit RGB first"
        )


def _properties(image: Image.Image) -> dict[str, str]:
    comment = image.info.get("comment")
    if isinstance(comment, bytes):
        comment = comment.decode("utf-8", "replace")
    return {"openslide.comment": str(comment)} if comment else {}


@contextmanager
def _strict() -> Iterator[None]:
    """Have Pillow refuse truncated files and take large ones, whatever the process has set.

    Both are globals of Pillow. Its limit on size is lifted since `_check` has a better one.
    """
    with _GLOBALS:
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before
