"""NDP.view's annotations, which lie beside a Hamamatsu slide: ``slide.ndpi.ndpa``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from microtome.errors import AnnotationError
from microtome.slide.annotations import Annotation, as_points, make_area
from microtome.slide.types import SlideInfo
from microtome_annotations.jsonfile import head_text
from microtome_annotations.shapes import ellipse_points
from microtome_annotations.xmlfile import FaultError, number, parse

_HEAD = re.compile(r"<ndpviewstate\b|<annotations\b")
_OFFSETS = ("hamamatsu.XOffsetFromSlideCentre", "hamamatsu.YOffsetFromSlideCentre")
_MPPS = ("openslide.mpp-x", "openslide.mpp-y")
_NUMBERS = ("x", "y", "x1", "y1", "x2", "y2", "radius")


class NdpaReader:
    """Outlines in nm from the centre of the glass; what an object is titled is its group.

    The slide's own resolution counts, which NDP.view took them with, not one that was given to
    microtome instead.
    """

    def recognises(self, head: bytes) -> bool:
        """Tell by its first 64 KiB whether a file is of this format."""
        return bool(_HEAD.search(head_text(head)))

    def read(self, path: Path, slide: SlideInfo | None = None) -> Sequence[Annotation]:
        """Read a file whole, in its own order; objects without a place are not given.

        Raises:
            AnnotationError: If it is malformed, or the slide is not given or does not say where
                the centre of its glass is.
        """
        handler = _Handler(_frame(path, slide))
        parse(path, handler)
        return handler.found


@dataclass(frozen=True)
class _Frame:
    """Where nm are in level-0 pixels: ``nm * scale + shift``, (x, y) each."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]

    def pixels(self, places: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
        return as_points(np.asarray(places, np.float64) * self.scale + self.shift)


def _frame(path: Path, slide: SlideInfo | None) -> _Frame:
    if slide is None:
        raise AnnotationError(
            f"{path} counts from the centre of its slide, and cannot be read alone."
        )
    try:
        offset = np.array([float(slide.properties[name]) for name in _OFFSETS])
    except (KeyError, ValueError) as error:
        raise AnnotationError(_without_centre(path, slide)) from error
    mpp = _own_mpp(slide)
    if mpp is None:
        raise AnnotationError(
            f"{path} is in nm, and {slide.path} does not say how large its pixels are. "
            "Give its µm per pixel with mpp=0.23 or mpp_csv=FILE."
        )
    scale = 1 / (1000 * mpp)
    return _Frame(scale, np.array([slide.width, slide.height]) / 2 - offset * scale)


def _without_centre(path: Path, slide: SlideInfo) -> str:
    if slide.path.suffix.casefold() == ".ndpi" and slide.reader != "openslide":
        return (
            f"{path} counts from the centre of the glass, and reader={slide.reader} does not say "
            f"where in {slide.path} that is ({_OFFSETS[0]}). Read the slide with reader=openslide."
        )
    return (
        f"{path} is in nm from the centre of the glass, and {slide.path} does not say where that "
        f"is, as an NDPI does ({_OFFSETS[0]}). Label the NDPI that it was drawn on, or give "
        "outlines in this slide's pixels: QuPath's GeoJSON, ASAP's XML."
    )


def _own_mpp(slide: SlideInfo) -> NDArray[np.float64] | None:
    stated = [slide.properties.get(name) for name in _MPPS]
    resolved = slide.resolution.mpp_x, slide.resolution.mpp_y
    for pair in (stated, resolved):
        try:
            mpp = np.array([float(value or "nan") for value in pair])
        except ValueError:
            continue
        if np.isfinite(mpp).all() and (mpp > 0).all():
            return mpp
    return None


@dataclass
class _Drawn:
    attributes: Mapping[str, str]
    line: int
    numbers: dict[str, float] = field(default_factory=dict)
    points: list[tuple[float, float]] = field(default_factory=list)
    point: dict[str, float] | None = None
    rest: dict[str, str] = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        line = self.attributes.get("displayname", "").casefold().endswith("line")
        return self.rest.get("closed", "0" if line else "1") != "0"

    def shape(self, frame: _Frame) -> tuple[BaseGeometry, str] | None:
        """Tell what it is by what is written of it; None where it has no place."""
        n = self.numbers
        if self.points:
            places = frame.pixels(self.points)
            if self.closed:
                return make_area([[places]])
            return (shapely.LineString(places) if len(places) > 1 else shapely.Point(places[0])), ""
        if {"x", "y", "radius"} <= n.keys():
            x, y, radius = n["x"], n["y"], n["radius"]
            box = [(x - radius, y - radius), (x + radius, y + radius)]
            return make_area([[ellipse_points(frame.pixels(box))]])
        if {"x1", "y1", "x2", "y2"} <= n.keys():
            return shapely.LineString(frame.pixels([(n["x1"], n["y1"]), (n["x2"], n["y2"])])), ""
        if {"x", "y"} <= n.keys():
            return shapely.Point(frame.pixels([(n["x"], n["y"])])[0]), ""
        return None


class _Handler:
    def __init__(self, frame: _Frame) -> None:
        self.found: list[Annotation] = []
        self._frame = frame
        self._view: dict[str, str] = {}
        self._open: _Drawn | None = None
        self._line = 0

    def start(self, tag: str, attributes: Mapping[str, str], line: int) -> None:
        self._line = line
        if tag == "ndpviewstate":
            self._view = {"id": attributes.get("id", "")}
        elif tag == "annotation":
            self._open = _Drawn(attributes, line)
        elif tag == "point" and self._open is not None:
            self._open.point = {}

    def end(self, tag: str, text: str) -> None:
        drawn = self._open
        if tag == "annotation" and drawn is not None:
            self._open = None
            self._finish(drawn)
        elif tag == "point" and drawn is not None and drawn.point is not None:
            if drawn.point.keys() != {"x", "y"}:
                raise FaultError(self._line, "a point has no x or no y")
            drawn.points.append((drawn.point["x"], drawn.point["y"]))
            drawn.point = None
        elif drawn is not None and tag in _NUMBERS:
            kept = drawn.numbers if drawn.point is None else drawn.point
            kept[tag] = number(text, tag, self._line)
        elif drawn is not None:
            drawn.rest[tag] = text
        elif text:
            self._view[tag] = text

    def _finish(self, drawn: _Drawn) -> None:
        title = self._view.get("title", "")
        unit = self._view.get("coordformat", "nanometers")
        if unit.casefold() != "nanometers":
            raise FaultError(drawn.line, f"{title!r} is in {unit!r}; NDP.view writes nanometers")
        try:
            made = drawn.shape(self._frame)
        except ValueError as error:
            raise FaultError(drawn.line, f"the annotation {title!r}: {error}") from error
        if made is not None:
            self.found.append(
                Annotation(
                    geometry=made[0],
                    group=title,
                    where=f"line {drawn.line}",
                    repaired=made[1],
                    properties={**drawn.attributes, "details": self._view.get("details", "")},
                )
            )
