"""Finished slides as AnnData."""

from __future__ import annotations

import json
import sys

import anndata
import numpy as np
import pytest

import microtome
from microtome import ExecutionOptions, Model, PreprocessingConfig
from microtome.errors import ConfigError, MissingDependencyError, StoreError

OPTIONS = {"segmenter": "otsu", "tiler": {"grid": {"size": 128, "magnification": 20}}}


@pytest.fixture
def stored(plugins, cohort, tmp_path):
    """Give a slide with features of two encoders, and what slide encoders make of one of them."""
    microtome.run_slides(
        cohort / "a.svs",
        tmp_path,
        encoder=["handcrafted", "mean"],
        slide_encoder=["nominal"],
        inspector="pen",
        **OPTIONS,
    )
    return tmp_path / "patches/a.h5"


def test_tiles_are_rows(stored):
    tiles = microtome.to_anndata(stored, "handcrafted")
    with microtome.open_result(stored) as slide:
        np.testing.assert_array_equal(tiles.X, slide.features("handcrafted"))
        coords, columns = slide.coords, dict(slide.columns)
        named = json.loads(slide.feature_attributes("handcrafted")["columns"])
    assert tiles.X.dtype == np.float32
    assert list(tiles.var_names) == [column["name"] for column in named]
    assert list(tiles.obs_names[:2]) == ["a-0", "a-1"]
    assert set(tiles.obs["slide_id"]) == {"a"}
    np.testing.assert_array_equal(tiles.obs[["x", "y"]].to_numpy(), coords[:, :2])
    assert {"tissue_fraction", "pen_red"} <= {*columns}
    for name, column in columns.items():
        np.testing.assert_array_equal(tiles.obs[name], column)


def test_places_are_centres_in_level_0_pixels(stored):
    tiles = microtome.to_anndata(stored, "handcrafted")
    places = tiles.obsm["spatial"]
    np.testing.assert_array_equal(places, tiles.obs[["x", "y"]].to_numpy() + 128)
    spatial = tiles.uns["spatial"]["a"]
    assert spatial["scalefactors"]["spot_diameter_fullres"] == 256
    assert spatial["metadata"]["source_image_path"].endswith("a.svs")


def test_further_features_stand_beside(stored):
    tiles = microtome.to_anndata(stored, ["mean", "handcrafted"])
    with microtome.open_result(stored) as slide:
        np.testing.assert_array_equal(tiles.X, slide.features("mean"))
        np.testing.assert_array_equal(tiles.obsm["X_handcrafted"], slide.features("handcrafted"))
    assert list(tiles.var_names) == ["0", "1", "2"]


def test_what_slide_encoders_gave_comes_along(stored):
    tiles = microtome.to_anndata(stored, "mean")
    with microtome.open_result(stored) as slide:
        expected = slide.array("slide_features/nominal")
        np.testing.assert_array_equal(
            tiles.obs["attention_nominal"], slide.array("slide_attention/nominal")
        )
    np.testing.assert_array_equal(tiles.uns["slide_features"]["nominal"], expected)
    told = tiles.uns["microtome"]
    assert told["slide_id"] == "a"
    assert told["patch_size_level0"] == 256
    assert json.loads(told["features"]["mean"]["card"])["dim"] == 3
    assert told["slide_features"]["nominal"]["identity"]
    assert "python" in json.loads(told["provenance"])


def test_anndatas_own_files_hold_it_all(stored, tmp_path):
    tiles = microtome.to_anndata(stored, ["mean", "handcrafted"])
    tiles.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.X, tiles.X)
    np.testing.assert_array_equal(back.obsm["spatial"], tiles.obsm["spatial"])
    assert {*back.uns["microtome"]["features"]} == {"mean", "handcrafted"}


def test_slides_are_joined(plugins, cohort, tmp_path):
    slides = [cohort / "a.svs", cohort / "b.svs"]
    microtome.run_slides(slides, tmp_path, encoder="mean", **OPTIONS)
    both = [microtome.to_anndata(tmp_path / f"patches/{name}.h5") for name in "ab"]
    joined = anndata.concat(both, uns_merge="unique")
    assert joined.obs_names.is_unique
    assert len(joined) == len(both[0]) + len(both[1])
    assert {*joined.uns["spatial"]} == {"a", "b"}


def test_regions_are_a_column(plugins, cohort, tmp_path):
    tiler = {"grid": {"size": 64, "magnification": 20, "region_tiles": 2}}
    options = {**OPTIONS, "tiler": tiler}
    microtome.run_slides(cohort / "a.svs", tmp_path, encoder="mean", writer="zarr", **options)
    tiles = microtome.to_anndata(tmp_path / "patches/a.zarr")
    counts = tiles.obs["region"].value_counts()
    assert len(counts) > 1
    assert {*counts} == {4}


def test_an_embedded_slide_gives_its_own(plugins, cohort, tmp_path):
    model, sizes = Model.from_preset("mean", level="tile"), {"requested_tile_size_px": 128}
    tiling = PreprocessingConfig(segmentation={"method": "otsu"}, **sizes)
    options = ExecutionOptions(output_dir=tmp_path)
    embedded = model.embed_slide(cohort / "a.svs", preprocessing=tiling, execution=options)
    tiles = embedded.to_anndata()
    np.testing.assert_array_equal(tiles.X, embedded.tile_embeddings)
    in_memory = model.embed_slide(cohort / "a.svs", preprocessing=tiling)
    with pytest.raises(ConfigError, match="in memory alone"):
        in_memory.to_anndata()


def test_a_slide_without_tiles_has_no_rows(plugins, cohort, tmp_path):
    drop_all = {"enabled": True, "black_drop_from": 0.0}
    microtome.run_slides(cohort / "a.svs", tmp_path, encoder="mean", filter=drop_all, **OPTIONS)
    tiles = microtome.to_anndata(tmp_path / "patches/a.h5")
    assert tiles.shape == (0, 3)
    assert tiles.obsm["spatial"].shape == (0, 2)
    assert "tissue_fraction" in tiles.obs


def test_what_is_not_there(stored, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"features of handcrafted, mean: say which become X"):
        microtome.to_anndata(stored)
    with pytest.raises(ConfigError, match=r"no features uni\. Available: handcrafted, mean"):
        microtome.to_anndata(stored, ["mean", "uni"])
    with pytest.raises(StoreError):
        microtome.to_anndata(tmp_path / "none.h5", "mean")
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(MissingDependencyError, match=r"microtome\[spatialdata\]"):
        microtome.to_anndata(stored, "mean")
