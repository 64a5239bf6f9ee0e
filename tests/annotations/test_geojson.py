"""QuPath's GeoJSON: every frame, every geometry, every way of writing a class."""

from __future__ import annotations

import gzip
import json
import zipfile

import pytest
from annotation_files import collection, feature, put

from microtome.errors import AnnotationError
from microtome.run.inputs.annotated import HEAD, read_annotations
from microtome.slide.tissue import mask_regions, regions_geojson
from microtome.testing import make_info, make_mask
from microtome_annotations.geojson import GeoJsonReader

SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]
HOLE = [[40, 40], [60, 40], [60, 60], [40, 60], [40, 40]]
FAR = [[500, 500], [600, 500], [600, 600], [500, 600], [500, 500]]
TUMOR = {"name": "Tumor", "colorRGB": -3670016}


def read(tmp_path, tree):
    return GeoJsonReader().read(put(tmp_path / "slide.geojson", tree))


@pytest.mark.parametrize(
    "frame",
    [
        lambda f: f,
        lambda f: [f],
        lambda f: collection([f]),
        lambda f: [collection([f])],
        lambda f: {**collection([f]), "crs": {"type": "name"}, "bbox": [0, 0, 1, 1]},
    ],
    ids=["feature", "array", "collection", "array of collections", "old collection"],
)
def test_a_feature_in_any_frame(tmp_path, frame) -> None:
    (drawn,) = read(tmp_path, frame(feature([SQUARE], classification=TUMOR)))
    assert (drawn.group, drawn.geometry.area, drawn.where) == ("Tumor", 10_000, "feature 1")


def test_a_geometry_alone(tmp_path) -> None:
    for tree in ({"type": "Polygon", "coordinates": [SQUARE]}, feature([SQUARE])["geometry"]):
        (drawn,) = read(tmp_path, tree)
        assert (drawn.group, drawn.geometry.area) == ("", 10_000)


@pytest.mark.parametrize(
    ("kind", "coordinates", "shape", "area"),
    [
        ("Polygon", [SQUARE], "Polygon", 10_000),
        ("Polygon", [SQUARE[:-1]], "Polygon", 10_000),
        ("Polygon", [SQUARE, HOLE], "Polygon", 9_600),
        ("Polygon", [[[*p, 7.5] for p in SQUARE]], "Polygon", 10_000),
        ("MultiPolygon", [[SQUARE, HOLE], [FAR]], "MultiPolygon", 19_600),
        ("MultiPolygon", [[SQUARE]], "Polygon", 10_000),
        ("Point", [3, 4.5], "Point", 0),
        ("MultiPoint", [[3, 4.5], [5, 6]], "MultiPoint", 0),
        ("LineString", SQUARE, "LineString", 0),
        ("MultiLineString", [SQUARE, FAR[:2]], "MultiLineString", 0),
    ],
)
def test_each_geometry(tmp_path, kind, coordinates, shape, area) -> None:
    (drawn,) = read(tmp_path, feature(coordinates, kind=kind))
    assert (drawn.geometry.geom_type, drawn.geometry.area) == (shape, area)
    assert (drawn.geometry.is_valid, drawn.repaired) == (True, "")


def test_a_collection_of_all_gives_areas_lines_and_points(tmp_path) -> None:
    parts = [
        {"type": "Polygon", "coordinates": [SQUARE]},
        {"type": "Point", "coordinates": [3, 4]},
        {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [FAR]}]},
        {"type": "LineString", "coordinates": FAR[:2]},
        {"type": "MultiPolygon", "coordinates": []},
    ]
    whole = feature([], classification=TUMOR) | {
        "geometry": {"type": "GeometryCollection", "geometries": parts}
    }
    drawn = read(tmp_path, whole)
    assert [a.geometry.geom_type for a in drawn] == ["MultiPolygon", "LineString", "Point"]
    assert [a.geometry.area for a in drawn] == [20_000, 0, 0]
    assert {(a.group, a.where) for a in drawn} == {("Tumor", "feature 1")}


@pytest.mark.parametrize(
    ("properties", "group", "within"),
    [
        ({"classification": TUMOR, "name": "mine"}, "Tumor", ()),
        ({"classification": {"name": "Tumor", "color": [200, 0, 0]}}, "Tumor", ()),
        ({"classification": "Tumor"}, "Tumor", ()),
        ({"classification": json.dumps(TUMOR)}, "Tumor", ()),
        ({"classification": {"names": ["Tumor", "Positive"]}}, "Tumor: Positive", ("Tumor",)),
        ({"classification": {"name": "A: B: C"}}, "A: B: C", ("A: B", "A")),
        ({"pathClasses": ["Tumor"]}, "Tumor", ()),
        ({"pathClass": "Tumor"}, "Tumor", ()),
        ({"classification": None, "name": "mine"}, "mine", ()),
        ({"classification": {}, "name": None}, "", ()),
        ({}, "", ()),
    ],
)
def test_the_class_however_it_is_written(tmp_path, properties, group, within) -> None:
    (drawn,) = read(tmp_path, feature([SQUARE]) | {"properties": properties})
    assert (drawn.group, drawn.within) == (group, within)
    assert drawn.name == (properties.get("name") or "")


def test_a_hierarchy_of_objects(tmp_path) -> None:
    cell = feature([HOLE], classification="Cell", objectType="cell")
    tissue = feature([SQUARE], classification="Tissue", childObjects=[cell, cell])
    root = {"type": "Feature", "geometry": None, "properties": {"childObjects": [tissue]}}
    drawn = read(tmp_path, collection([root, feature([FAR])]))
    assert [a.group for a in drawn] == ["Tissue", "Cell", "Cell", ""]
    assert [a.where for a in drawn] == ["feature 2", "feature 3", "feature 4", "feature 5"]
    assert drawn[1].properties == {"objectType": "cell"}


def test_nothing_drawn(tmp_path) -> None:
    for tree in ([], collection([]), feature([]), {"type": "Feature", "geometry": None}):
        assert list(read(tmp_path, tree)) == []
    assert read_annotations(put(tmp_path / "none.geojson", [])) == ()


def test_measurements_are_left_where_they_are(tmp_path) -> None:
    told = feature([SQUARE], measurements={"area": 1.0}, isLocked=True, color=[1, 2, 3])
    (drawn,) = read(tmp_path, told)
    assert drawn.properties == {"isLocked": True, "color": [1, 2, 3]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_any_encoding(tmp_path, encoding) -> None:
    text = json.dumps(
        collection([feature([SQUARE], classification="Tumör 癌")]), ensure_ascii=False
    )
    (drawn,) = read_annotations(put(tmp_path / "slide.geojson", text, encoding))
    assert drawn.group == "Tumör 癌"


def compressed(path, data: bytes) -> None:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data))
    else:
        how = zipfile.ZIP_STORED if "stored" in path.name else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", how) as archive:
            archive.writestr("slide.geojson", data)


@pytest.mark.parametrize("name", ["s.geojson.gz", "s.json.gz", "s.zip", "stored.zip"])
def test_compressed_files(tmp_path, name) -> None:
    # Larger than what a format is recognised by, compressed and not.
    many = collection([feature([SQUARE, HOLE], classification=f"c{i}") for i in range(3000)])
    data = json.dumps(many).encode()
    compressed(tmp_path / name, data)
    assert len(data) > 4 * HEAD
    drawn = read_annotations(tmp_path / name)
    assert len(drawn) == 3000
    assert drawn[2999].group == "c2999"


def test_a_zip_of_several_files_is_refused(tmp_path) -> None:
    compressed(tmp_path / "s.zip", json.dumps([feature([SQUARE])]).encode())
    with zipfile.ZipFile(tmp_path / "s.zip", "a") as archive:
        archive.writestr("other.geojson", "[]")
    with pytest.raises(AnnotationError, match=r"s\.zip cannot be read: it holds 2 files"):
        read_annotations(tmp_path / "s.zip")


def test_damaged_archives_are_refused(tmp_path) -> None:
    for name in ("s.geojson.gz", "s.zip"):
        compressed(tmp_path / name, json.dumps([feature([SQUARE])] * 200).encode())
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) - 60])
        with pytest.raises(AnnotationError, match="cannot be read"):
            read_annotations(tmp_path / name)


def test_polygons_that_overlap_are_one_and_told(tmp_path) -> None:
    half = [[50, 0], [150, 0], [150, 100], [50, 100], [50, 0]]
    (drawn,) = read(tmp_path, feature([[SQUARE], [half]], kind="MultiPolygon"))
    assert (drawn.geometry.geom_type, drawn.geometry.area) == ("Polygon", 15_000)
    assert drawn.repaired


def test_a_bow_tie_keeps_both_sides(tmp_path) -> None:
    (drawn,) = read(tmp_path, feature([[[0, 0], [100, 100], [100, 0], [0, 100]]]))
    assert (drawn.geometry.geom_type, drawn.geometry.area) == ("MultiPolygon", 5_000)
    assert drawn.repaired == "Self-intersection[50 50]"


def nth(bad) -> dict:
    return collection([feature([SQUARE]), bad])


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        (
            nth(feature([SQUARE[:2]])),
            "feature 2 ($.features[1].geometry.coordinates): it has 2 poi",
        ),
        (
            nth(feature([SQUARE, HOLE[:1]])),
            "in its hole 1, it has 1 point, and an area needs three",
        ),
        (
            nth(feature([[SQUARE], [FAR[:2]]], kind="MultiPolygon")),
            "in its polygon 2, it has 2 points",
        ),
        (
            nth(feature([[[0, 0], [1, None], [2, 2]]])),
            "its point 2 is [1, None], which is no place",
        ),
        (nth(feature([[[0, 0], [1], [2, 2]]])), "its point 2 is [1], which is no place"),
        (nth(feature([[[0, 0], ["1", 2], [2, 2]]])), "its point 2 is ['1', 2], which is no place"),
        (
            nth(feature([[[0, 0], [1, float("inf")], [2, 2]]])),
            "its point 2 is [1, inf], which is no place",
        ),
        (
            nth(feature([[[0, 0], [1, float("nan")], [2, 2]]])),
            "its point 2 is [1, nan], which is no place",
        ),
        (nth(feature([[[0, 0], [10**400, 1], [2, 2]]])), "its point 2 is [1000"),
        (nth(feature([[[0, 0], [1, 1], [2, 2]]])), "its points enclose no area"),
        (nth(feature([1, 2])), "1 stands where its points should"),
        (nth(feature([None, 2], kind="MultiPolygon")), "it has no outline"),
        (nth(feature("abc")), "($.features[1].geometry.coordinates): it is no list"),
        (nth(feature({"a": 1})), "($.features[1].geometry.coordinates): it is no list"),
        (nth(feature([SQUARE], kind="Circle")), "its type is 'Circle'; GeoJSON's are Point"),
        (nth(feature([SQUARE], kind=["Polygon"])), "its type is ['Polygon']; GeoJSON's are"),
        (nth(feature([3], kind="Point")), "its point 1 is [3], which is no place"),
        (nth(feature([[3, 4]], kind="LineString")), "feature 2 ($.features[1].geometry.coordinate"),
        (nth(7), "feature 2 ($.features[1]): it is no object"),
        (nth(None), "feature 2 ($.features[1]): it is no object"),
        (nth({"type": "Feature", "geometry": 3}), "($.features[1].geometry): it is no geometry"),
        (nth(feature([SQUARE]) | {"properties": [1]}), "its properties are no object"),
        (
            nth(
                {
                    "type": "Feature",
                    "geometry": {"type": "GeometryCollection", "geometries": [feature([SQUARE])]},
                }
            ),
            "($.features[1].geometry.geometries[0]): its type is 'Feature'",
        ),
        (
            nth({"type": "GeometryCollection", "geometries": 5}),
            "feature 2 ($.features[1].geometries): it is no list",
        ),
        (collection([]) | {"features": 4}, "feature 1 ($.features): it is no list of features"),
        (
            collection([feature([SQUARE], childObjects=[feature([HOLE[:2]])])]),
            "feature 2 ($.features[0].properties.childObjects[0].geometry.coordinates): it has 2",
        ),
    ],
)
def test_what_is_malformed_is_told_with_its_place(tmp_path, tree, told) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, tree)
    assert str(caught.value).startswith(f"{tmp_path / 'slide.geojson'}, feature ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"type": "Feature",\n "geometry": }', "line 2, column 14: it is no JSON here (Expecting"),
        (
            '{"type": "FeatureCollection", "features": [' + "[" * 200_000,
            "is nested deeper than any",
        ),
        ('{"type": "Polygon", "coordinates": [[[' + "1" * 5000 + ", 2]]]}", "cannot be read: "),
    ],
)
def test_what_is_no_json_is_told(tmp_path, text, told) -> None:
    with pytest.raises(AnnotationError) as caught:
        GeoJsonReader().read(put(tmp_path / "slide.geojson", text))
    assert str(tmp_path / "slide.geojson") in str(caught.value)
    assert told in str(caught.value)


def test_bytes_that_are_no_text_are_told_with_their_line(tmp_path) -> None:
    path = tmp_path / "slide.geojson"
    path.write_bytes('{"type": "Feature",\n"name": "Tumör"}'.encode("latin-1"))
    with pytest.raises(AnnotationError, match=r"line 2: it is no UTF-8\. Save it as UTF-8\.$"):
        GeoJsonReader().read(path)


def test_tissue_as_we_write_it_is_read_whole(tmp_path) -> None:
    mask = make_mask(make_info())
    drawn = read(tmp_path, regions_geojson(mask_regions(mask)))
    assert {a.group for a in drawn} == {"Tissue"}
    assert not any(a.repaired for a in drawn)
    pixel = mask.downsample[0] * mask.downsample[1]
    assert sum(a.geometry.area for a in drawn) == pytest.approx(mask.array.sum() * pixel, rel=1e-4)
