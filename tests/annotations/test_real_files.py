"""Files as the tools wrote them, with the counts and areas that they are known to hold."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from annotation_files import MPP, OFFSET, hamamatsu_slide

from microtome.errors import AnnotationError
from microtome.run.inputs.annotated import read_annotations
from microtome.slide.opening import open_slide
from microtome.slide.types import SlideRef

AREAS = {
    "Tumor_010.json": [("positive", 281509.5), ("positive", 46690), ("positive", 83956.5)],
    "Tumor_053.json": [("positive", 749324)],
    "asap/asap-polygon.xml": [("", 28616.812)],
    "dlup_qupath05.geojson": [("UT", 51687.5), ("I", 71159), ("I", 46151.5)],
    "histoqc_geojson_example.json": [("Tumor", 2265677914.233), ("Invborder", 1545939627.625)],
    "histoqc_holed.geojson": [("", 7827735.305)],
    "imagescope_TCGA-EJ-5518.xml": [
        ("CaP", 29046449.621),
        ("CaP", 641099844.137),
        ("Layer 3", 3849136.259),
        ("Layer 4", 8301667.692),
    ],
    "qupath_geojson/qupath-brush.json": [("brush", 10071.918)],
    "qupath_geojson/qupath-ellipse.json": [("ellipse", 45350.454)],
    "qupath_geojson/qupath-polygon.json": [("polygon", 94491.5)],
    "qupath_geojson/qupath-rectangle.json": [("rectangle", 36960)],
    "qupath_geojson/qupath-wand.json": [("wand", 2651.5)],
}
LOOSE = {
    "asap/asap-dot.xml": ("Point", 1),
    "asap/asap-pointset.xml": ("MultiPoint", 5),
    "qupath_geojson/qupath-line.json": ("LineString", 2),
    "qupath_geojson/qupath-multipoint.json": ("MultiPoint", 3),
    "qupath_geojson/qupath-point.json": ("Point", 1),
    "qupath_geojson/qupath-polyline.json": ("LineString", 49),
}
NDPA = {"annotations_mixed.ndpa", "annotations_malformed.ndpa"}


@pytest.fixture
def folder(shared_data) -> Path:
    return shared_data / "annotations"


def test_every_file_is_tested_here(folder) -> None:
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {*AREAS, *LOOSE, *NDPA}


@pytest.mark.parametrize("name", AREAS)
def test_areas(folder, name) -> None:
    drawn = read_annotations(folder / name)
    assert [(a.group, round(a.geometry.area, 3)) for a in drawn] == AREAS[name]
    assert all(a.geometry.is_valid for a in drawn)


@pytest.mark.parametrize("name", LOOSE)
def test_lines_and_points(folder, name) -> None:
    import shapely

    (drawn,) = read_annotations(folder / name)
    kind, points = LOOSE[name]
    assert (drawn.geometry.geom_type, shapely.get_num_coordinates(drawn.geometry)) == (kind, points)
    assert drawn.geometry.area == 0


def test_holes_are_kept(folder) -> None:
    (holed,) = read_annotations(folder / "histoqc_holed.geojson")
    assert len(holed.geometry.interiors) == 1
    assert holed.geometry.area < 3271 * 2728
    tumor, _ = read_annotations(folder / "histoqc_geojson_example.json")
    assert len(tumor.geometry.geoms) == 3


def test_a_drawn_ellipse_is_one(folder) -> None:
    (ellipse,) = read_annotations(folder / "qupath_geojson/qupath-ellipse.json")
    left, top, right, bottom = ellipse.geometry.bounds
    full = math.pi * (right - left) * (bottom - top) / 4
    assert ellipse.geometry.area == pytest.approx(full, rel=2e-3)


def test_imagescopes_own_areas_agree(folder) -> None:
    drawn = read_annotations(folder / "imagescope_TCGA-EJ-5518.xml")
    for each in drawn:
        # It counts what an outline goes around twice as twice: up to 0.1 % here.
        stated = float(each.properties["Area"])
        assert each.geometry.area == pytest.approx(stated, rel=2e-3 if each.repaired else 1e-6)
    assert [bool(a.repaired) for a in drawn] == [False, True, True, True]


def test_ndpa_by_the_formula(folder) -> None:
    slide = hamamatsu_slide()
    area, line, pin = read_annotations(folder / "annotations_mixed.ndpa", slide)
    assert [a.group for a in (area, line, pin)] == ["Tumor", "Margin", "Review here"]
    shapes = [a.geometry.geom_type for a in (area, line, pin)]
    assert shapes == ["Polygon", "LineString", "Point"]
    assert area.geometry.area == pytest.approx(100_000 * 200_000 / (MPP * 1000) ** 2)
    nm = np.array([50_000, -600_000])
    expected = (nm - OFFSET) / (MPP * 1000) + np.array([slide.width, slide.height]) / 2
    assert (pin.geometry.x, pin.geometry.y) == pytest.approx(tuple(expected))


def test_ndpa_that_is_malformed(folder) -> None:
    with pytest.raises(AnnotationError, match=r"annotations_malformed\.ndpa, line \d+: "):
        read_annotations(folder / "annotations_malformed.ndpa", hamamatsu_slide())


@pytest.mark.parametrize("reader", ["auto", "openslide", "tiff"])
def test_a_hamamatsu_slide_says_where_its_middle_is(folder, reader) -> None:
    path = folder.parent / "slides" / "fluorescence_dapi.ndpi"
    with open_slide(SlideRef(path=path, slide_id="dapi"), reader=reader) as slide:
        if reader == "tiff":
            with pytest.raises(AnnotationError, match=r"Read the slide with reader=openslide\.$"):
                read_annotations(folder / "annotations_mixed.ndpa", slide.info)
            return
        drawn = read_annotations(folder / "annotations_mixed.ndpa", slide.info)
    expected = read_annotations(folder / "annotations_mixed.ndpa", hamamatsu_slide())
    for found, wanted in zip(drawn, expected, strict=True):
        assert found.geometry.bounds == pytest.approx(wanted.geometry.bounds)
