"""Aperio ImageScope's annotations, as it saves them beside a slide."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from shapely.geometry.base import BaseGeometry

from microtome.slide.annotations import Annotation, as_points, make_area
from microtome.slide.types import SlideInfo
from microtome_annotations.jsonfile import head_text
from microtome_annotations.shapes import box_points, ellipse_points, line_or_points, without
from microtome_annotations.xmlfile import FaultError, number, parse

_HEAD = re.compile(r"<Annotations\b")
_ASAP = re.compile(r"\bPartOfGroup\s*=|<Coordinate\b")
_FREEHAND, _RECTANGLE, _ELLIPSE = "0", "1", "2"
_UNNAMED = "Description"
"""The attribute that ImageScope gives to every layer."""


class ImageScopeReader:
    """Regions in layers, in level-0 pixels; the layer is the group.

    A layer without a name is called by its first attribute's value or name, else `Layer ID`.
    Freehand regions, rectangles and ellipses are areas, rulers and arrows are lines. What was
    drawn with the negative pen is cut out: of the region that it names, else of its whole layer.
    """

    def recognises(self, head: bytes) -> bool:
        """Tell by its first 64 KiB whether a file is of this format."""
        text = head_text(head)
        return bool(_HEAD.search(text)) and not _ASAP.search(text)

    def read(self, path: Path, slide: SlideInfo | None = None) -> Sequence[Annotation]:
        """Read a file whole, in its own order; negative regions are holes and not given."""
        handler = _Handler()
        parse(path, handler)
        return handler.found


@dataclass
class _Region:
    attributes: Mapping[str, str]
    line: int
    points: list[tuple[float, float]] = field(default_factory=list)
    geometry: BaseGeometry = None
    repaired: str = ""

    @property
    def negative(self) -> bool:
        return self.attributes.get("NegativeROA", "0") not in ("0", "")

    def close(self) -> None:
        """Make its shape once all its vertices are there."""
        kind = self.attributes.get("Type", _FREEHAND)
        if kind not in (_FREEHAND, _RECTANGLE, _ELLIPSE):
            self.geometry = line_or_points(self.points)
            return
        outline = as_points(self.points)
        if kind == _RECTANGLE and len(outline) == 2:
            outline = box_points(outline)
        # Files hold an ellipse as the corners of its box or as the ends of its axes: one box.
        elif kind == _ELLIPSE and len(np.unique(outline, axis=0)) in (2, 4):
            outline = ellipse_points(outline)
        self.geometry, self.repaired = make_area([[outline]])


@dataclass
class _Layer:
    attributes: Mapping[str, str]
    called: str = ""
    regions: list[_Region] = field(default_factory=list)

    @property
    def name(self) -> str:
        own = self.attributes.get("Name", "") or self.called
        return own or f"Layer {self.attributes.get('Id', '')}".rstrip()


class _Handler:
    def __init__(self) -> None:
        self.found: list[Annotation] = []
        self._layer: _Layer | None = None
        self._region: _Region | None = None

    def start(self, tag: str, attributes: Mapping[str, str], line: int) -> None:
        if tag == "Annotation":
            self._layer = _Layer(attributes)
        elif self._layer is None:
            return
        elif tag == "Region":
            self._region = _Region(attributes, line)
        elif tag == "Vertex" and self._region is not None:
            x, y = (number(attributes.get(axis), f"the {axis} of a vertex", line) for axis in "XY")
            self._region.points.append((x, y))
        elif tag == "Attribute" and self._region is None and not self._layer.called:
            name = attributes.get("Name", "")
            self._layer.called = attributes.get("Value") or (name if name != _UNNAMED else "")

    def end(self, tag: str, text: str) -> None:
        region, layer = self._region, self._layer
        if tag == "Region" and region is not None and layer is not None:
            self._region = None
            try:
                region.close()
            except ValueError as error:
                told = f"the region {region.attributes.get('Id', '')!r} of {layer.name!r}"
                raise FaultError(region.line, f"{told}: {error}") from error
            region.points.clear()
            layer.regions.append(region)
        elif tag == "Annotation" and layer is not None:
            self._layer = None
            self.found.extend(_annotations(layer))


def _annotations(layer: _Layer) -> Iterator[Annotation]:
    drawn = [region for region in layer.regions if not region.negative]
    for region, geometry in zip(drawn, _cut(layer, drawn), strict=True):
        if geometry.is_empty:
            continue
        yield Annotation(
            geometry=geometry,
            group=layer.name,
            name=region.attributes.get("Text", ""),
            where=f"line {region.line}",
            repaired=region.repaired,
            properties=dict(region.attributes),
        )


def _cut(layer: _Layer, drawn: list[_Region]) -> list[BaseGeometry]:
    """Take what is negative out of the regions of a layer."""
    ids = {region.attributes.get("Id") for region in drawn}
    named: dict[str | None, list[BaseGeometry]] = defaultdict(list)
    for region in layer.regions:
        if region.negative and region.geometry.area > 0:
            of = region.attributes.get("InputRegionId")
            named[of if of in ids else None].append(region.geometry)
    areas = [i for i, region in enumerate(drawn) if region.geometry.area > 0]
    geometries = [region.geometry for region in drawn]
    for i, left in zip(areas, without([geometries[i] for i in areas], named[None]), strict=True):
        own = named.get(drawn[i].attributes.get("Id"), []) if named else []
        geometries[i] = without([left], own)[0] if own else left
    return geometries
