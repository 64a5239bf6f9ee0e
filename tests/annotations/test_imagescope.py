"""Aperio ImageScope's XML: layers, shapes, and what the negative pen takes away."""

from __future__ import annotations

import math

import pytest
from annotation_files import imagescope, layer, put, region

from microtome.errors import AnnotationError
from microtome_annotations.imagescope import ImageScopeReader

SQUARE = ((0, 0), (100, 0), (100, 100), (0, 100))
FAR = tuple((x + 500, y) for x, y in SQUARE)
INNER = ((40, 40), (60, 40), (60, 60), (40, 60))
NEGATIVE = {"NegativeROA": 1}


def read(tmp_path, *layers):
    return ImageScopeReader().read(put(tmp_path / "slide.xml", imagescope(*layers)))


def areas(found) -> list[float]:
    return [round(a.geometry.area, 3) for a in found]


@pytest.mark.parametrize(
    ("kind", "points", "shape", "area"),
    [
        (0, SQUARE, "Polygon", 10_000),
        (1, SQUARE, "Polygon", 10_000),
        (1, (SQUARE[0], SQUARE[2]), "Polygon", 10_000),
        (2, (SQUARE[0], SQUARE[2]), "Polygon", math.pi * 2500),
        (2, SQUARE, "Polygon", math.pi * 2500),
        (2, ((50, 0), (100, 50), (50, 100), (0, 50)), "Polygon", math.pi * 2500),
        (3, SQUARE[:2], "LineString", 0),
        (4, SQUARE[:2], "LineString", 0),
        (5, SQUARE[:1], "Point", 0),
    ],
)
def test_each_shape(tmp_path, kind, points, shape, area) -> None:
    (drawn,) = read(tmp_path, layer(region(points, kind=kind, Text="mine")))
    assert drawn.geometry.geom_type == shape
    assert drawn.geometry.area == pytest.approx(area, rel=1e-3)
    assert (drawn.group, drawn.name) == ("Tumor", "mine")
    assert drawn.properties["Type"] == str(kind)


def test_an_ellipse_of_many_points_is_these_points(tmp_path) -> None:
    points = [(50 + 50 * math.cos(a / 10), 50 + 30 * math.sin(a / 10)) for a in range(63)]
    (drawn,) = read(tmp_path, layer(region(points, kind=2)))
    assert drawn.geometry.area == pytest.approx(math.pi * 50 * 30, rel=5e-3)


@pytest.mark.parametrize(
    ("name", "attribute", "group"),
    [
        ("Tumor", '<Attribute Name="Description" Id="0" Value="other"/>', "Tumor"),
        ("", '<Attribute Name="Description" Id="0" Value="Stroma"/>', "Stroma"),
        ("", '<Attribute Name="CaP" Id="0" Value=""/>', "CaP"),
        ("", '<Attribute Name="Description" Id="0" Value=""/>', "Layer 4"),
        ("", "", "Layer 4"),
    ],
)
def test_a_layer_has_a_name(tmp_path, name, attribute, group) -> None:
    (drawn,) = read(tmp_path, layer(region(SQUARE), name=name, attribute=attribute, id=4))
    assert drawn.group == group


def test_an_attribute_of_a_region_is_not_its_layers(tmp_path) -> None:
    text = region(SQUARE).replace(
        "<Vertices>", '<Attributes><Attribute Name="x"/></Attributes><Vertices>'
    )
    (drawn,) = read(tmp_path, layer(text, name="", id=4))
    assert drawn.group == "Layer 4"


def test_what_is_negative_is_cut_out_of_its_layer(tmp_path) -> None:
    first = layer(region(INNER, id=1, **NEGATIVE), region(SQUARE, id=2), region(FAR, id=3))
    found = read(tmp_path, first, layer(region(SQUARE, id=1), name="Stroma"))
    assert areas(found) == [9_600, 10_000, 10_000]
    assert [a.group for a in found] == ["Tumor", "Tumor", "Stroma"]


def test_what_is_negative_is_cut_out_of_the_region_it_names(tmp_path) -> None:
    named = region(INNER, id=3, InputRegionId=2, **NEGATIVE)
    regions = region(SQUARE, id=1), region(SQUARE, id=2)
    assert areas(read(tmp_path, layer(*regions, named))) == [10_000, 9_600]
    elsewhere = region(INNER, id=3, InputRegionId=99, **NEGATIVE)
    assert areas(read(tmp_path, layer(*regions, elsewhere))) == [9_600, 9_600]


def test_what_is_cut_out_wholly_is_gone(tmp_path) -> None:
    around = ((-5, -5), (200, -5), (200, 200), (-5, 200))
    found = read(tmp_path, layer(region(SQUARE), region(FAR), region(around, **NEGATIVE)))
    assert [a.geometry.bounds[0] for a in found] == [500]


def test_a_negative_line_cuts_nothing(tmp_path) -> None:
    line = region(((-5, 50), (200, 50)), kind=4, **NEGATIVE)
    assert areas(read(tmp_path, layer(region(SQUARE), line))) == [10_000]


def test_nothing_drawn(tmp_path) -> None:
    assert list(read(tmp_path)) == []
    assert list(read(tmp_path, layer())) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (region(SQUARE[:2], id=7), "line 4: the region '7' of 'Tumor': it has 2 points, and an"),
        (region((), id=7), "line 4: the region '7' of 'Tumor': it has 0 points, and an area needs"),
        (region((), kind=4), "it has no points"),
        (region(((0, 0), (1, "NaN"), (2, 2))), "line 7: the Y of a vertex is 'NaN', which is no"),
        (region(SQUARE).replace(' X="0"', "", 1), "line 6: the X of a vertex is missing"),
    ],
)
def test_what_is_malformed_is_told_with_its_line(tmp_path, text, told) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, layer(text))
    assert str(caught.value).startswith(f"{tmp_path / 'slide.xml'}, line ")
    assert told in str(caught.value)
