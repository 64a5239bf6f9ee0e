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
from microtome.slide.outline import Ring, edge_rings, signed_area
from microtome.slide.types import TissueMask

if TYPE_CHECKING:
    from microtome.run.settings import TissueSettings

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

    Regions are 4-connected and their rings simple, so the polygons are valid.

    Args:
        mask: Of the whole slide.

    Returns:
        One region for each connected piece, in level-0 pixels along pixel edges.
    """
    import cv2

    scale = np.asarray(mask.downsample, np.float64)
    _, labels = cv2.connectedComponents(mask.array.astype(np.uint8), connectivity=4)
    exteriors: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {}
    for ring, pixel in edge_rings(mask.array):
        label = int(labels[pixel])
        if signed_area(ring) > 0:
            exteriors[label] = ring * scale
        else:
            holes.setdefault(label, []).append(ring * scale)
    regions = [_region(ring, holes.get(label, [])) for label, ring in exteriors.items()]
    return sorted(regions, key=lambda region: -region.area_px)


def _region(exterior: Ring, holes: Sequence[Ring]) -> Region:
    area = signed_area(exterior) + sum(signed_area(hole) for hole in holes)
    return Region(exterior=exterior, holes=tuple(holes), area_px=area)


def regions_geojson(
    regions: Sequence[Region], *, origin: tuple[float, float] = (0, 0), name: str = "Tissue"
) -> dict[str, Any]:
    """Write regions as QuPath annotations.

    Args:
        regions: From `mask_regions`.
        origin: (x, y) in level-0 pixels to subtract, for viewers that crop to a slide's bounds.
        name: The class of the annotations.

    Returns:
        A FeatureCollection with one Polygon each; exteriors run counter-clockwise where y points
        up, holes the other way (RFC 7946, 3.1.6).
    """
    features = [_feature(region, np.asarray(origin, np.float64), name) for region in regions]
    return {"type": "FeatureCollection", "features": features}


def _feature(region: Region, origin: NDArray[np.float64], name: str) -> dict[str, Any]:
    rings = [(ring - origin).round(3).tolist() for ring in (region.exterior, *region.holes)]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": list(_COLOR)},
            "isLocked": False,
        },
    }


def mask_from_geojson(
    data: object, size: tuple[int, int], downsample: float, *, where: str
) -> TissueMask:
    """Rasterise the polygons of a GeoJSON: a mask pixel is tissue if its centre is inside one.

    Takes a FeatureCollection, a Feature, a geometry, a GeometryCollection, or a bare list of
    any of these, as QuPath and other tools write them. Points and lines enclose nothing and are
    passed over. Polygons may overlap: a hole is a hole of its own polygon only.

    Args:
        data: Parsed JSON, coordinates in level-0 pixels.
        size: (width, height) of the slide at level 0.
        downsample: Level-0 pixels per mask pixel that is wanted; the mask's own differs a
            little where it does not divide the size.
        where: What to name in an error: the file.

    Raises:
        TissueError: If the data is no GeoJSON or holds no polygon.
    """
    width = max(1, math.ceil(size[0] / downsample))
    height = max(1, math.ceil(size[1] / downsample))
    scale = (size[0] / width, size[1] / height)
    array = np.zeros((height, width), np.uint8)
    found = 0
    for polygon, place in _polygons(data, where):
        _fill(array, [_ring(r, f"{place}, ring {i}") / scale for i, r in enumerate(polygon)])
        found += 1
    if not found and not _is_empty(data):
        raise TissueError(f"{where} holds no Polygon or MultiPolygon: give tissue as areas.")
    return TissueMask(array=array > 0, downsample=scale)


def _is_empty(data: object) -> bool:
    """Whether a collection is there and says that nothing is tissue."""
    return data == [] or (isinstance(data, Mapping) and data.get("features") == [])


def _polygons(data: object, place: str) -> Iterator[tuple[Sequence[Any], str]]:
    """Give the rings of every polygon below a GeoJSON value, and where it stands."""
    if isinstance(data, list):
        for index, item in enumerate(data):
            yield from _polygons(item, f"{place}, item {index}")
        return
    if not isinstance(data, Mapping) or not isinstance(data.get("type"), str):
        raise TissueError(f"{place}: not a GeoJSON object with a type.")
    kind = data["type"]
    if kind in _NESTED:
        if _NESTED[kind] not in data:
            raise TissueError(f"{place}: the {kind} has no {_NESTED[kind]!r}.")
        child = data[_NESTED[kind]]
        if child is not None:
            yield from _polygons(child, f"{place}, {_NESTED[kind]}")
    elif kind in ("Polygon", "MultiPolygon"):
        for index, rings in enumerate(_members(data, kind, place)):
            if not isinstance(rings, list) or not rings:
                raise TissueError(f"{place}: polygon {index} of the {kind} has no rings.")
            yield rings, f"{place}, polygon {index}"
    elif kind not in _PASSED_OVER:
        raise TissueError(f"{place}: {kind!r} is no GeoJSON type.")


_NESTED = {
    "FeatureCollection": "features",
    "Feature": "geometry",
    "GeometryCollection": "geometries",
}
_PASSED_OVER = ("Point", "MultiPoint", "LineString", "MultiLineString")


def _members(data: Mapping[str, Any], kind: str, place: str) -> list[Any]:
    coordinates = data.get("coordinates")
    if not isinstance(coordinates, list):
        raise TissueError(f"{place}: the {kind} has no list of coordinates.")
    return [coordinates] if kind == "Polygon" else coordinates


def _ring(points: object, place: str) -> Ring:
    """Parse one ring, (n, 2) in level-0 pixels; a third coordinate is left aside."""
    try:
        ring = np.asarray([point[:2] for point in points], np.float64)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        ring = np.empty((0, 0))
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not np.isfinite(ring).all():
        raise TissueError(f"{place}: a ring needs at least three points of two finite numbers.")
    return ring


def _fill(array: NDArray[np.uint8], rings: Sequence[Ring]) -> None:
    """Fill one polygon, given in mask pixels along edges, by the even-odd rule at centres."""
    corner = np.floor(np.min(rings[0], axis=0)).astype(int) - 1
    last = np.ceil(np.max(rings[0], axis=0)).astype(int) + 1
    height, width = array.shape
    x0, y0 = np.maximum(corner, 0).tolist()
    x1, y1 = np.minimum(last, (width, height)).tolist()
    if x1 <= x0 or y1 <= y0:
        return
    inside = _even_odd(rings, (x0, y0, x1, y1))
    array[y0:y1, x0:x1][inside] = 1


def _even_odd(rings: Iterable[Ring], box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Count, row by row, the crossings to the left of each pixel centre."""
    x0, y0, x1, y1 = box
    flips = np.zeros((y1 - y0, x1 - x0 + 1), np.uint8)
    for ring in rings:
        start, end = ring, np.roll(ring, -1, axis=0)
        upper, lower = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
        # Rows whose centre lies in [upper, lower): each crossing is counted once.
        first = np.clip(np.ceil(upper - 0.5), y0, y1).astype(np.int64)
        count = np.clip(np.ceil(lower - 0.5), y0, y1).astype(np.int64) - first
        side = np.repeat(np.arange(len(ring)), count)
        rows = first[side] + np.arange(len(side)) - np.repeat(np.cumsum(count) - count, count)
        rise = end[side, 1] - start[side, 1]
        share = (rows + 0.5 - start[side, 1]) / rise
        crossing = start[side, 0] + share * (end[side, 0] - start[side, 0])
        columns = np.clip(np.ceil(crossing - 0.5), x0, x1).astype(np.int64)
        np.bitwise_xor.at(flips, (rows - y0, columns - x0), np.uint8(1))
    inside: NDArray[np.bool_] = np.bitwise_xor.accumulate(flips, axis=1)[:, :-1] > 0
    return inside
