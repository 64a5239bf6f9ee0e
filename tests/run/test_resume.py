"""The second time: what a run reuses, adds, replaces and refuses to mix."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest
from run_checks import files, leave_dead, leftovers, states

from microtome.errors import (
    PluginError,
)
from microtome.run.slides import pipeline, pixels


def test_a_second_run_reuses_everything(go, slide, tmp_path):
    go(slide, writer=["hdf5", "png"], visualize=["grid"])
    before = files(tmp_path / "out")
    result = go(slide, writer=["hdf5", "png"], visualize=["grid"])
    assert states(result) == ["reused"]
    assert files(tmp_path / "out") == before


def test_what_killed_runs_began_to_write_in_their_own_folders_is_swept(go, slide, tmp_path):
    leave_dead(tmp_path / "out/runs/one/run.json", tmp_path / "out/runs/two/job/outcome.json")
    assert len(leftovers(tmp_path / "out")) == 2
    go(slide)
    assert not leftovers(tmp_path / "out")


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


def test_coords_read_no_tile_and_process_goes_on_from_there(go, slide, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "BatchReader", None)
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
        f"{tmp_path}/out/images/one is of another configuration and was left",
        f"{tmp_path}/out/patches/one.zarr is of another configuration and was left",
        f"features/handcrafted of another configuration dropped from {tmp_path}/out/patches/one.h5",
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
        ("one", "done"),
        ("one_mask", "failed"),
    ]
    assert "one_mask.png" in result.statuses[1].message
    apart = go(tmp_path / "slides", task="tissue", visualize=["mask"], output=tmp_path / "b")
    assert states(apart) == ["done", "done"]


def test_weights_are_loaded_before_any_slide_when_a_finished_one_lacks_them(
    go, slide, tmp_path, plugins
):
    go(slide)
    with pytest.raises(PluginError, match="'unloadable' of microtome-standins cannot be loaded"):
        go(slide, encoder=["mean", "unloadable"])
    assert states(go(slide)) == ["reused"]


def test_a_damaged_mask_is_made_again(go, slide, tmp_path):
    go(slide)
    (mask,) = (tmp_path / "out/tissue").glob("*.png")
    whole = mask.read_bytes()
    mask.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "out/patches/one.h5").unlink()
    assert states(go(slide)) == ["done"]
    assert mask.read_bytes() == whole
