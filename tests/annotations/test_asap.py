"""ASAP's XML: every type it draws, groups in groups, the order of points, numbers of any locale."""

from __future__ import annotations

import pytest
from annotation_files import asap, asap_annotation, put

from microtome.errors import AnnotationError
from microtome_annotations.asap import AsapReader

SQUARE = ((10.5, 20), (110.5, 20), (110.5, 120), (10.5, 120))


def read(tmp_path, *annotations, groups="", encoding="utf-8"):
    text = asap(*annotations, groups=groups)
    if not encoding.startswith("utf-8"):
        text = text.replace('version="1.0"', f'version="1.0" encoding="{encoding}"')
    return AsapReader().read(put(tmp_path / "slide.xml", text, encoding))


@pytest.mark.parametrize(
    ("kind", "points", "shape", "area"),
    [
        ("Polygon", SQUARE, "Polygon", 10_000),
        ("Polygon", (*SQUARE, SQUARE[0]), "Polygon", 10_000),
        ("Spline", SQUARE, "Polygon", 10_000),
        ("Rectangle", SQUARE, "Polygon", 10_000),
        ("Rectangle", (SQUARE[0], SQUARE[2]), "Polygon", 10_000),
        ("Dot", SQUARE[:1], "Point", 0),
        ("PointSet", SQUARE, "MultiPoint", 0),
        ("Measurement", SQUARE[:2], "LineString", 0),
        ("None", SQUARE, "Polygon", 10_000),
    ],
)
def test_each_type_is_what_asap_draws(tmp_path, kind, points, shape, area) -> None:
    (drawn,) = read(tmp_path, asap_annotation(points, kind=kind))
    assert drawn.geometry.geom_type == shape
    assert drawn.geometry.area == area
    assert drawn.geometry.bounds[:2] == (10.5, 20)
    assert (drawn.name, drawn.repaired) == ("Annotation 0", "")
    assert drawn.properties == {"Type": kind, "Color": "#F4FA58"}


def test_a_file_without_types_holds_polygons(tmp_path) -> None:
    text = asap(asap_annotation(SQUARE)).replace(' Type="Polygon"', "")
    (drawn,) = AsapReader().read(put(tmp_path / "slide.xml", text))
    assert drawn.geometry.area == 10_000


def test_groups_are_known_with_what_they_are_part_of(tmp_path) -> None:
    groups = (
        '<Group Name="Invasive" PartOfGroup="Tumor" Color="#0"><Attributes/></Group>'
        '<Group Name="Tumor" PartOfGroup="Lesions"/><Group Name="Lesions" PartOfGroup="None"/>'
        '<Group Name="A" PartOfGroup="B"/><Group Name="B" PartOfGroup="A"/>'
    )
    drawn = read(
        tmp_path,
        *(asap_annotation(SQUARE, group=g) for g in ("Invasive", "Tumor", "None", "A", "Loose")),
        groups=groups,
    )
    assert [(a.group, a.within) for a in drawn] == [
        ("Invasive", ("Tumor", "Lesions")),
        ("Tumor", ("Lesions",)),
        ("", ()),
        ("A", ("B",)),  # a circle, which ASAP does not write
        ("Loose", ()),
    ]
    assert [a.where for a in drawn] == [f"line {4 + 8 * i}" for i in range(5)]


def test_points_are_taken_in_their_order(tmp_path) -> None:
    listed = [(0, 0, 0), (2, 100, 100), (10, 0, 100), (1, 100, 0)]
    points = "".join(f'<Coordinate Order="{o}" X="{x}" Y="{y}"/>' for o, x, y in listed)
    body = f'<Annotation PartOfGroup="T" Type="Polygon"><Coordinates>{points}</Coordinates>'
    (drawn,) = read(tmp_path, f"{body}</Annotation>")
    assert drawn.geometry.area == 10_000
    assert list(drawn.geometry.exterior.coords)[1] == (100, 0)


def test_a_comma_is_a_decimal_point_where_asap_ran_so(tmp_path) -> None:
    text = asap_annotation(SQUARE).replace('"10.5"', '"10,5"')
    (drawn,) = read(tmp_path, text)
    assert drawn.geometry.bounds[0] == 10.5


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "iso-8859-1", "windows-1252"])
def test_any_encoding_that_is_told(tmp_path, encoding) -> None:
    (drawn,) = read(tmp_path, asap_annotation(SQUARE, group="Tumör"), encoding=encoding)
    assert drawn.group == "Tumör"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_it_is_recognised_in_any_encoding(encoding) -> None:
    head = asap(asap_annotation(SQUARE)).encode(encoding)
    assert AsapReader().recognises(head[:301])


def test_an_outline_that_crosses_itself_is_repaired_and_told(tmp_path) -> None:
    # The pen went past where it began: the corner that it went around twice is inside.
    points = ((0, 0), (100, 0), (100, 100), (0, 100), (0, -10), (10, -10), (10, 10), (-10, 10))
    (drawn,) = read(tmp_path, asap_annotation(points))
    assert drawn.geometry.is_valid
    assert drawn.geometry.geom_type == "Polygon"
    assert not drawn.geometry.interiors
    assert 10_000 < drawn.geometry.area < 10_300
    assert "elf-intersection" in drawn.repaired


@pytest.mark.parametrize(
    ("points", "kind", "told"),
    [
        (SQUARE[:2], "Polygon", "line 4: the annotation 'a': it has 2 points, and an area needs 3"),
        (SQUARE[:1], "Spline", "line 4: the annotation 'a': it has 1 point, and an area needs"),
        ((), "Dot", "line 4: the annotation 'a': it has no points"),
        (((0, 0), (1, 1), (2, 2)), "Polygon", "'a': its points enclose no area"),
        (SQUARE, "Circle", "its Type is 'Circle'; ASAP's are Polygon, Spline"),
        (((0, 0), (1, "nan"), (2, 2)), "Polygon", "line 7: the Y of a point is 'nan', which is no"),
        (((0, 0), ("inf", 1), (2, 2)), "Polygon", "line 7: the X of a point is 'inf', which is no"),
        (
            ((0, 0), (1e300, 1), (2, 2)),
            "Polygon",
            "its point 2 is (1e+300, 1.0), which is no place",
        ),
        (((4e9, 0),), "Dot", "its point 1 is (4000000000.0, 0.0), which is no place"),
        (
            ((0, 0), ("x", 1), (2, 2)),
            "Polygon",
            "line 7: the X of a point is 'x', which is no numb",
        ),
        (((0, 0), ("1,022,8", 1)), "Polygon", "line 7: the X of a point is '1,022,8', which is no"),
    ],
)
def test_what_is_malformed_is_told_with_its_line(tmp_path, points, kind, told) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, asap_annotation(points, kind=kind, name="a"))
    assert str(caught.value).startswith(f"{tmp_path / 'slide.xml'}, line ")
    assert told.replace("needs 3", "needs three") in str(caught.value)


def test_a_point_without_a_coordinate(tmp_path) -> None:
    with pytest.raises(AnnotationError, match=r"line 6: the X of a point is missing\.$"):
        read(tmp_path, asap_annotation(SQUARE).replace(' X="10.5"', "", 1))
