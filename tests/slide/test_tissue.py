"""Masks: cleaning, outlines along pixel edges, GeoJSON both ways."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from microtome.errors import TissueError
from microtome.run.settings import TissueSettings
from microtome.slide.tissue import clean_mask, mask_from_geojson, mask_regions, regions_geojson
from microtome.slide.types import TissueMask


def mask(rows, downsample=(1.0, 1.0)):
    array = np.array([[c == "#" for c in row] for row in rows])
    return TissueMask(array=array, downsample=downsample)


def text(found):
    return ["".join("#" if c else "." for c in row) for row in found.array]


HOLED = ["#####....", "#...#....", "#.#.#..##", "#...#....", "#####...."]


def test_one_pixel_is_outlined_along_its_edges():
    (region,) = mask_regions(mask(["...", ".#.", "..."], downsample=(10.0, 20.0)))
    assert region.exterior.tolist() == [[10, 20], [20, 20], [20, 40], [10, 40], [10, 20]]
    assert region.area_px == 200
    assert region.holes == ()


def test_holes_and_islands_in_them():
    frame, pair, island = mask_regions(mask(HOLED))
    assert (frame.area_px, pair.area_px, island.area_px) == (16, 2, 1)
    (hole,) = frame.holes
    assert sorted(map(tuple, hole[:-1].tolist())) == [(1, 1), (1, 4), (4, 1), (4, 4)]
    assert island.exterior[0].tolist() == [2, 2]


def test_touching_corners_make_separate_simple_rings():
    regions = mask_regions(mask(["#.", ".#"]))
    assert [r.area_px for r in regions] == [1, 1]
    (region,) = mask_regions(mask(["####", "#.##", "##.#", "####"]))
    assert len(region.holes) == 2
    assert region.area_px == 14


def test_empty_and_full():
    assert mask_regions(mask(["...", "..."])) == []
    (region,) = mask_regions(mask(["###", "###"], downsample=(5.0, 5.0)))
    assert region.area_px == 150


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_outlines_rasterise_back_to_the_mask(array):
    height, width = array.shape
    regions = mask_regions(TissueMask(array=array, downsample=(8.0, 8.0)))
    assert sum(r.area_px for r in regions) == 64 * array.sum()
    for region in regions:
        for ring in (region.exterior, *region.holes):
            assert len({tuple(p) for p in ring[:-1].tolist()}) == len(ring) - 1
    data = json.loads(json.dumps(regions_geojson(regions)))
    back = mask_from_geojson(data, (8 * width, 8 * height), 8.0, where="x")
    assert np.array_equal(back.array, array)


def test_geojson_is_what_qupath_opens():
    data = regions_geojson(mask_regions(mask(HOLED)), origin=(1, 2), name="Lung")
    assert data["type"] == "FeatureCollection"
    first = data["features"][0]
    assert first["properties"]["objectType"] == "annotation"
    assert first["properties"]["classification"]["name"] == "Lung"
    assert len(first["geometry"]["coordinates"]) == 2
    ring = first["geometry"]["coordinates"][0]
    assert ring[0] == ring[-1] == [-1, -2]


def test_cleaning_by_fraction():
    by = TissueSettings(min_region_fraction=2 / 45, min_hole_fraction=0)
    assert text(clean_mask(mask(HOLED), by, None)) == [
        "#####....",
        "#...#....",
        "#...#..##",
        "#...#....",
        "#####....",
    ]
    filled = clean_mask(mask(HOLED), TissueSettings(min_hole_fraction=0.5), None)
    assert text(filled)[2] == "#####..##"
    assert text(filled)[0] == "#####...."


def test_cleaning_by_area_uses_both_axes_and_mpp():
    # One mask pixel is 4 × 2 level-0 pixels of 0.5 µm: 2 µm².
    holed = mask(HOLED, downsample=(4.0, 2.0))
    kept = clean_mask(holed, TissueSettings(min_region_um2=4.0), 0.5)
    assert text(kept)[2] == "#...#..##"
    gone = clean_mask(holed, TissueSettings(min_region_um2=4.1), 0.5)
    assert text(gone)[2] == "#...#...."


def test_a_bay_at_the_border_is_no_hole():
    by = TissueSettings(min_hole_fraction=0.9)
    assert text(clean_mask(mask(["#.#", "#.#", "###"]), by, None)) == ["#.#", "#.#", "###"]


def test_area_without_mpp_is_refused():
    with pytest.raises(TissueError, match="mpp"):
        clean_mask(mask(HOLED), TissueSettings(min_hole_um2=1), None)


SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]]}


@pytest.mark.parametrize(
    "data",
    [
        SQUARE,
        {"type": "Feature", "geometry": SQUARE, "properties": {}},
        {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": SQUARE}]},
        [{"type": "Feature", "geometry": SQUARE}, {"type": "Feature", "geometry": None}],
        {"type": "MultiPolygon", "coordinates": [SQUARE["coordinates"]]},
        {"type": "GeometryCollection", "geometries": [SQUARE, {"type": "Point"}]},
    ],
)
def test_every_wrapping_is_read(data):
    found = mask_from_geojson(data, (8, 6), 2.0, where="x")
    assert text(found) == ["##..", "##..", "...."]
    assert found.downsample == (2.0, 2.0)


def test_a_hole_belongs_to_its_own_polygon():
    ring = [[0, 0], [6, 0], [6, 6], [0, 6], [0, 0]]
    hole = [[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]]
    holed = {"type": "Polygon", "coordinates": [ring, hole]}
    alone = mask_from_geojson(holed, (6, 6), 2.0, where="x")
    assert text(alone) == ["###", "#.#", "###"]
    both = mask_from_geojson([holed, SQUARE], (6, 6), 2.0, where="x")
    assert both.array.all()


def test_polygons_over_the_border_are_clipped():
    ring = [[-50, 2], [50, 2], [50, 4], [-50, 4], [-50, 2]]
    found = mask_from_geojson({"type": "Polygon", "coordinates": [ring]}, (6, 6), 2.0, where="x")
    assert text(found) == ["...", "###", "..."]


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ("text", "a.json"),
        ({"features": []}, "a.json"),
        ({"type": "Circle"}, "'Circle'"),
        ({"type": "FeatureCollection"}, "'features'"),
        ({"type": "Polygon", "coordinates": 3}, "coordinates"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}, "ring 0"),
        ({"type": "Polygon", "coordinates": [[[0, 0], ["a", 1], [2, 2]]]}, "ring 0"),
        ([SQUARE, {"type": "Polygon", "coordinates": [5]}], "item 1"),
        ({"type": "Point", "coordinates": [0, 0]}, "no Polygon"),
    ],
)
def test_malformed_geojson_names_file_and_place(data, place):
    with pytest.raises(TissueError, match=place) as error:
        mask_from_geojson(data, (8, 8), 1.0, where="a.json")
    assert "a.json" in str(error.value)


def test_an_empty_collection_is_an_empty_mask():
    data = {"type": "FeatureCollection", "features": []}
    assert not mask_from_geojson(data, (8, 8), 1.0, where="x").array.any()


@pytest.mark.parametrize(
    "name",
    ["brush", "ellipse", "polygon", "rectangle", "wand"],
)
def test_qupath_areas_are_read(shared_data, name):
    path = shared_data / "annotations" / "qupath_geojson" / f"qupath-{name}.json"
    data = json.loads(path.read_text())
    found = mask_from_geojson(data, (30000, 20000), 8.0, where=path.name)
    x, y = np.array(data["geometry"]["coordinates"][0]).T
    shoelace = abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2
    assert found.array.sum() * 64 == pytest.approx(shoelace, rel=0.1)


@pytest.mark.parametrize("name", ["line", "point", "polyline", "multipoint"])
def test_what_encloses_nothing_is_refused(shared_data, name):
    path = shared_data / "annotations" / "qupath_geojson" / f"qupath-{name}.json"
    with pytest.raises(TissueError, match="no Polygon"):
        mask_from_geojson(json.loads(path.read_text()), (30000, 20000), 8.0, where=path.name)


@pytest.mark.parametrize(
    "name", ["dlup_qupath05.geojson", "histoqc_holed.geojson", "histoqc_geojson_example.json"]
)
def test_other_tools_files_are_read(shared_data, name):
    data = json.loads((shared_data / "annotations" / name).read_text())
    assert mask_from_geojson(data, (100000, 100000), 64.0, where=name).array.any()
