"""Pictures of what a run did to a slide: its tiles, its mask, its outlines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ConfigError
from microtome.slide.regions import find_regions
from microtome.slide.tissue import mask_regions
from microtome.slide.types import RGB, SlideView, TileGrid, TissueMask

KINDS = ("grid", "mask", "contours")
"""The overlays there are."""

_GRID: RGB = (20, 90, 200)
_REGION: RGB = (140, 20, 120)
_TISSUE: RGB = (0, 160, 80)
_HOLE: RGB = (220, 60, 30)
_TINT = 0.4


def draw_overlay(
    kind: str, view: SlideView, *, mask: TissueMask, grid: TileGrid | None
) -> NDArray[np.uint8]:
    """Draw one overlay.

    Args:
        kind: One of `KINDS`: outlines of tiles and regions, the mask as a tint, or its outlines
            with holes.
        view: The picture to draw on; it is left as it is.
        mask: The tissue.
        grid: The tiles; needed for ``"grid"``.

    Returns:
        (h, w, 3) uint8 RGB of the view's size.

    Raises:
        ConfigError: If there is no such overlay, or no grid to draw.
    """
    if kind == "grid":
        if grid is None:
            raise ConfigError("The grid overlay needs tiles: use mask or contours instead.")
        return _draw_grid(view, grid)
    if kind == "mask":
        return _draw_mask(view, mask)
    if kind == "contours":
        return _draw_contours(view, mask)
    raise ConfigError(f"There is no overlay {kind!r}. Available: {', '.join(KINDS)}.")


def _draw_grid(view: SlideView, grid: TileGrid) -> NDArray[np.uint8]:
    """Draw every tile's outline, and over them those of regions."""
    image = view.image.copy()
    sides = np.asarray(grid.geometry.size_level0)
    image[_outlines(view, grid.coords, sides)] = _GRID
    if tiles := grid.region_tiles:
        image[_outlines(view, find_regions(grid).coords, sides * tiles)] = _REGION
    return image


def _outlines(
    view: SlideView, coords: NDArray[np.int32], sides: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Find the outlines of squares, as an exact count of pixels whatever their number."""
    height, width = view.image.shape[:2]
    corner, size = coords[:, :2] / view.downsample, sides / view.downsample
    first = np.floor(corner).astype(np.int64)
    # Outlines of neighbours share a line, or the tiles of a small view would be all outline.
    last = np.maximum(np.floor(corner + size).astype(np.int64), first)
    x0, y0 = np.clip(first, 0, (width - 1, height - 1)).T
    x1, y1 = np.clip(last, 0, (width - 1, height - 1)).T
    lines = np.zeros((height + 1, width + 1), np.int32)
    for top in (y0, y1):
        np.add.at(lines, (top, x0), 1)
        np.add.at(lines, (top, x1 + 1), -1)
    covered = np.cumsum(lines, axis=1)[:height, :width] > 0
    lines[:] = 0
    for left in (x0, x1):
        np.add.at(lines, (y0, left), 1)
        np.add.at(lines, (y1 + 1, left), -1)
    covered |= np.cumsum(lines, axis=0)[:height, :width] > 0
    return covered


def _draw_mask(view: SlideView, mask: TissueMask) -> NDArray[np.uint8]:
    """Tint the tissue, sampling the mask at the view's pixel centres."""
    rows, columns = (
        np.minimum((np.arange(n) + 0.5) * ours / theirs, limit - 1).astype(np.int64)
        for n, ours, theirs, limit in (
            (view.image.shape[0], view.downsample[1], mask.downsample[1], mask.array.shape[0]),
            (view.image.shape[1], view.downsample[0], mask.downsample[0], mask.array.shape[1]),
        )
    )
    tissue = mask.array[np.ix_(rows, columns)]
    image = view.image.copy()
    tint = np.asarray(_TISSUE, np.float32) * _TINT
    image[tissue] = (image[tissue] * (1 - _TINT) + tint).astype(np.uint8)
    return image


def _draw_contours(view: SlideView, mask: TissueMask) -> NDArray[np.uint8]:
    """Draw outlines in one colour and the outlines of holes in another."""
    import cv2

    image = view.image.copy()
    thickness = max(1, round(max(image.shape[:2]) / 1000))
    regions = mask_regions(mask)
    holes = [hole for region in regions for hole in region.holes]
    for rings, colour in (([r.exterior for r in regions], _TISSUE), (holes, _HOLE)):
        # cv2 means pixel centres: an edge at x lies half a pixel before pixel x.
        points = [np.round(ring / view.downsample - 0.5).astype(np.int32) for ring in rings]
        cv2.polylines(image, points, True, colour, thickness)
    return image
