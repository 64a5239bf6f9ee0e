"""Masks that somebody made already: images and GeoJSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from microtome.errors import ConfigError, TissueError
from microtome.slide.tissue import mask_from_geojson
from microtome.slide.types import TissueMask

if TYPE_CHECKING:
    from microtome.slide.types import SlideInfo, SlideRef, SlideView
    from microtome_segmenters import FileConfig

_IMAGES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
_GEOJSON = (".geojson", ".json")

_LARGEST = 8192
"""Longest side of a mask that is kept; a larger one is reduced by a whole factor."""

_JPEG_ZERO = 128
"""JPEG blurs a mask's edges, so that 0 and 255 meet in the middle."""


class FileSegmenter:
    """Reads each slide's mask from a file beside it, in a folder, or named in the manifest."""

    def __init__(self, config: FileConfig) -> None:
        self.config = config
        if config.folder is not None and not Path(config.folder).is_dir():
            raise ConfigError(f"segmenter.folder={config.folder} is no folder.")
        if config.downsample <= 0:
            raise ConfigError(f"segmenter.downsample={config.downsample} must be above 0.")

    def segment(self, views: Sequence[SlideView]) -> list[TissueMask]:
        """Read one mask for each slide.

        Raises:
            TissueError: If a slide has no mask, or one that cannot be read or does not fit.
        """
        return [self._load(view.slide, view.info) for view in views]

    def sources(self, slide: SlideRef) -> tuple[Path, ...]:
        """Name the mask of a slide.

        Raises:
            TissueError: If there is none.
        """
        return (self._find(slide),)

    def _find(self, slide: SlideRef) -> Path:
        if slide.mask_path is not None:
            if not slide.mask_path.is_file():
                raise TissueError(f"{slide.path.name}: there is no mask {slide.mask_path}.")
            return slide.mask_path
        if self.config.folder is None:
            raise TissueError(
                f"{slide.path.name}: segmenter=file needs a mask: a column mask_path in the "
                "manifest, or segmenter.folder=FOLDER with masks named like the slides."
            )
        for name in dict.fromkeys((slide.slide_id, slide.path.stem)):
            for suffix in _IMAGES + _GEOJSON:
                path = Path(self.config.folder) / f"{name}{suffix}"
                if path.is_file():
                    return path
        raise TissueError(
            f"{slide.path.name}: no mask {slide.slide_id}.* in {self.config.folder}; "
            f"looked for {', '.join(_IMAGES + _GEOJSON)}."
        )

    def _load(self, slide: SlideRef, info: SlideInfo) -> TissueMask:
        path = self._find(slide)
        suffix = path.suffix.lower()
        if suffix in _GEOJSON:
            return self._load_geojson(path, info)
        if suffix in _IMAGES:
            return self._load_image(path, info)
        raise TissueError(
            f"{path}: a mask is an image ({' '.join(_IMAGES)}) or GeoJSON ({' '.join(_GEOJSON)})."
        )

    def _load_geojson(self, path: Path, info: SlideInfo) -> TissueMask:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TissueError(f"{path}: cannot be read as GeoJSON: {error}") from error
        size = (info.width, info.height)
        # A mask of a huge slide stays within what an image of it would be.
        downsample = max(self.config.downsample, max(size) / _LARGEST)
        return mask_from_geojson(data, size, downsample, where=str(path))

    def _load_image(self, path: Path, info: SlideInfo) -> TissueMask:
        array = self._tissue(_read_labels(path), path)
        height, width = array.shape
        if min(height, width) == 0:
            raise TissueError(f"{path}: the mask is empty.")
        scale = (info.width / width, info.height / height)
        # A pixel more or less from rounding is no other aspect.
        slack = self.config.aspect_tolerance + 1 / min(width, height)
        if abs(scale[0] / scale[1] - 1) > slack:
            raise TissueError(
                f"{path}: a mask of {width} × {height} pixels does not fit a slide of "
                f"{info.width} × {info.height}: the aspect differs by more than "
                f"{self.config.aspect_tolerance:.0%} (segmenter.aspect_tolerance)."
            )
        factor = -(-max(height, width) // _LARGEST)
        return _reduced(TissueMask(array=array, downsample=scale), factor)

    def _tissue(self, labels: NDArray[np.integer[Any]], path: Path) -> NDArray[np.bool_]:
        if self.config.values:
            return np.isin(labels, self.config.values)
        least = _JPEG_ZERO if path.suffix.lower() in (".jpg", ".jpeg") else 1
        return np.asarray(labels >= least)


def _read_labels(path: Path) -> NDArray[Any]:
    """Read a mask image as one channel: (h, w) of integers."""
    try:
        array = _read_tiff(path) if path.suffix.lower() in (".tif", ".tiff") else _read_image(path)
    except (OSError, ValueError, SyntaxError, PillowImage.DecompressionBombError) as error:
        raise TissueError(f"{path}: the mask cannot be read: {error}") from error
    if array.ndim == 3 and array.shape[2] in (1, 2, 3, 4):
        # Alpha says nothing of tissue; in colour, any channel does.
        array = array[..., : array.shape[2] - (array.shape[2] in (2, 4))].max(2)
    if array.ndim != 2:
        raise TissueError(f"{path}: a mask has one channel; this image is {array.shape}.")
    return array


def _read_image(path: Path) -> NDArray[Any]:
    with warnings.catch_warnings():
        # A mask of a whole slide is large on purpose.
        warnings.simplefilter("ignore", PillowImage.DecompressionBombWarning)
        with PillowImage.open(path) as image:
            return np.asarray(image)


def _read_tiff(path: Path) -> NDArray[Any]:
    """Read the coarsest level of a mask that is still detailed enough."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        levels = tiff.series[0].levels
        enough = [level for level in levels if max(level.shape) >= min(_LARGEST, 4096)]
        return np.asarray((enough[-1] if enough else levels[0]).asarray())


def _reduced(mask: TissueMask, factor: int) -> TissueMask:
    """Reduce a mask by a whole factor: a pixel is tissue where at least half of it is."""
    if factor <= 1:
        return mask
    array = mask.array
    height, width = -(-array.shape[0] // factor), -(-array.shape[1] // factor)
    padded = np.zeros((height * factor, width * factor), bool)
    padded[: array.shape[0], : array.shape[1]] = array
    share = padded.reshape(height, factor, width, factor).mean((1, 3), dtype=np.float32)
    downsample = (mask.downsample[0] * factor, mask.downsample[1] * factor)
    return TissueMask(array=share >= 0.5, downsample=downsample)
