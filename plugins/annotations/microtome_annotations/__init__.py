"""Annotations: what people drew in ASAP, QuPath and other viewers. Cheap to import."""

from __future__ import annotations

from collections.abc import Iterator

from microtome.plugin.hookspecs import hookimpl
from microtome.plugin.specs import AnnotationSpec

_REQUIRES = ("shapely",)
_INSTALL = "pip install 'microtome[annotations]'"


@hookimpl
def microtome_annotations() -> Iterator[AnnotationSpec]:
    """Register the formats of the viewers that are used most."""
    yield AnnotationSpec(
        name="asap",
        target="microtome_annotations.asap:AsapReader",
        summary="ASAP's XML: polygons, splines, rectangles, dots; groups and groups of groups",
        extensions=(".xml",),
        tool="ASAP",
        requires=_REQUIRES,
        install=_INSTALL,
    )
    yield AnnotationSpec(
        name="geojson",
        target="microtome_annotations.geojson:GeoJsonReader",
        summary="QuPath's GeoJSON, in all that its versions write, also compressed",
        extensions=(".geojson", ".json", ".geojson.gz", ".json.gz", ".zip"),
        tool="QuPath",
        requires=_REQUIRES,
        install=_INSTALL,
    )
    yield AnnotationSpec(
        name="imagescope",
        target="microtome_annotations.imagescope:ImageScopeReader",
        summary="Aperio ImageScope's XML: regions in layers, negative regions as holes",
        extensions=(".xml",),
        tool="Aperio ImageScope",
        requires=_REQUIRES,
        install=_INSTALL,
    )
    yield AnnotationSpec(
        name="ndpa",
        target="microtome_annotations.ndpa:NdpaReader",
        summary="NDP.view's outlines beside a Hamamatsu slide, in nm from the slide's centre",
        extensions=(".ndpa",),
        tool="NDP.view",
        requires=_REQUIRES,
        install=_INSTALL,
    )
    yield AnnotationSpec(
        name="ncrf",
        target="microtome_annotations.ncrf:NcrfReader",
        summary="CAMELYON's outlines as JSON: `positive`, and `negative` as holes in them",
        extensions=(".json",),
        tool="NCRF",
        requires=_REQUIRES,
        install=_INSTALL,
    )
