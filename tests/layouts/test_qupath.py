"""GeoJSON for QuPath: what its objects are, where they lie, and how they are classified."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import h5py
import numpy as np
import pytest
from layouts.labelled import label, predict
from layouts.stores import content
from run_checks import leftovers

from microtome.__main__ import main
from microtome.errors import ConfigError, LayoutError
from microtome.run.inputs.annotated import read_annotations
from microtome.slide.types import SlideInfo
from microtome.store.features import ArraySource
from microtome.store.publish import FeatureSet
from microtome.testing.contracts.layout import make_tiled_slide
from microtome_layouts import Origin, QupathConfig
from microtome_layouts.qupath import QupathLayout

OBJECTS = {"annotation", "detection"}


@pytest.fixture
def labelled(lone):
    """An output whose slide ``a`` is labelled."""
    label(lone / "patches/a.h5")
    return lone


def export(output, folder, *words):
    return main(["export", str(output), "--to", "qupath", str(folder), *words])


def load(path):
    """Read a GeoJSON and see that it is one, as QuPath since 0.4 has them."""
    data = json.loads(path.read_text("utf-8"))
    assert set(data) == {"type", "features"}
    assert data["type"] == "FeatureCollection"
    for feature in data["features"]:
        assert set(feature) == {"type", "geometry", "properties"}
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        for ring in feature["geometry"]["coordinates"]:
            assert len(ring) >= 4
            assert ring[0] == ring[-1]
            assert all(len(point) == 2 for point in ring)
        about = feature["properties"]
        assert about["objectType"] in OBJECTS
        if "classification" in about:
            assert set(about["classification"]) == {"name", "color"}
            assert all(0 <= value <= 255 for value in about["classification"]["color"])
        numbers = about.get("measurements", {}).values()
        assert all(isinstance(value, int | float) for value in numbers)
    return data["features"]


def of_type(features, kind):
    return [each for each in features if each["properties"]["objectType"] == kind]


def named(features):
    return [each["properties"].get("classification", {}).get("name") for each in features]


def corners(features):
    return np.array([each["geometry"]["coordinates"][0] for each in features])


def test_tiles_are_detections_where_they_lie(labelled, tmp_path):
    assert export(labelled, tmp_path) == 0
    features, ours = load(tmp_path / "a.geojson"), content(labelled)
    tiles = of_type(features, "detection")
    x, y = ours["coords"][:, 0], ours["coords"][:, 1]
    side = 256
    expected = np.stack([x, y, x + side, y, x + side, y + side, x, y + side, x, y], axis=1)
    assert np.array_equal(corners(tiles), expected.reshape(-1, 5, 2))
    labels = ours["columns"]["label"].tolist()
    assert named(tiles) == [{-1: None, 0: "normal", 1: "tumor"}[each] for each in labels]
    assert {None, "normal", "tumor"} == {*named(tiles)}
    measured = [each["properties"]["measurements"] for each in tiles]
    for name in ("label", "label_fraction", "tissue_fraction"):
        there = [each[name] for each in measured]
        assert np.allclose(there, ours["columns"][name], atol=1e-6), name


def test_what_is_in_it_is_told(labelled, tmp_path, capsys):
    count = len(content(labelled)["coords"])
    predict(labelled / "patches/a.h5", "mine", np.full((count, 2), 0.5))
    assert export(labelled, tmp_path / "all") == 0
    (line, _) = capsys.readouterr().out.splitlines()
    state, told = line.removeprefix("a\t").split("\t")
    assert state == "exported"
    assert told.startswith(f"{count} tiles, predictions/mine, ")
    assert {"label", "label_fraction", "tissue_fraction", "tissue"} <= {*told.split(", ")}
    assert export(labelled, tmp_path / "tissue", "what=[tissue]") == 0
    assert f"{count} tiles, tissue\n" in capsys.readouterr().out


def test_tissue_is_annotations(labelled, tmp_path):
    assert export(labelled, tmp_path, "what=[tissue]") == 0
    features = load(tmp_path / "a.geojson")
    (tissue,) = labelled.glob("tissue/a.*.geojson")
    expected = json.loads(tissue.read_text("utf-8"))["features"]
    assert len(expected) > 0
    assert [each["geometry"] for each in features] == [each["geometry"] for each in expected]
    assert {*named(features)} == {"Tissue"}
    assert of_type(features, "detection") == []


def test_predictions_classify_and_are_measured(labelled, tmp_path):
    count = len(content(labelled)["coords"])
    first = np.linspace(0, 1, count)
    values = np.stack([1 - first, first], axis=1)
    values[3] = np.nan  # of a tile that nothing was said of
    predict(labelled / "patches/a.h5", "mine", values)
    assert export(labelled, tmp_path / "both") == 0
    tiles = of_type(load(tmp_path / "both/a.geojson"), "detection")
    expected = ["tumor" if value > 0.5 else "normal" for value in first]
    expected[3] = None
    assert named(tiles) == expected
    measured = [each["properties"]["measurements"] for each in tiles]
    assert {*measured[0]} >= {"prob_normal", "prob_tumor", "label", "label_fraction"}
    assert not {"prob_normal", "prob_tumor"} & {*measured[3]}
    told = [each["prob_tumor"] for each in measured if "prob_tumor" in each]
    assert np.allclose(told, np.delete(first, 3), atol=1e-6)
    assert export(labelled, tmp_path / "only", "what=[predictions]") == 0
    only = load(tmp_path / "only/a.geojson")
    assert named(only) == expected
    assert {*only[0]["properties"]["measurements"]} == {"prob_normal", "prob_tumor"}
    assert export(labelled, tmp_path / "none", "what=[tiles]") == 0
    assert "prob_tumor" not in load(tmp_path / "none/a.geojson")[0]["properties"]["measurements"]


def test_what_is_written_is_read_as_annotations(labelled, tmp_path):
    assert export(labelled, tmp_path) == 0
    features = load(tmp_path / "a.geojson")
    drawn = read_annotations(tmp_path / "a.geojson")
    assert [each.group or None for each in drawn] == named(features)
    rings = [np.array(each.geometry.exterior.coords) for each in drawn]
    assert all(
        {*map(tuple, ring)} == {*map(tuple, feature["geometry"]["coordinates"][0])}
        for ring, feature in zip(rings, features, strict=True)
    )


def test_of_several_predictions_one_is_named(labelled, tmp_path, capsys):
    count = len(content(labelled)["coords"])
    for name, share in (("one", 0.2), ("two", 0.9)):
        predict(labelled / "patches/a.h5", name, np.tile([1 - share, share], (count, 1)))
    assert export(labelled, tmp_path) == 3
    assert "of predictions it has several. Name one with predictions=, of one, two" in (
        capsys.readouterr().out
    )
    assert export(labelled, tmp_path, "predictions=three") == 3
    assert "it has none named 'three'" in capsys.readouterr().out
    assert export(labelled, tmp_path, "predictions=two") == 0
    assert {*named(of_type(load(tmp_path / "a.geojson"), "detection"))} == {"tumor"}


def test_a_file_is_made_anew_where_labels_or_predictions_changed(labelled, tmp_path, capsys):
    assert export(labelled, tmp_path) == 0
    assert export(labelled, tmp_path) == 0
    assert "a\treused" in capsys.readouterr().out
    label(labelled / "patches/a.h5", classes=["normal", "other"])
    assert export(labelled, tmp_path) == 3
    assert "was exported from something else: columns.classes was" in capsys.readouterr().out
    assert export(labelled, tmp_path, "--force") == 0
    count = len(content(labelled)["coords"])
    predict(labelled / "patches/a.h5", "mine", np.tile([0.5, 0.5], (count, 1)))
    assert export(labelled, tmp_path) == 3
    assert "predictions/mine" in capsys.readouterr().out
    assert not leftovers(tmp_path)


def test_viewers_that_crop_to_the_bounds_are_served(labelled, tmp_path, capsys):
    assert export(labelled, tmp_path / "all") == 0
    plain = load(tmp_path / "all/a.geojson")
    assert export(labelled, tmp_path / "none", "origin=bounds") == 0  # of a slide without bounds
    assert load(tmp_path / "none/a.geojson") == plain
    with h5py.File(labelled / "patches/a.h5", "r+") as file:
        file.attrs["bounds"] = [64, 32, 512, 512]
    assert export(labelled, tmp_path / "cropped", "origin=bounds") == 0
    for one, other in zip(plain, load(tmp_path / "cropped/a.geojson"), strict=True):
        ring, moved = (np.array(each["geometry"]["coordinates"][0]) for each in (one, other))
        assert np.array_equal(ring - (64, 32), moved)
        assert one["properties"] == other["properties"]
    with h5py.File(labelled / "patches/a.h5", "r+") as file:
        del file.attrs["bounds"]
    assert export(labelled, tmp_path / "unknown", "origin=bounds") == 3
    assert "nothing says what its bounds are" in capsys.readouterr().out


def test_a_slide_says_its_bounds():
    names = ("x", "y", "width", "height")
    properties = {f"openslide.bounds-{n}": str(v) for n, v in zip(names, (5, 6, 7, 8), strict=True)}
    info = SlideInfo(path=None, reader="r", levels=(), properties=properties)
    assert info.bounds == (5, 6, 7, 8)
    assert replace(info, properties={}).bounds is None


def test_a_store_without_labels_has_no_classes(lone, tmp_path):
    assert export(lone, tmp_path) == 0
    tiles = of_type(load(tmp_path / "a.geojson"), "detection")
    assert {*named(tiles)} == {None}
    assert "tissue_fraction" in tiles[0]["properties"]["measurements"]


def test_a_slide_without_tiles_is_a_collection_of_none(output, tmp_path):
    assert export(output, tmp_path) == 0
    assert load(tmp_path / "empty.geojson") == []


def test_many_classes_have_colors_of_their_own(tmp_path):
    slide = make_tiled_slide(tiles=30, features=False)
    labels = np.arange(30, dtype=np.int16)
    classes = [f'class "{each}"' for each in range(30)]
    slide = replace(slide, columns={"label": labels}, attributes={"classes": classes})
    (file,) = QupathLayout(QupathConfig()).files(slide)
    file.write(tmp_path / "x")
    features = load(tmp_path / "x")
    assert named(features) == classes
    colors = [tuple(each["properties"]["classification"]["color"]) for each in features]
    assert len({*colors[:10]}) == 10
    assert colors[0] not in colors[1:]  # the background's is no class's


def test_a_hundred_thousand_tiles_are_written_a_part_at_a_time(tmp_path):
    slide, count = make_tiled_slide(tiles=1, features=False), 100_000
    coords = np.repeat(slide.coords, count, axis=0)
    values = np.random.default_rng(0).random((count, 2), np.float32)
    slide = replace(
        slide,
        coords=coords,
        columns={"label": np.zeros(count, np.int16)},
        attributes={"classes": ["normal", "tumor"]},
        predictions={"predictions/m": FeatureSet(ArraySource(values), {})},
    )
    (file,) = QupathLayout(QupathConfig()).files(slide)
    tracemalloc.start()
    file.write(tmp_path / "x")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 16 << 20 < (tmp_path / "x").stat().st_size
    assert len(json.loads((tmp_path / "x").read_text("utf-8"))["features"]) == count


def test_what_is_not_known_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no part of what= named 'tile'. Did you mean 'tiles'"):
        QupathLayout(QupathConfig(what=["tile"]))
    with pytest.raises(ConfigError, match="draws nothing"):
        QupathLayout(QupathConfig(what=[]))
    with pytest.raises(LayoutError, match=r"exported and not imported.*annotations=FOLDER"):
        QupathLayout(QupathConfig()).find(tmp_path)
    slide = make_tiled_slide(tiles=2, features=False)
    values = FeatureSet(ArraySource(np.zeros((2, 3), np.float32)), {})
    slide = replace(slide, predictions={"predictions/m": values})
    with pytest.raises(LayoutError, match="nothing names the 3 classes"):
        list(QupathLayout(QupathConfig()).files(slide))
    with pytest.raises(LayoutError, match="origin=bounds"):
        list(QupathLayout(QupathConfig(origin=Origin.bounds)).files(slide))
