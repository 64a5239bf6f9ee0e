"""Tissue masks: cleaning, outlines, and GeoJSON both ways.

Outlines run along the *edges* of mask pixels, not through their centres: mask pixel (column,
row) covers ``[column, column + 1) × [row, row + 1)`` times the downsample, so a region's
outline encloses exactly its pixels, and rasterising it again gives them back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import TissueError
from microtome.slide.types import TissueMask

if TYPE_CHECKING:
    from microtome.run.settings import TissueSettings

Ring = NDArray[np.float64]

_COLOR = (0, 160, 80)
"""The colour of the tissue class in a viewer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """A connected piece of tissue in level-0 pixels.

    Attributes:
        exterior: (n, 2) float64 ``x, y``, closed: the last point is the first.
        holes: Rings of the same kind.
        area_px: Area in level-0 pixels, holes taken off.
    """

    exterior: Ring
    holes: tuple[Ring, ...]
    area_px: float


def clean_mask(mask: TissueMask, settings: TissueSettings, mpp: float | None) -> TissueMask:
    """Drop small regions of a mask and fill small holes.

    Holes are filled first, so that a region counts with what was filled. A hole that touches
    the slide's border is no hole.

    Args:
        mask: As a segmenter gave it.
        settings: The least areas, in µm² and as a share of the mask; the larger one decides.
        mpp: µm per level-0 pixel, or None where unknown.

    Raises:
        TissueError: If an area in µm² is asked for and the slide's mpp is unknown.
    """
    hole = _least_pixels(mask, settings.min_hole_um2, settings.min_hole_fraction, mpp)
    region = _least_pixels(mask, settings.min_region_um2, settings.min_region_fraction, mpp)
    array = mask.array
    if hole > 0:
        array = ~_without_small(~array, hole, connectivity=4, keep_border=True)
    if region > 0:
        array = _without_small(array, region, connectivity=8, keep_border=False)
    return TissueMask(array=array, downsample=mask.downsample)


def _least_pixels(mask: TissueMask, um2: float, fraction: float, mpp: float | None) -> float:
    if um2 > 0 and mpp is None:
        raise TissueError(
            "tissue.min_region_um2 and tissue.min_hole_um2 need the slide's mpp, which is "
            "unknown: give mpp=, or use tissue.min_region_fraction and tissue.min_hole_fraction."
        )
    pixel_um2 = mask.downsample[0] * mask.downsample[1] * (mpp or 1.0) ** 2
    return max(um2 / pixel_um2 if um2 > 0 else 0.0, fraction * mask.array.size)


def _without_small(
    array: NDArray[np.bool_], least: float, *, connectivity: int, keep_border: bool
) -> NDArray[np.bool_]:
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        array.astype(np.uint8), connectivity=connectivity
    )
    kept = stats[:, cv2.CC_STAT_AREA] >= least
    if keep_border:
        for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            kept[side] = True
    kept[0] = False
    found: NDArray[np.bool_] = kept[labels]
    return found


def mask_regions(mask: TissueMask) -> list[Region]:
    """Outline a mask's regions, largest first.

    Regions are 4-connected, so a ring never touches itself; holes are 8-connected.

    Args:
        mask: Of the whole slide.

    Returns:
        One region for each connected piece, in level-0 pixels along pixel edges.
    """
    import cv2

    rings = [_simplified(ring) for ring in _edge_rings(mask.array)]
    # An outline has the tissue on its right hand: exteriors and holes differ in orientation.
    outer = [ring for ring in rings if _signed_area(ring) > 0]
    inner = [ring for ring in rings if _signed_area(ring) < 0]
    _, labels = cv2.connectedComponents(mask.array.astype(np.uint8), connectivity=4)
    holes: dict[int, list[Ring]] = {}
    for ring in inner:
        holes.setdefault(_label_of(ring, labels), []).append(ring)
    scale = np.asarray(mask.downsample, np.float64)
    found = [_region(ring, holes.get(_label_of(ring, labels), []), scale) for ring in outer]
    return sorted(found, key=lambda region: -region.area_px)
