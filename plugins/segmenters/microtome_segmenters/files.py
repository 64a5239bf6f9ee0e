"""Masks that somebody made already: images and GeoJSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
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
        try:
            array, (width, height), factor = self._read(path)
        except (OSError, ValueError, SyntaxError, PillowImage.DecompressionBombError) as error:
            raise TissueError(f"{path}: the mask cannot be read: {error}") from error
        scale = (info.width / width, info.height / height)
        # A pixel more or less from rounding is no other aspect.
        slack = self.config.aspect_tolerance + 1 / min(width, height)
        if abs(scale[0] / scale[1] - 1) > slack:
            raise TissueError(
                f"{path}: a mask of {width} × {height} pixels does not fit a slide of "
                f"{info.width} × {info.height}: the aspect differs by more than "
                f"{self.config.aspect_tolerance:.0%} (segmenter.aspect_tolerance)."
            )
        return TissueMask(array=array, downsample=(scale[0] * factor, scale[1] * factor))

    def _read(self, path: Path) -> _Reduced:
        if path.suffix.lower() in (".tif", ".tiff"):
            return _read_tiff(path, self._tissue)
        jpeg = path.suffix.lower() in (".jpg", ".jpeg")
        labels = _read_image(path)
        if jpeg and not self.config.values:
            labels = np.where(labels >= _JPEG_ZERO, labels, 0)
        size = (labels.shape[1], labels.shape[0])
        factor = _factor(size)
        counts = np.zeros((-(-size[1] // factor), -(-size[0] // factor)), np.int64)
        _count(counts, self._tissue(labels), (0, 0), factor)
        return _half(counts, size, factor), size, factor

    def _tissue(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell which pixels are tissue, in one channel or several."""
        if labels.ndim == 3:
            # Alpha says nothing of tissue; in colour, any channel does.
            channels = labels.shape[2] - (labels.shape[2] in (2, 4))
            labels = labels[..., :channels].max(2)
        if self.config.values:
            return np.isin(labels, self.config.values)
        return np.asarray(labels != 0)


_Reduced = tuple[NDArray[np.bool_], tuple[int, int], int]
"""A mask, the (width, height) that it had in the file, and by what it was reduced."""


def _factor(size: tuple[int, int]) -> int:
    if min(size) < 1:
        raise ValueError("it has no pixels")
    return -(-max(size) // _LARGEST)


def _count(
    counts: NDArray[np.int64], tissue: NDArray[np.bool_], corner: tuple[int, int], factor: int
) -> None:
    """Add a part of a mask to a reduced count of its tissue pixels.

    Args:
        counts: (h, w) over the whole mask, added to in place.
        tissue: (n, m) a part of it.
        corner: (row, column) of that part's first pixel.
        factor: Mask pixels per reduced pixel and axis.
    """
    total: NDArray[np.int64] = tissue.astype(np.int64) if factor == 1 else tissue.view(np.int8)
    spans = []
    for axis, first in enumerate(corner):
        place = (first + np.arange(tissue.shape[axis])) // factor
        starts = np.flatnonzero(np.diff(place, prepend=-1))
        total = np.add.reduceat(total, starts, axis=axis, dtype=np.int64)
        spans.append(slice(int(place[0]), int(place[-1]) + 1))
    counts[spans[0], spans[1]] += total


def _half(counts: NDArray[np.int64], size: tuple[int, int], factor: int) -> NDArray[np.bool_]:
    """Call a reduced pixel tissue where at least half of what it covers is."""
    width = np.minimum(size[0] - np.arange(counts.shape[1]) * factor, factor)
    height = np.minimum(size[1] - np.arange(counts.shape[0]) * factor, factor)
    return np.asarray(2 * counts >= height[:, None] * width)


def _read_image(path: Path) -> NDArray[Any]:
    with warnings.catch_warnings():
        # A mask of a whole slide is large on purpose.
        warnings.simplefilter("ignore", PillowImage.DecompressionBombWarning)
        with PillowImage.open(path) as image:
            return np.asarray(image)


def _read_tiff(path: Path, is_tissue: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> _Reduced:
    """Read the coarsest level that is still detailed enough, tile by tile."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        levels = [level.keyframe for level in tiff.series[0].levels]
        enough = [p for p in levels if max(p.imagewidth, p.imagelength) >= _LARGEST // 2]
        page = enough[-1] if enough else levels[0]
        size = (page.imagewidth, page.imagelength)
        factor = _factor(size)
        counts = np.zeros((-(-size[1] // factor), -(-size[0] // factor)), np.int64)
        for data, index, _ in page.segments():
            if data is not None:
                row, column = index[-3], index[-2]
                part = data[0][: size[1] - row, : size[0] - column]
                _count(counts, is_tissue(part), (row, column), factor)
    return _half(counts, size, factor), size, factor
