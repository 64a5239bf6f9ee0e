"""What people drew on a slide: one model for the files of every tool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry


_FARTHEST = 2**31
"""Pixels from the corner that no slide reaches, and coordinates of tiles cannot."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Annotation:
    """One drawn object.

    Attributes:
        geometry: In level-0 pixels, x to the right and y down, from the top left corner of level
            0: a valid (Multi)Polygon with its holes, or lines or points, of which no area is made.
        group: What the tool calls its class: ASAP's ``PartOfGroup``, QuPath's classification,
            the name of ImageScope's layer. Empty if it has none.
        within: The groups that this group is part of, the nearest first.
        name: Its own name; empty if it has none.
        where: Where in its file it is, for messages: ``line 12``, ``feature 3``.
        repaired: What was wrong with its outline as it was drawn; empty if nothing was.
        properties: What else the file says of it, as the file names it.
    """

    geometry: BaseGeometry
    group: str = ""
    within: tuple[str, ...] = ()
    name: str = ""
    where: str = ""
    repaired: str = ""
    properties: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def as_points(values: ArrayLike) -> NDArray[np.float64]:
    """Check a list of places.

    Args:
        values: (n, 2) ``x, y``, or (n, 3 or more), of which the rest is left out.

    Returns:
        (n, 2) float64, finite and less than 2**31 from the corner.

    Raises:
        ValueError: If they are no such list; says which point is wrong, counted from 1.
    """
    try:
        points = np.asarray(values)
    except (ValueError, OverflowError):  # of lists of several lengths
        points = np.empty(0, object)
    if not points.size and points.dtype != object:
        return np.empty((0, 2))
    if points.ndim != 2 or points.shape[1] < 2 or points.dtype.kind not in "iuf":
        raise ValueError(_first_bad(values))
    points = points[:, :2].astype(np.float64)
    if not (np.abs(points) < _FARTHEST).all():
        raise ValueError(_first_bad(values))
    return points


def _first_bad(values: Any) -> str:
    """Tell which of a list of points is none."""
    if not isinstance(values, Sequence | np.ndarray):
        return f"{_short(values)} stands where its points should"
    for number, point in enumerate(values, 1):
        pair = isinstance(point, Sequence | np.ndarray) and len(point) > 1
        if not pair or any(isinstance(v, str | bool) or not _is_near(v) for v in point[:2]):
            told = point.tolist() if isinstance(point, np.ndarray) else point
            return f"its point {number} is {_short(told)}, which is no place"
    return "its points are not pairs of numbers"


def _is_near(value: Any) -> bool:
    try:
        return bool(abs(value) < _FARTHEST)
    except TypeError:
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def make_area(polygons: Iterable[Sequence[ArrayLike]]) -> tuple[BaseGeometry, str]:
    """Make a valid area of outlines as tools write them.

    An outline that crosses itself encloses what it goes around at least once, as painting it
    would. Polygons that overlap are one.

    Args:
        polygons: Of each its rings, (n, 2) ``x, y`` closed or not: the outline, then its holes.

    Returns:
        A Polygon or MultiPolygon, and what was wrong with it: empty if nothing was.

    Raises:
        ValueError: If a ring has fewer than three points or one that is no place, or if no area
            is enclosed.
    """
    import shapely

    polygons = list(polygons)
    made = []
    for number, rings in enumerate(polygons, 1):
        try:
            made.append(_polygon(rings))
        except ValueError as error:
            told = f"in its polygon {number}, {error}" if len(polygons) > 1 else str(error)
            raise ValueError(told) from None
    area = made[0] if len(made) == 1 else shapely.MultiPolygon(made)
    if shapely.is_valid(area):
        return area, ""
    # The other method takes every second crossing for a hole.
    mended = shapely.make_valid(area, method="structure", keep_collapsed=False)
    parts = [part for part in shapely.get_parts(mended) if part.area > 0]
    if not parts:
        raise ValueError("its points enclose no area")
    wrong: str = shapely.is_valid_reason(area)
    return (parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)), wrong


def _polygon(rings: Sequence[ArrayLike]) -> BaseGeometry:
    import shapely

    if not isinstance(rings, Sequence) or not rings:
        raise ValueError("it has no outline")
    made = [_ring(values, hole=number) for number, values in enumerate(rings)]
    if len(made) == 1:
        return shapely.polygons(made[0])
    return shapely.polygons(
        shapely.linearrings(made[0]), holes=[shapely.linearrings(hole) for hole in made[1:]]
    )


def _ring(values: ArrayLike, *, hole: int) -> NDArray[np.float64]:
    try:
        points = as_points(values)
        closed = len(points) > 1 and bool((points[0] == points[-1]).all())
        if (count := len(points) - closed) < 3:
            told = f"{count} point{'' if count == 1 else 's'}"
            raise ValueError(f"it has {told}, and an area needs three")
    except ValueError as error:
        raise ValueError(f"in its hole {hole}, {error}" if hole else str(error)) from None
    return points if closed else np.concatenate([points, points[:1]])
