"""ASAP's annotations: https://computationalpathologygroup.github.io/ASAP."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import shapely
from shapely.geometry.base import BaseGeometry

from microtome.slide.annotations import Annotation, as_points, make_area
from microtome.slide.types import SlideInfo
from microtome_annotations.jsonfile import head_text
from microtome_annotations.shapes import box_points, line_or_points
from microtome_annotations.xmlfile import FaultError, number, parse

_NONE = "None"
"""What ASAP calls the group of what is in none."""

_HEAD = re.compile(r"<ASAP_Annotations\b|\bPartOfGroup\s*=|<Coordinate\b")
_AREAS = ("polygon", "spline", "rectangle")
_POINTS = ("dot", "pointset")
_TYPES = "Polygon, Spline, Rectangle, Dot, PointSet and Measurement"


class AsapReader:
    """Outlines in level-0 pixels, each part of a group, which may be part of another.

    A spline is the polygon through its points, as ASAP's own masks have it.
    """

    def recognises(self, head: bytes) -> bool:
        """Tell by its first 64 KiB whether a file is of this format."""
        return bool(_HEAD.search(head_text(head)))

    def read(self, path: Path, slide: SlideInfo | None = None) -> Sequence[Annotation]:
        """Read a file whole, in its own order."""
        handler = _Handler()
        parse(path, handler)
        return list(handler.annotations())


@dataclass
class _Drawn:
    attributes: Mapping[str, str]
    line: int
    points: list[tuple[float, float]] = field(default_factory=list)
    order: list[float] = field(default_factory=list)

    def ordered(self) -> list[tuple[float, float]]:
        ranks = sorted(range(len(self.order)), key=self.order.__getitem__)
        return [self.points[rank] for rank in ranks]


class _Handler:
    def __init__(self) -> None:
        self._made: list[tuple[_Drawn, BaseGeometry, str]] = []
        self._parents: dict[str, str] = {}
        self._open: _Drawn | None = None

    def start(self, tag: str, attributes: Mapping[str, str], line: int) -> None:
        if tag == "Annotation":
            self._open = _Drawn(attributes, line)
        elif tag == "Coordinate" and self._open is not None:
            x, y = (number(attributes.get(axis), f"the {axis} of a point", line) for axis in "XY")
            order = attributes.get("Order", str(len(self._open.order)))
            self._open.order.append(number(order, "the Order of a point", line))
            self._open.points.append((x, y))
        elif tag == "Group" and "Name" in attributes:
            self._parents[attributes["Name"]] = attributes.get("PartOfGroup", _NONE)

    def end(self, tag: str, text: str) -> None:
        drawn = self._open
        if tag != "Annotation" or drawn is None:
            return
        self._open = None
        try:
            self._made.append((drawn, *_shape(drawn)))
        except ValueError as error:
            name = drawn.attributes.get("Name", "")
            raise FaultError(drawn.line, f"the annotation {name!r}: {error}") from error
        drawn.points.clear()
        drawn.order.clear()

    def annotations(self) -> Iterator[Annotation]:
        """Give what was read, now that all groups are known: they come last in the file."""
        for drawn, geometry, repaired in self._made:
            rest = dict(drawn.attributes)
            group, *within = self._groups(rest.pop("PartOfGroup", _NONE))
            yield Annotation(
                geometry=geometry,
                group=group,
                within=tuple(within),
                name=rest.pop("Name", ""),
                where=f"line {drawn.line}",
                repaired=repaired,
                properties=rest,
            )

    def _groups(self, group: str) -> list[str]:
        """Give a group and what it is part of; one empty name for no group."""
        chain: list[str] = []
        while group not in (_NONE, "", *chain):
            chain.append(group)
            group = self._parents.get(group, _NONE)
        return chain or [""]


def _shape(drawn: _Drawn) -> tuple[BaseGeometry, str]:
    points = drawn.ordered()
    kind = drawn.attributes.get("Type", _NONE).casefold()
    if kind in ("none", ""):
        kind = "polygon" if len(points) > 2 else "measurement"
    if not points:
        raise ValueError("it has no points")
    if kind == "rectangle" and len(points) == 2:
        return make_area([[box_points(as_points(points))]])
    if kind in _AREAS:
        return make_area([[points]])
    if kind in _POINTS:
        places = as_points(points)
        return (shapely.Point(places[0]) if len(places) == 1 else shapely.MultiPoint(places)), ""
    if kind == "measurement":
        return line_or_points(points), ""
    raise ValueError(f"its Type is {drawn.attributes['Type']!r}; ASAP's are {_TYPES}")
