"""Files of annotations as the tools write them, with what a test wants drawn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from microtome.slide.types import SlideInfo
from microtome.testing import AnnotationContract, make_info
from microtome.testing.contracts.annotation import OUTLINE

Points = Sequence[Sequence[float]]

OFFSET, MPP = (12_538_720, -96_063), 0.2281750559028887
"""Of a Hamamatsu slide: where its middle is on the glass in nm, and its µm per pixel."""


def asap_annotation(
    points: Points, *, group: str = "Tumor", kind: str = "Polygon", name: str = "Annotation 0"
) -> str:
    listed = "".join(
        f'<Coordinate Order="{i}" X="{x}" Y="{y}" />\n' for i, (x, y) in enumerate(points)
    )
    head = f'Name="{name}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58"'
    return f"<Annotation {head}>\n<Coordinates>\n{listed}</Coordinates>\n</Annotation>\n"


def asap(*annotations: str, groups: str = "") -> str:
    return (
        '<?xml version="1.0"?>\n<ASAP_Annotations>\n<Annotations>\n'
        f"{''.join(annotations)}</Annotations>\n<AnnotationGroups>{groups}</AnnotationGroups>\n"
        "</ASAP_Annotations>\n"
    )


def feature(
    coordinates: Any, *, kind: str = "Polygon", classification: Any = None, **properties: Any
) -> dict[str, Any]:
    if classification is not None:
        properties["classification"] = classification
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "id": "a", "geometry": geometry, "properties": properties}


def collection(features: Iterable[Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def region(points: Points, *, kind: int = 0, id: int = 1, **attributes: Any) -> str:
    listed = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>\n' for x, y in points)
    more = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return f'<Region Id="{id}" Type="{kind}"{more}>\n<Vertices>\n{listed}</Vertices>\n</Region>\n'


def layer(*regions: str, name: str = "Tumor", id: int = 1, attribute: str = "") -> str:
    told = f"<Attributes>{attribute}</Attributes>"
    body = f"<Regions>{''.join(regions)}</Regions>"
    return f'<Annotation Id="{id}" Name="{name}" LineColor="65280">\n{told}\n{body}</Annotation>\n'


def imagescope(*layers: str) -> str:
    return f'<Annotations MicronsPerPixel="0.25">\n{"".join(layers)}</Annotations>\n'


def hamamatsu_slide(*, size: tuple[int, int] = (3968, 4864)) -> SlideInfo:
    properties = {
        "hamamatsu.XOffsetFromSlideCentre": str(OFFSET[0]),
        "hamamatsu.YOffsetFromSlideCentre": str(OFFSET[1]),
        "openslide.mpp-x": str(MPP),
        "openslide.mpp-y": str(MPP),
    }
    # What a user gave instead does not count: the file was drawn with the slide's own.
    return replace(make_info(size=size, mpp=0.5), properties=properties)


def nm(point: Sequence[float], size: tuple[int, int] = (3968, 4864)) -> tuple[int, int]:
    x, y = (
        round((place - length / 2) * MPP * 1000 + offset)
        for place, length, offset in zip(point, size, OFFSET, strict=True)
    )
    return x, y


def view(body: str, *, title: str = "Tumor", unit: str = "nanometers", **attributes: str) -> str:
    named = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return (
        f'<ndpviewstate id="1">\n<title>{title}</title>\n<coordformat>{unit}</coordformat>\n'
        f"<x>7</x><y>8</y><z>0</z>\n<annotation{named}>\n{body}</annotation>\n</ndpviewstate>\n"
    )


def pointlist(points: Points, *, closed: str | None = "1") -> str:
    listed = "".join(f"<point><x>{x}</x><y>{y}</y></point>\n" for x, y in map(nm, points))
    told = "" if closed is None else f"<closed>{closed}</closed>\n"
    return f"{told}<pointlist>\n{listed}</pointlist>\n"


def ndpa(*views: str) -> str:
    body = "".join(views)
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n{body}</annotations>\n'


def put(path: Path, content: Any, encoding: str = "utf-8") -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding)
    return path


class AsapContract(AnnotationContract):
    def make_sample(self, folder: Path) -> Path:
        return put(folder / "slide.xml", asap(asap_annotation(OUTLINE)))


class GeoJsonContract(AnnotationContract):
    def make_sample(self, folder: Path) -> Path:
        drawn = feature([[*OUTLINE, OUTLINE[0]]], classification={"name": "Tumor"})
        return put(folder / "slide.geojson", collection([drawn]))


class ImageScopeContract(AnnotationContract):
    def make_sample(self, folder: Path) -> Path:
        return put(folder / "slide.xml", imagescope(layer(region(OUTLINE))))


class NdpaContract(AnnotationContract):
    def make_sample(self, folder: Path) -> Path:
        return put(folder / "slide.ndpi.ndpa", ndpa(view(pointlist(OUTLINE), type="freehand")))

    def make_slide(self) -> SlideInfo:
        return hamamatsu_slide()


class NcrfContract(AnnotationContract):
    group = "positive"

    def make_sample(self, folder: Path) -> Path:
        drawn = {"positive": [{"name": "_0", "vertices": OUTLINE}], "negative": []}
        return put(folder / "slide.json", drawn)


FORMATS = {
    "asap": AsapContract,
    "geojson": GeoJsonContract,
    "imagescope": ImageScopeContract,
    "ndpa": NdpaContract,
    "ncrf": NcrfContract,
}
