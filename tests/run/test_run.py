"""Whole runs on a synthetic slide: what they leave."""

from __future__ import annotations

import json

import h5py
import numpy as np
import openslide
import pytest
import zarr
from PIL import Image
from run_checks import files, leftovers, states

import microtome
from microtome.run.slides import batches
from microtome.store.status import read_status


def test_a_run_leaves_coordinates_features_and_records(go, slide, tmp_path):
    result = go(slide, visualize=["grid", "mask", "contours"])
    assert states(result) == ["done"]
    assert result.exit_code == 0
    out = tmp_path / "out"
    with h5py.File(out / "patches/one.h5") as file:
        coords, features = file["coords"][:], file["features/mean"][:]
        attributes = dict(file.attrs)
        assert file["features/mean"].attrs["precision"] == "fp32"
    assert coords.dtype == np.int32
    assert coords.shape == (len(features), 5)
    assert len(coords) > 3
    assert attributes["patch_size"] == 256
    assert attributes["patch_size_level0"] == 512
    assert attributes["level0_magnification"] == 40
    assert attributes["target_magnification"] == 20
    assert attributes["num_patches"] == len(coords)
    assert attributes["wsi_path"] == str(slide)
    status = read_status(out / "status/one.json")
    assert status.reader == "tiff"
    assert "vouches" in status.why
    assert all((out / path).exists() for path in status.outputs.values())
    assert {"tissue", "regions", "hdf5", "grid overlay"} <= set(status.outputs)
    record = json.loads(result.record.read_text())
    assert record["exit_code"] == 0
    assert record["counts"] == {"done": 1}
    assert record["encoders"]["mean"]["plugin"] == "mean"
    assert not leftovers(out)


@pytest.mark.parametrize("magnification", [20, 10, 13])
def test_the_documented_recipe_gives_the_same_pixels(go, slide, tmp_path, magnification):
    tiler = {"grid": {"magnification": magnification, "size": 128}}
    go(slide, tiler=tiler, writer=["hdf5", "png"])
    with h5py.File(tmp_path / "out/patches/one.h5") as file, openslide.OpenSlide(slide) as wsi:
        size = int(file.attrs["patch_size"])
        assert len(file["coords"])
        for (x, y, w, h, level), mean in zip(file["coords"], file["features/mean"], strict=True):
            tile = wsi.read_region((int(x), int(y)), int(level), (int(w), int(h))).convert("RGB")
            if tile.size != (size, size):
                tile = tile.resize((size, size), Image.Resampling.BILINEAR)
            with Image.open(tmp_path / f"out/images/one/one_x{x}_y{y}.png") as png:
                np.testing.assert_array_equal(np.asarray(png), np.asarray(tile))
            np.testing.assert_allclose(np.asarray(tile).mean((0, 1)), mean, rtol=1e-6)


def test_batches_and_threads_change_no_value(go, slide, tmp_path):
    go(slide, encoder="handcrafted", output=tmp_path / "a")
    go(slide, encoder="handcrafted", output=tmp_path / "b", batch_size=3, threads=1)
    with (
        h5py.File(tmp_path / "a/patches/one.h5") as a,
        h5py.File(tmp_path / "b/patches/one.h5") as b,
    ):
        np.testing.assert_array_equal(a["features/handcrafted"][:], b["features/handcrafted"][:])


def test_tissue_alone(go, slide, tmp_path):
    result = go(slide, task="tissue", visualize=["mask", "grid"])
    assert states(result) == ["done"]
    out = tmp_path / "out"
    assert not (out / "patches").exists()
    assert len(list((out / "tissue").glob("one.*.geojson"))) == 1
    assert (out / "visualization/one_mask.png").exists()
    assert not (out / "visualization/one.png").exists()


def test_several_encoders_share_one_reading(go, slide, monkeypatch):
    read = []
    read_tiles = batches.read_tiles
    monkeypatch.setattr(
        batches,
        "read_tiles",
        lambda *a, **k: read.extend(map(tuple, a[2])) or read_tiles(*a, **k),
    )
    result = go(slide, encoder=["mean", "handcrafted"], writer=["hdf5", "png"])
    assert result.statuses[0].state == "done"
    assert len(read) == len(set(read)) == result.statuses[0].tiles


def test_zarr_holds_what_hdf5_holds(go, slide, tmp_path):
    go(slide, writer=["hdf5", "zarr"], encoder=["mean", "handcrafted"])
    group = zarr.open_group(tmp_path / "out/patches/one.zarr", mode="r", zarr_format=3)
    with h5py.File(tmp_path / "out/patches/one.h5") as file:
        for name in ("coords", "features/mean", "features/handcrafted", "columns/tissue_fraction"):
            np.testing.assert_array_equal(group[name][:], file[name][:])
            assert group[name].dtype == file[name].dtype
        for name in ("patch_size", "patch_size_level0", "wsi_path", "identity"):
            assert group.attrs[name] == file.attrs[name]


def test_the_content_filter_keeps_rows_aligned(go, slide, tmp_path):
    everything = {"segmenter": "none", "tiler": {"grid": {"magnification": 20, "min_tissue": 0.0}}}
    go(slide, **everything, output=tmp_path / "all")
    result = go(slide, **everything, filter={"enabled": True}, writer=["hdf5", "png"])
    with h5py.File(tmp_path / "all/patches/one.h5") as file:
        by_place = dict(zip(map(tuple, file["coords"][:]), file["features/mean"][:], strict=True))
    with h5py.File(tmp_path / "out/patches/one.h5") as file:
        coords, features = file["coords"][:], file["features/mean"][:]
        assert file.attrs["num_patches"] == len(coords)
        assert len(file["columns/tissue_fraction"]) == len(coords)
    assert 0 < len(coords) < len(by_place)
    assert result.statuses[0].tiles == len(coords)
    for row, values in zip(coords, features, strict=True):
        np.testing.assert_array_equal(by_place[tuple(row)], values)
    assert len(list((tmp_path / "out/images/one").glob("*.png"))) == len(coords)
    record = json.loads((tmp_path / "out/images/one/.microtome.json").read_text())
    assert record["num_patches"] == len(coords)
    dropped = np.array([v for k, v in by_place.items() if k not in set(map(tuple, coords))])
    assert dropped.mean() > features.mean()


def test_an_empty_slide_is_finished(go, slide, tmp_path):
    result = go(slide, segmenter="nothing", writer=["hdf5", "zarr", "png"])
    assert states(result) == ["empty"]
    assert result.exit_code == 0
    with h5py.File(tmp_path / "out/patches/one.h5") as file:
        assert file["coords"].shape == (0, 5)
        assert file["features/mean"].shape == (0, 3)
    before = files(tmp_path / "out")
    assert states(go(slide, segmenter="nothing", writer=["hdf5", "zarr", "png"])) == ["empty"]
    assert files(tmp_path / "out") == before


def test_float16_features(go, slide, tmp_path):
    go(slide, feature_dtype="float16")
    go(slide, output=tmp_path / "wide")
    with (
        h5py.File(tmp_path / "out/patches/one.h5") as half,
        h5py.File(tmp_path / "wide/patches/one.h5") as full,
    ):
        assert half["features/mean"].dtype == np.float16
        np.testing.assert_array_equal(
            half["features/mean"][:], full["features/mean"][:].astype(np.float16)
        )


def test_why_a_slide_is_empty(go, slide):
    empty = go(slide, segmenter="nothing")
    assert empty.statuses[0].warnings == ("no tissue was found",)
    small = go(slide, tiler={"grid": {"magnification": 5}}, tiling="auto")
    assert small.statuses[0].state == "empty"
    assert "smaller than one tile" in small.statuses[0].warnings[0]


def test_large_reads_are_bounded_and_change_nothing(go, slide, tmp_path, monkeypatch):
    go(slide, writer=["hdf5", "png"])
    sizes = []
    read_tiles = batches.read_tiles
    monkeypatch.setattr(batches, "READ_BYTES", 3 * 512 * 512 * 3)
    monkeypatch.setattr(
        batches, "read_tiles", lambda *a, **k: sizes.append(len(a[2])) or read_tiles(*a, **k)
    )
    go(slide, writer=["hdf5", "png"], output=tmp_path / "b")
    assert max(sizes) == 3
    for png in (tmp_path / "out/images/one").glob("*.png"):
        assert png.read_bytes() == (tmp_path / "b/images/one" / png.name).read_bytes()


def test_an_encoder_without_torch_tells_the_device_it_runs_on(go, slide, tmp_path):
    result = go(slide, encoder={"mean": {"device": "cuda", "precision": "bf16"}})
    assert "mean runs on the CPU in fp32: it does not require torch." in result.notes
    with h5py.File(tmp_path / "out/patches/one.h5") as file:
        assert file["features/mean"].attrs["precision"] == "fp32"
        assert file["features/mean"].attrs["device"] == "cpu"


def test_magnifications_are_whole_numbers_where_they_are_whole(go, slide, tmp_path):
    go(slide)
    with h5py.File(tmp_path / "out/patches/one.h5") as file:
        for name in ("level0_magnification", "target_magnification", "magnification"):
            assert np.issubdtype(type(file.attrs[name]), np.integer)


def test_two_instances_of_one_encoder(go, slide, tmp_path):
    go(slide, encoder={"mean": {}, "twice": {"plugin": "mean", "scale": 2.0}})
    with h5py.File(tmp_path / "out/patches/one.h5") as file:
        np.testing.assert_allclose(file["features/twice"][:], 2 * file["features/mean"][:], 1e-6)


def test_images_without_features(go, slide, tmp_path):
    result = go(slide, encoder=[], writer="png")
    assert len(list((tmp_path / "out/images/one").glob("*.png"))) == result.statuses[0].tiles
    assert not (tmp_path / "out/patches").exists()


def test_the_encoder_is_named_first(go, slide):
    result = go(slide)
    assert result.notes[0].startswith("encoder mean (3 columns, cpu, fp32)")


def test_results_open_from_python(go, slide, tmp_path):
    go(slide, writer=["hdf5", "zarr"])
    for suffix in ("h5", "zarr"):
        with microtome.open_result(tmp_path / f"out/patches/one.{suffix}") as stored:
            assert stored.feature_names() == ["mean"]
            assert stored.features("mean").shape == (len(stored.coords), 3)
