"""QuPath's GeoJSON: features, collections, bare arrays, geometries alone."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from microtome.errors import AnnotationError
from microtome.slide.annotations import Annotation, as_points, make_area
from microtome.slide.types import SlideInfo
from microtome_annotations.jsonfile import head_text, read_json

_HEAD = re.compile(
    r'"type"\s*:\s*"(Feature|FeatureCollection|GeometryCollection|(Multi)?(Polygon|Point|LineString))"'
    r'|"(features|geometry|geometries|coordinates)"\s*:|^\s*\[\s*\]\s*$'
)
_DEPTH = {
    **{"Point": 0, "MultiPoint": 0, "LineString": 0},
    **{"Polygon": 1, "MultiLineString": 1, "MultiPolygon": 2},
}
"""Lists around the lists of points of each type; GeoJSON knows no other but collections."""

_DERIVED = ": "
"""Between the names of a class that QuPath derived from another: ``Tumor: Positive``."""

_ELSEWHERE = ("classification", "pathClass", "pathClasses", "name", "childObjects", "measurements")
"""Properties that are not passed on: they are elsewhere, or QuPath's measurements, thousands."""

Made = tuple[BaseGeometry, str]


class GeoJsonReader:
    """Objects in level-0 pixels; the group is the classification, or failing that the name.

    A class that is derived from another (``Tumor: Positive``) is within it (``Tumor``). A
    collection of areas, lines and points gives an object for each of the three.
    """

    def recognises(self, head: bytes) -> bool:
        """Tell by its first 64 KiB whether a file is of this format."""
        return bool(_HEAD.search(head_text(head)))

    def read(self, path: Path, slide: SlideInfo | None = None) -> Sequence[Annotation]:
        """Read a file whole, in its own order, an object's children after it.

        Raises:
            AnnotationError: If it is malformed; names the feature and its path in the file.
        """
        found: list[Annotation] = []
        tree = read_json(path, _compact)
        for number, (feature, place) in enumerate(_features(tree, "$"), 1):
            try:
                found.extend(_annotations(feature, place, f"feature {number}"))
            except _FaultError as error:
                told = f"{path}, feature {number} ({error.place})"
                raise AnnotationError(f"{told}: {error}.") from error
        return found


class _FaultError(ValueError):
    def __init__(self, place: str, what: str) -> None:
        super().__init__(what)
        self.place = place


@dataclass(frozen=True)
class _Broken:
    """What stands where a feature should."""

    what: str


def _compact(node: dict[str, Any]) -> dict[str, Any]:
    """Turn coordinates into arrays as soon as they are read: lists take six times the memory."""
    kind = node.get("type")
    depth = _DEPTH.get(kind) if isinstance(kind, str) else None
    if depth is not None and kind != "Point" and "coordinates" in node:
        # What is wrong is told with its place, once the whole tree is there.
        with contextlib.suppress(ValueError, TypeError):
            node["coordinates"] = _arrays(node["coordinates"], depth)
    return node


def _arrays(values: Any, depth: int) -> Any:
    return [_arrays(value, depth - 1) for value in values] if depth else as_points(values)


def _features(tree: Any, place: str) -> Iterator[tuple[Any, str]]:
    """Give every feature, or geometry that is none's, with its path; children after parents."""
    if isinstance(tree, dict) and tree.get("type") == "FeatureCollection":
        tree, place = tree.get("features"), f"{place}.features"
        if not isinstance(tree, list):
            yield _Broken("it is no list of features"), place
            return
    if isinstance(tree, list):
        for index, item in enumerate(tree):
            yield from _features(item, f"{place}[{index}]")
        return
    yield tree, place
    for owner, at in _owners(tree, place):
        if isinstance(children := owner.get("childObjects"), list):
            yield from _features(children, f"{at}.childObjects")


def _owners(tree: Any, place: str) -> Iterator[tuple[dict[str, Any], str]]:
    if isinstance(tree, dict):
        yield tree, place
        if isinstance(properties := tree.get("properties"), dict):
            yield properties, f"{place}.properties"


def _annotations(feature: Any, place: str, where: str) -> Iterator[Annotation]:
    if isinstance(feature, _Broken):
        raise _FaultError(place, feature.what)
    if not isinstance(feature, dict):
        raise _FaultError(place, "it is no object")
    geometry: Any = feature
    properties: Any = {}
    if feature.get("type") == "Feature":
        geometry, properties = feature.get("geometry"), feature.get("properties") or {}
        place = f"{place}.geometry"
    if not isinstance(properties, dict):
        raise _FaultError(place, "its properties are no object")
    if geometry is None:  # what has no place: the root of a hierarchy
        return
    name = properties.get("name")
    name = name if isinstance(name, str) else ""
    group = _group(properties) or name
    names = group.split(_DERIVED)
    rest = {key: value for key, value in properties.items() if key not in _ELSEWHERE}
    for made, repaired in _shapes(geometry, place):
        yield Annotation(
            geometry=made,
            group=group,
            within=tuple(_DERIVED.join(names[:end]) for end in range(len(names) - 1, 0, -1)),
            name=name,
            where=where,
            repaired=repaired,
            properties=rest,
        )


def _group(properties: dict[str, Any]) -> str:
    """Find the classification, which versions of QuPath and who passes files on write so or so."""
    for key in ("classification", "pathClass", "pathClasses"):
        value = properties.get(key)
        if isinstance(value, str) and value.lstrip().startswith("{"):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        if isinstance(value, dict):
            value = value.get("name") or value.get("names")
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            value = _DERIVED.join(value)
        if isinstance(value, str) and value:
            return value
    return ""


def _shapes(geometry: Any, place: str) -> list[Made]:
    """Make at most one area, one set of lines and one of points."""
    parts = list(_parts(geometry, place))
    if len(parts) == 1:
        return [_make(*parts[0])]
    polygons = [(v, at) for kind, v, at in parts for v in _polygons(kind, v)]
    made = [_make("MultiPolygon", [v for v, _ in polygons], place)] if polygons else []
    for kinds in (("LineString", "MultiLineString"), ("Point", "MultiPoint")):
        loose = [_make(kind, v, at)[0] for kind, v, at in parts if kind in kinds]
        if loose:
            made.append((shapely.union_all(loose), ""))
    return made


def _parts(geometry: Any, place: str) -> Iterator[tuple[str, Any, str]]:
    """Give (type, coordinates, place) of a geometry, or of those in a collection; not empty."""
    if not isinstance(geometry, dict):
        raise _FaultError(place, "it is no geometry")
    kind = geometry.get("type")
    if kind == "GeometryCollection":
        members = geometry.get("geometries")
        if not isinstance(members, list):
            raise _FaultError(f"{place}.geometries", "it is no list")
        for index, member in enumerate(members):
            yield from _parts(member, f"{place}.geometries[{index}]")
        return
    if not isinstance(kind, str) or kind not in _DEPTH:
        raise _FaultError(place, f"its type is {kind!r}; GeoJSON's are {', '.join(_DEPTH)}")
    coordinates = geometry.get("coordinates")
    if not isinstance(coordinates, list | np.ndarray):
        raise _FaultError(f"{place}.coordinates", "it is no list")
    if len(coordinates):
        yield kind, coordinates, f"{place}.coordinates"


def _polygons(kind: str, coordinates: Any) -> list[Any]:
    if kind == "MultiPolygon":
        return list(coordinates)
    return [coordinates] if kind == "Polygon" else []


def _make(kind: str, coordinates: Any, place: str) -> Made:
    try:
        if kind in ("Polygon", "MultiPolygon"):
            return make_area(_polygons(kind, coordinates))
        if kind == "Point":
            return shapely.Point(as_points([coordinates])[0]), ""
        if kind == "MultiLineString":
            return shapely.MultiLineString([as_points(line) for line in coordinates]), ""
        points = as_points(coordinates)
        return (shapely.MultiPoint if kind == "MultiPoint" else shapely.LineString)(points), ""
    except (ValueError, TypeError, shapely.errors.GEOSException) as error:
        raise _FaultError(place, str(error)) from error
