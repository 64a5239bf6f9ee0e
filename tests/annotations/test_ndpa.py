"""NDP.view's files: from nm around the middle of the glass to level-0 pixels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from annotation_files import MPP, hamamatsu_slide, ndpa, nm, pointlist, put, view

from microtome.errors import AnnotationError
from microtome.slide.types import Resolution
from microtome_annotations.ndpa import NdpaReader

SQUARE = ((100, 200), (300, 200), (300, 400), (100, 400))


def read(tmp_path, *views, slide=None):
    path = put(tmp_path / "slide.ndpi.ndpa", ndpa(*views))
    return NdpaReader().read(path, slide or hamamatsu_slide())


@pytest.mark.parametrize(
    ("body", "attributes", "shape", "bounds"),
    [
        (pointlist(SQUARE), {"type": "freehand"}, "Polygon", (100, 200, 300, 400)),
        (
            pointlist(SQUARE, closed=None),
            {"type": "freehand", "displayname": "AnnotateRectangle"},
            "Polygon",
            (100, 200, 300, 400),
        ),
        (pointlist(SQUARE, closed="0"), {"type": "freehand"}, "LineString", (100, 200, 300, 400)),
        (
            pointlist(SQUARE, closed=None),
            {"type": "freehand", "displayname": "AnnotateFreehandLine"},
            "LineString",
            (100, 200, 300, 400),
        ),
        (
            "<x>{}</x><y>{}</y><icon>pinred</icon>".format(*nm((150, 250))),
            {"type": "pin"},
            "Point",
            (150, 250, 150, 250),
        ),
        (
            "<x1>{}</x1><y1>{}</y1><x2>{}</x2><y2>{}</y2>".format(*nm((1, 2)), *nm((3, 4))),
            {"type": "linearmeasure"},
            "LineString",
            (1, 2, 3, 4),
        ),
        (
            "<x>{}</x><y>{}</y><radius>{}</radius>".format(*nm((150, 250)), 100 * MPP * 1000),
            {"type": "circle"},
            "Polygon",
            (50, 150, 250, 350),
        ),
    ],
    ids=["freehand", "rectangle", "open", "line", "pin", "ruler", "circle"],
)
def test_each_shape(tmp_path, body, attributes, shape, bounds) -> None:
    (drawn,) = read(tmp_path, view(body, **attributes))
    assert drawn.geometry.geom_type == shape
    assert drawn.geometry.bounds == pytest.approx(bounds, abs=0.02)
    assert (drawn.group, drawn.where) == ("Tumor", "line 7")
    if attributes["type"] == "circle":
        assert drawn.geometry.area == pytest.approx(math.pi * 100**2, rel=1e-3)


def test_what_has_no_place_is_left_out(tmp_path) -> None:
    found = read(tmp_path, view("", type="unknown"), view(pointlist(SQUARE), title="Stroma"))
    assert [a.group for a in found] == ["Stroma"]


def test_pixels_that_are_not_square(tmp_path) -> None:
    slide = hamamatsu_slide()
    slide = replace(slide, properties={**slide.properties, "openslide.mpp-y": str(MPP * 2)})
    (drawn,) = read(tmp_path, view(pointlist(SQUARE)), slide=slide)
    left, top, right, bottom = drawn.geometry.bounds
    assert (left, right) == pytest.approx((100, 300), abs=0.02)
    middle = slide.height / 2
    expected = (middle - (middle - 200) / 2, middle - (middle - 400) / 2)
    assert (top, bottom) == pytest.approx(expected, abs=0.02)


def test_the_resolved_mpp_counts_where_the_slide_states_none(tmp_path) -> None:
    slide = hamamatsu_slide()
    offsets = {k: v for k, v in slide.properties.items() if k.startswith("hamamatsu")}
    given = replace(slide, properties=offsets, resolution=Resolution(mpp_x=MPP, mpp_y=MPP))
    (drawn,) = read(tmp_path, view(pointlist(SQUARE)), slide=given)
    assert drawn.geometry.bounds == pytest.approx((100, 200, 300, 400), abs=0.02)
    unknown = replace(given, resolution=Resolution())
    with pytest.raises(AnnotationError, match=r"how large its pixels are\. Give .* mpp=0\.23"):
        read(tmp_path, view(pointlist(SQUARE)), slide=unknown)


def test_a_slide_without_its_middle_is_refused_with_the_way_out(tmp_path) -> None:
    slide = replace(hamamatsu_slide(), path=tmp_path / "a.NDPI", properties={}, reader="tiff")
    with pytest.raises(AnnotationError, match=r"reader=tiff does not say .* reader=openslide\.$"):
        read(tmp_path, view(pointlist(SQUARE)), slide=slide)


@pytest.mark.parametrize(("name", "reader"), [("a.svs", "tiff"), ("a.ndpi", "openslide")])
def test_no_other_reader_is_advised_where_none_knows_the_middle(tmp_path, name, reader) -> None:
    slide = replace(hamamatsu_slide(), path=tmp_path / name, properties={}, reader=reader)
    with pytest.raises(AnnotationError, match=r"as an NDPI does .*\. Label the NDPI") as caught:
        read(tmp_path, view(pointlist(SQUARE)), slide=slide)
    assert "reader=" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (view(pointlist(SQUARE[:2])), "line 7: the annotation 'Tumor': it has 2 points, and an"),
        (view("<pointlist><point><x>1</x></point></pointlist>"), "a point has no x or no y"),
        (view("<x>1</x><y>abc</y>"), "y is 'abc', which is no number"),
        (view("<x>1</x><y>inf</y>"), "y is 'inf', which is no place"),
        (view(pointlist(SQUARE), unit="pixels"), "line 7: 'Tumor' is in 'pixels'; NDP.view writes"),
    ],
)
def test_what_is_malformed_is_told_with_its_line(tmp_path, text, told) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'slide.ndpi.ndpa'}, line ")
    assert told in str(caught.value)
