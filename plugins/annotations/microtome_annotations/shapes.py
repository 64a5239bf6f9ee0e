"""Shapes that several tools draw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from microtome.slide.annotations import as_points

_CORNERS = 128
"""Of the polygon that stands for an ellipse: its area is 0.04 % less."""


def box_points(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the corners of the box around points, (4, 2), clockwise on screen."""
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def ellipse_points(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the outline of the ellipse that fills the box around points, (128, 2)."""
    low, high = points.min(axis=0), points.max(axis=0)
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    unit = np.stack([np.cos(angles), np.sin(angles)], 1)
    outline: NDArray[np.float64] = (low + high) / 2 + unit * (high - low) / 2
    return outline


def line_or_points(points: Sequence[tuple[float, float]]) -> BaseGeometry:
    """Make a line of several points, a point of one.

    Raises:
        ValueError: If there is none.
    """
    if not points:
        raise ValueError("it has no points")
    places = as_points(points)
    return shapely.Point(places[0]) if len(places) == 1 else shapely.LineString(places)


def without(areas: Sequence[BaseGeometry], holes: Sequence[BaseGeometry]) -> list[BaseGeometry]:
    """Cut holes out of areas.

    Args:
        areas: Valid polygons.
        holes: Likewise; need not lie inside.

    Returns:
        What is left of each area: empty where nothing is.
    """
    left = list(areas)
    if not (left and holes):
        return left
    met: dict[int, list[BaseGeometry]] = defaultdict(list)
    for area, hole in shapely.STRtree(holes).query(left, predicate="intersects").T.tolist():
        met[area].append(holes[hole])
    for area, those in met.items():
        left[area] = left[area].difference(shapely.union_all(those))
    return left
