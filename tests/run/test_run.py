"""Whole runs on a synthetic slide: what they leave, what they reuse, what they refuse."""

from __future__ import annotations

import json
import shutil
import signal

import h5py
import numpy as np
import openslide
import pytest
import standins
import zarr
from PIL import Image

import microtome
from microtome.errors import (
    ConfigError,
    InputError,
    MissingDependencyError,
    PluginError,
    StoreError,
)
from microtome.plugin import registry
from microtome.run import pipeline, pixels
from microtome.run.progress import SilentReporter
from microtome.store.status import read_status


def files(folder):
    """Give every file below a folder and what is in it, the records of runs left out."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in ("runs", "status")
    }


def leftovers(folder):
    """Give the private files that a run should have swept."""
    return [path for path in folder.rglob("*") if ".tmp" in path.name]


def states(result):
    """Give the states of a run's slides, in order."""
    return [status.state for status in result.statuses]


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
    assert status.reader == "openslide"
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


def test_a_second_run_reuses_everything(go, slide, tmp_path):
    go(slide, writer=["hdf5", "png"], visualize=["grid"])
    before = files(tmp_path / "out")
    result = go(slide, writer=["hdf5", "png"], visualize=["grid"])
    assert states(result) == ["reused"]
    assert files(tmp_path / "out") == before


def test_another_encoder_leaves_the_rest_untouched(go, slide, tmp_path):
    go(slide)
    path = tmp_path / "out/patches/one.h5"
    with h5py.File(path) as file:
        coords, mean, date = (
            file["coords"][:],
            file["features/mean"][:],
            file.attrs["creation_date"],
        )
    result = go(slide, encoder=["mean", "handcrafted"])
    assert states(result) == ["done"]
    with h5py.File(path) as file:
        assert sorted(file["features"]) == ["handcrafted", "mean"]
        np.testing.assert_array_equal(file["coords"][:], coords)
        np.testing.assert_array_equal(file["features/mean"][:], mean)
        assert file.attrs["creation_date"] == date
        assert len(file["features/handcrafted"]) == len(coords)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tiler": {"grid": {"magnification": 10}}}, "magnification"),
        ({"tiler": {"grid": {"magnification": 20, "step": 128}}}, "step"),
        ({"segmenter": "none"}, "segmenter"),
        ({"mpp": 0.5}, "mpp"),
        ({"filter": {"enabled": True}}, "filter"),
        ({"encoder": {"mean": {"scale": 2.0}}}, "scale"),
        ({"feature_dtype": "float16"}, "dtype"),
        ({"tissue": {"min_region_um2": 50.0}}, "cleaning.min_region_um2"),
        ({"tiler": {"grid": {"magnification": 20, "min_tissue": 0.5}}}, "min_tissue"),
        ({"tiler": {"grid": {"magnification": 20, "edge": "pad"}}}, "edge"),
        ({"writer": {"hdf5": {"passports": True}}}, "passports"),
        ({"encoder": {"mean": {"plugin": "seeded", "seed": 2}}}, "seed"),
    ],
)
def test_another_configuration_is_refused_by_name(go, slide, tmp_path, change, named):
    go(slide)
    path = tmp_path / "out/patches/one.h5"
    before = path.read_bytes()
    result = go(slide, **change)
    assert states(result) == ["failed"]
    assert result.exit_code == 3
    error = result.statuses[0].error
    assert error["type"] == "IdentityError"
    assert named in error["message"]
    assert "force=true" in error["message"]
    assert path.read_bytes() == before


def test_force_replaces_what_another_configuration_made(go, slide, tmp_path):
    go(slide)
    result = go(slide, encoder={"mean": {"scale": 2.0}}, force=True)
    assert states(result) == ["done"]
    first = h5py.File(tmp_path / "out/patches/one.h5")["features/mean"][0, 0]
    go(slide, force=True)
    second = h5py.File(tmp_path / "out/patches/one.h5")["features/mean"][0, 0]
    assert first == pytest.approx(2 * second, rel=1e-6)


def test_what_changes_no_result_changes_no_identity(go, slide):
    go(slide)
    assert states(go(slide, batch_size=3, threads=1)) == ["reused"]


def test_batches_and_threads_change_no_value(go, slide, tmp_path):
    go(slide, encoder="handcrafted", output=tmp_path / "a")
    go(slide, encoder="handcrafted", output=tmp_path / "b", batch_size=3, threads=1)
    with (
        h5py.File(tmp_path / "a/patches/one.h5") as a,
        h5py.File(tmp_path / "b/patches/one.h5") as b,
    ):
        np.testing.assert_array_equal(a["features/handcrafted"][:], b["features/handcrafted"][:])


def test_coords_read_no_tile_and_process_goes_on_from_there(go, slide, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "iterate_tiles", None)
        assert states(go(slide, task="coords")) == ["done"]
    path = tmp_path / "out/patches/one.h5"
    with h5py.File(path) as file:
        coords = file["coords"][:]
        assert list(file["features"]) == []
    assert states(go(slide)) == ["done"]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["coords"][:], coords)
        assert list(file["features"]) == ["mean"]
        assert "has_background" in file["columns"]


def test_tissue_alone(go, slide, tmp_path):
    result = go(slide, task="tissue", visualize=["mask", "grid"])
    assert states(result) == ["done"]
    out = tmp_path / "out"
    assert not (out / "patches").exists()
    assert len(list((out / "tissue").glob("one.*.geojson"))) == 1
    assert (out / "visualization/one_mask.png").exists()
    assert not (out / "visualization/one.png").exists()


def test_tissue_is_computed_once_for_two_tilings(go, slide, tmp_path, monkeypatch):
    calls = []
    find = pipeline.find_tissue
    monkeypatch.setattr(pipeline, "find_tissue", lambda *a: calls.append(1) or find(*a))
    for magnification in (10, 20):
        result = go(slide, tiling="auto", tiler={"grid": {"magnification": magnification}})
        assert states(result) == ["done"]
    assert len(calls) == 1
    assert (tmp_path / "out/10x_256px_0px/patches/one.h5").exists()
    assert (tmp_path / "out/20x_256px_0px/patches/one.h5").exists()


def test_several_encoders_share_one_reading(go, slide, monkeypatch):
    read = []
    read_tiles = pixels.read_tiles
    monkeypatch.setattr(
        pixels, "read_tiles", lambda *a: read.extend(map(tuple, a[2])) or read_tiles(*a)
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


@pytest.mark.parametrize(("encoder", "said"), [("nan", "not finite"), ("wide", "shape")])
def test_wrong_features_fail_the_slide_and_leave_nothing(go, slide, tmp_path, encoder, said):
    result = go(slide, encoder=encoder, writer=["hdf5", "png"])
    assert states(result) == ["failed"]
    assert said in result.statuses[0].error["message"]
    assert encoder in result.statuses[0].error["message"]
    assert result.statuses[0].stage == "tiles"
    assert not (tmp_path / "out/patches/one.h5").exists()
    assert not (tmp_path / "out/images/one").exists()
    assert not leftovers(tmp_path / "out")


def test_one_bad_slide_does_not_stop_the_others(go, slide, tmp_path):
    bad = tmp_path / "slides/bad.svs"
    bad.write_bytes(b"not a slide")
    shutil.copy(slide, tmp_path / "slides/two.svs")
    result = go(tmp_path / "slides")
    assert {s.slide_id: s.state for s in result.statuses} == {
        "bad": "failed",
        "one": "done",
        "two": "done",
    }
    assert result.exit_code == 3
    status = read_status(tmp_path / "out/status/bad.json")
    assert status.stage == "open"
    assert str(bad) in status.error["message"]
    assert (tmp_path / "out/patches/two.h5").exists()


def test_a_slide_that_truncates_half_way_fails_alone(go, slide, tmp_path):
    whole = (tmp_path / "slides/one.svs").read_bytes()
    (tmp_path / "slides/cut.svs").write_bytes(whole[: len(whole) // 2])
    result = go(tmp_path / "slides")
    assert {s.slide_id: s.state for s in result.statuses} == {"cut": "failed", "one": "done"}
    assert not (tmp_path / "out/patches/cut.h5").exists()
    assert not leftovers(tmp_path / "out")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_what_is_done_and_goes_on(go, slide, tmp_path, sent, code):
    standins.Interrupting.signal = sent
    shutil.copy(slide, tmp_path / "slides/two.svs")
    tiles = go(slide, output=tmp_path / "probe").statuses[0].tiles
    standins.Interrupting.left = -(-tiles // 32) + 1 if tiles > 32 else 1
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "slides", encoder="interrupting")
    out = tmp_path / "out"
    assert (out / "patches/one.h5").exists()
    assert not (out / "patches/two.h5").exists()
    assert not leftovers(out)
    (record,) = out.glob("runs/*/run.json")
    assert json.loads(record.read_text())["exit_code"] == code
    standins.Interrupting.left = -1
    assert states(go(tmp_path / "slides", encoder="interrupting")) == ["reused", "done"]


def test_another_slide_of_that_name_is_refused(go, slide, tmp_path):
    go(slide)
    other = tmp_path / "other"
    other.mkdir()
    changed = bytearray((tmp_path / "slides/one.svs").read_bytes())
    changed[-1] ^= 1
    (other / "one.svs").write_bytes(changed)
    result = go(other / "one.svs")
    assert states(result) == ["failed"]
    message = result.statuses[0].error["message"]
    assert str(other / "one.svs") in message
    assert str(slide) in message
    assert "slide_id=relpath" in message


def test_slides_of_one_name_are_refused_and_the_others_done(go, slide, tmp_path):
    (tmp_path / "slides/sub").mkdir()
    shutil.copy(slide, tmp_path / "slides/two.svs")
    shutil.copy(slide, tmp_path / "slides/sub/two.svs")
    result = go(tmp_path / "slides", recursive=True)
    assert [(s.slide_id, s.state) for s in result.statuses] == [
        ("two", "failed"),
        ("two", "failed"),
        ("one", "done"),
    ]
    assert result.exit_code == 3
    assert str(tmp_path / "slides/sub/two.svs") in result.statuses[0].error["message"]
    assert not (tmp_path / "out/patches/two.h5").exists()
    apart = go(tmp_path / "slides", recursive=True, slide_id="relpath", output=tmp_path / "apart")
    assert states(apart) == ["done"] * 3
    assert (tmp_path / "apart/patches/sub/two.svs.h5").exists()


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


def test_images_alone_remember_what_the_filter_kept(go, slide, tmp_path):
    options = {
        "segmenter": "none",
        "tiler": {"grid": {"magnification": 20, "min_tissue": 0.0}},
        "filter": {"enabled": True},
        "encoder": [],
        "writer": "png",
    }
    first = go(slide, **options)
    count = len(list((tmp_path / "out/images/one").glob("*.png")))
    again = go(slide, **options, visualize=["grid"])
    assert [status.tiles for status in first.statuses + again.statuses] == [count, count]
    assert states(again) == ["reused"]


def test_overlays_show_what_is_there_now(go, slide, tmp_path):
    mask = tmp_path / "out/visualization/one_mask.png"
    go(slide, task="tissue", visualize=["mask"])
    first = mask.read_bytes()
    go(slide, task="tissue", segmenter="none")
    go(slide, task="tissue", segmenter="none", visualize=["mask"])
    assert mask.read_bytes() != first
    go(slide, task="tissue", visualize=["mask"])
    assert mask.read_bytes() == first


def test_overlays_of_an_earlier_run_are_kept_true(go, slide, tmp_path):
    grid = tmp_path / "out/visualization/one.png"
    go(slide, visualize=["grid"])
    first = grid.read_bytes()
    go(slide, tiler={"grid": {"magnification": 20, "size": 128}}, force=True)
    assert grid.read_bytes() != first
    stamp = grid.stat().st_mtime_ns
    go(slide, tiler={"grid": {"magnification": 20, "size": 128}})
    assert grid.stat().st_mtime_ns == stamp


def test_force_tells_what_it_drops_and_what_it_leaves(go, slide, tmp_path):
    go(slide, encoder=["mean", "handcrafted"], writer=["hdf5", "zarr", "png"])
    result = go(slide, tiler={"grid": {"magnification": 20, "size": 128}}, force=True)
    told = result.statuses[0].warnings
    assert told == (
        f"handcrafted of another configuration dropped from {tmp_path}/out/patches/one.h5",
        f"{tmp_path}/out/images/one is of another configuration and was left",
        f"{tmp_path}/out/patches/one.zarr is of another configuration and was left",
    )
    same = go(slide, tiler={"grid": {"magnification": 20, "size": 128}}, force=True)
    assert len(same.statuses[0].warnings) == 2


def test_a_refusal_leaves_the_record_of_what_is_there(go, slide, tmp_path):
    go(slide)
    record = (tmp_path / "out/status/one.json").read_bytes()
    result = go(slide, encoder={"mean": {"scale": 2.0}})
    assert states(result) == ["failed"]
    assert result.statuses[0].stage == "check"
    assert (tmp_path / "out/status/one.json").read_bytes() == record


def test_overlays_of_two_slides_never_share_a_name(go, slide, tmp_path):
    shutil.copy(slide, tmp_path / "slides/one_mask.svs")
    result = go(tmp_path / "slides", task="tissue", visualize=["mask", "grid"])
    assert [(s.slide_id, s.state) for s in result.statuses] == [
        ("one_mask", "failed"),
        ("one", "done"),
    ]
    assert "one_mask.png" in result.statuses[0].message
    apart = go(tmp_path / "slides", task="tissue", visualize=["mask"], output=tmp_path / "b")
    assert states(apart) == ["done", "done"]


def test_a_record_that_cannot_be_written_costs_its_slide_alone(go, slide, tmp_path, monkeypatch):
    shutil.copy(slide, tmp_path / "slides/two.svs")
    write = pipeline.write_status

    def full(path, status):
        if path.stem == "one":
            raise StoreError("no space left")
        write(path, status)

    monkeypatch.setattr(pipeline, "write_status", full)
    result = go(tmp_path / "slides")
    assert [(s.slide_id, s.state) for s in result.statuses] == [("one", "failed"), ("two", "done")]
    assert result.exit_code == 3
    assert json.loads(result.record.read_text())["failed"]["one"]["message"] == "no space left"


def test_another_slides_record_is_not_overwritten(go, slide, tmp_path):
    go(slide, task="tissue")
    record = (tmp_path / "out/status/one.json").read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/one.svs").write_bytes(slide.read_bytes() + b"x")
    result = go(tmp_path / "other/one.svs", task="tissue")
    assert states(result) == ["failed"]
    assert "slide_id=relpath" in result.statuses[0].message
    assert (tmp_path / "out/status/one.json").read_bytes() == record


def test_why_a_slide_is_empty(go, slide):
    empty = go(slide, segmenter="nothing")
    assert empty.statuses[0].warnings == ("no tissue was found",)
    small = go(slide, tiler={"grid": {"magnification": 5}}, tiling="auto")
    assert small.statuses[0].state == "empty"
    assert "smaller than one tile" in small.statuses[0].warnings[0]


def test_large_reads_are_bounded_and_change_nothing(go, slide, tmp_path, monkeypatch):
    go(slide, writer=["hdf5", "png"])
    sizes = []
    read_tiles = pixels.read_tiles
    monkeypatch.setattr(pixels, "READ_BYTES", 3 * 512 * 512 * 4)
    monkeypatch.setattr(pixels, "read_tiles", lambda *a: sizes.append(len(a[2])) or read_tiles(*a))
    go(slide, writer=["hdf5", "png"], output=tmp_path / "b")
    assert max(sizes) == 3
    for png in (tmp_path / "out/images/one").glob("*.png"):
        assert png.read_bytes() == (tmp_path / "b/images/one" / png.name).read_bytes()


def test_weights_are_loaded_before_any_slide_when_a_finished_one_lacks_them(
    go, slide, tmp_path, plugins
):
    go(slide)
    with pytest.raises(PluginError, match="'unloadable' of microtome-standins cannot be loaded"):
        go(slide, encoder=["mean", "unloadable"])
    assert states(go(slide)) == ["reused"]


def test_a_plugin_that_raises_when_made_is_named(go, slide):
    with pytest.raises(PluginError, match="'unmakable' of microtome-standins cannot be made: Run"):
        go(slide, encoder="unmakable")


def test_masks_that_nobody_uses_are_told(go, slide, tmp_path):
    (tmp_path / "m.png").write_bytes(b"")
    (tmp_path / "m.csv").write_text(f"slide,mask_path\n{slide},m.png\n")
    result = go(tmp_path / "m.csv")
    assert (
        "segmenter=classic does not use the 1 mask_path given; segmenter=file does." in result.notes
    )


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tiler": {"grid": {"magnification": 20, "mpp": 0.5}}}, "two targets"),
        ({"task": "train"}, "task=train"),
        ({"writer": []}, "writer"),
        ({"writer": "png"}, "writer that keeps them"),
        ({"task": "coords", "writer": ["hdf5", "png"]}, "encoder=\\[\\]"),
        ({"visualize": ["heatmap"]}, "visualize=heatmap"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"mpp": -1.0}, "mpp=-1"),
        ({"tissue": {"min_region_um2": -5.0}}, "tissue.min_region_um2=-5"),
        ({"tissue": {"min_hole_fraction": 7.0}}, "from 0 to 1"),
        ({"filter": {"white_drop_from": -1.0}}, "filter.white_drop_from=-1"),
        ({"encoders": "mean"}, "encoder"),
        ({"encoder": {"mean": {"batch_size": 0}}}, "batch_size"),
        ({"writer": ["hdf5"], "reader": ["openslide", "tiff"]}, "one reader"),
        ({"tiler": {"size": 256}}, "name the plugin first: tiler={NAME: {'size': 256}}"),
    ],
)
def test_runs_that_make_no_sense_do_not_start(go, slide, tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        go(slide, **options)
    assert not (tmp_path / "out/patches").exists()


def test_no_slide_at_all(go, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        go(tmp_path / "nowhere.svs")


def test_observers_hear_of_the_run_and_a_raising_one_is_dropped(go, slide, plugins):
    from microtome.plugin import hookimpl

    heard = []

    class Observer:
        @staticmethod
        @hookimpl
        def microtome_run_started(run):
            heard.append(len(run["slides"]))

        @staticmethod
        @hookimpl
        def microtome_slide_finished(status):
            heard.append(status["state"])

        @staticmethod
        @hookimpl
        def microtome_run_finished(run):
            heard.append(run["exit_code"])

    class Raiser:
        @staticmethod
        @hookimpl
        def microtome_slide_finished(status):
            raise RuntimeError("no")

    class Listening(SilentReporter):
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

    plugins.add(Observer, "observer", "microtome-observer")
    plugins.add(Raiser, "raiser", "microtome-raiser")
    reporter = Listening()
    result = go(slide, reporter=reporter)
    assert heard == [1, "done", 0]
    assert states(result) == ["done"]
    assert any("microtome-raiser" in note for note in reporter.notes)


def test_the_encoder_is_named_first(go, slide):
    result = go(slide)
    assert result.notes[0].startswith("encoder mean (3 columns, cpu, fp32)")


def test_results_open_from_python(go, slide, tmp_path):
    go(slide, writer=["hdf5", "zarr"])
    for suffix in ("h5", "zarr"):
        with microtome.open_result(tmp_path / f"out/patches/one.{suffix}") as stored:
            assert stored.feature_names() == ["mean"]
            assert stored.features("mean").shape == (len(stored.coords), 3)


def test_a_reader_that_misses_its_library_stops_the_run(go, slide, plugins, monkeypatch):
    monkeypatch.setattr(registry, "_installed", lambda module: module != "cucim")
    with pytest.raises(MissingDependencyError, match=r"needs cucim, .* pip install"):
        go(slide, reader="cucim")
