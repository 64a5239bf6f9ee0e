"""What a store for LazySlide holds beside tiles and features: tissue, embeddings, regions."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from PIL import Image

import microtome
from microtome.__main__ import main
from microtome.testing import make_slide

WORDS = ["engine=inline", "segmenter=file", "tiler.size=64", "tiler.magnification=20"]

MASK = np.zeros((48, 64), np.bool_)
MASK[8:40, 4:12] = MASK[4:44, 24:60] = True
RIGHT = np.arange(64) >= 18
"""Where the larger piece is; a pixel is 16 at level 0."""


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Two pieces of tissue, the larger on the right; embedded, and tiled by regions."""
    folder = tmp_path_factory.mktemp("pieces")
    make_slide(folder / "a.svs", size=(1024, 768))
    (folder / "masks").mkdir()
    Image.fromarray(MASK * np.uint8(255)).save(folder / "masks/a.png")
    words = [str(folder / "a.svs"), f"output={folder / 'out'}", *WORDS, "tiler.region_tiles=2"]
    words += [f"segmenter.folder={folder / 'masks'}", "slide_encoder=[mean,max]"]
    assert main([*words, "encoder=handcrafted"]) == 0
    return folder / "out"


@pytest.fixture
def export(pieces, tmp_path):
    """Export it and read it as SpatialData does."""

    def run(*words):
        line = ["export", str(pieces), "--to", "lazyslide", str(tmp_path / "ls"), *words]
        assert main(line) == 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from spatialdata import read_zarr

            return read_zarr(tmp_path / "ls/a.zarr")

    return run


def test_tissue_is_shapes(export, pieces):
    store = export()
    (path,) = (pieces / "tissue").glob("*.geojson")
    features = json.loads(path.read_text("utf-8"))["features"]
    tissues = store.shapes["tissues"]
    assert list(tissues["tissue_id"]) == [0, 1]
    for polygon, feature in zip(tissues.geometry, features, strict=True):
        ring = np.array(feature["geometry"]["coordinates"][0])
        np.testing.assert_array_equal(np.array(polygon.exterior.coords), ring)
    assert store.attrs["tile_spec"]["tiles"]["tissue_name"] == "tissues"


def test_tiles_know_their_piece(export):
    tiles = export().shapes["tiles"]
    corners = tiles[["y", "x"]].to_numpy() // 16
    held = [
        piece[tuple(slice(edge, edge + 8) for edge in corner)].any()
        for corner in corners
        for piece in (MASK * RIGHT, MASK * ~RIGHT)
    ]
    in_right, in_left = np.array(held).reshape(-1, 2).T
    expected = np.where(in_right, 0, np.where(in_left, 1, -1))
    assert {*expected} == {-1, 0, 1}
    np.testing.assert_array_equal(tiles["tissue_id"], expected)


def test_tiles_know_their_region(export, pieces):
    tiles = export().shapes["tiles"]
    with microtome.open_result(pieces / "patches/a.h5") as stored:
        np.testing.assert_array_equal(tiles["region"], stored.columns["region"])
    assert {*tiles["region"].value_counts()} == {4}


def test_embeddings_are_where_aggregations_are(export, pieces):
    store = export()
    found = store.tables["handcrafted_tiles"].uns["agg_ops"]
    assert {*found} == {"agg_mean-handcrafted", "agg_max-handcrafted"}
    with microtome.open_result(pieces / "patches/a.h5") as stored:
        expected = stored.array("slide_features/mean-handcrafted")
    mean = found["agg_mean-handcrafted"]
    np.testing.assert_array_equal(mean["features"], expected[np.newaxis])
    assert (mean["encoder"], mean["tile_key"]) == ("mean", "tiles")
    np.testing.assert_allclose(
        mean["features"][0], store.tables["handcrafted_tiles"].X.mean(0), rtol=1e-4, atol=1e-5
    )


def test_no_features_no_embeddings(export):
    store = export("--features=none")
    assert not store.tables
    assert "tissues" in store.shapes


def test_an_embedding_that_came_later_makes_another_file(pieces, tmp_path, capsys):
    words = [str(pieces.parent / "a.svs"), f"output={tmp_path / 'out'}", *WORDS]
    words += [f"segmenter.folder={pieces.parent / 'masks'}", "encoder=handcrafted"]
    line = ["export", str(tmp_path / "out"), "--to", "lazyslide", str(tmp_path / "ls")]
    assert main([*words, "slide_encoder=mean"]) == 0
    assert main(line) == main(line) == 0
    assert "reused" in capsys.readouterr().out
    assert main([*words, "slide_encoder=[mean,max]"]) == 0
    assert main(line) == 3
    assert "features.slide_features/max-handcrafted was" in capsys.readouterr().out
    assert main([*line, "--force"]) == 0


def test_what_was_exported_comes_back(export, pieces, tmp_path):
    export()
    line = ["import", str(tmp_path / "ls"), "--from", "lazyslide", str(tmp_path / "back")]
    assert main(line) == 0
    with (
        microtome.open_result(pieces / "patches/a.h5") as ours,
        microtome.open_result(tmp_path / "back/patches/a.h5") as back,
    ):
        np.testing.assert_array_equal(back.coords, ours.coords)
        np.testing.assert_array_equal(back.features("handcrafted"), ours.features("handcrafted"))
