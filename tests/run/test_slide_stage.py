"""Embeddings of slides: what is computed, stored, reused, refused."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import bag_standins
import h5py
import numpy as np
import pytest
import zarr
from run_checks import states

from microtome.errors import ConfigError, EncoderError, PluginError
from microtome.plugin.registry import get_registry
from microtome.run.planning import memory
from microtome.run.planning.memory import free_memory
from microtome.run.slides import bagging, embedding, pixels
from microtome.store.status import read_status
from microtome.store.verify import verify_output

TILER = {"grid": {}}


@pytest.fixture(autouse=True)
def bags(plugins):
    """Register the stand-ins and forget what they saw."""
    plugins.add(bag_standins.Plugins, "bag_standins", "microtome-bag-standins")
    bag_standins.Sum.seen.clear()
    return bag_standins.Sum.seen


@pytest.fixture
def embed(go, slide):
    """Run the slide with nothing said of encoders and tiles."""

    def run(slide_encoder, **options):
        given = {"tiler": TILER, "encoder": []} | options
        return go(slide, slide_encoder=slide_encoder, **given)

    return run


@pytest.fixture
def path(tmp_path):
    """Name the slide's file."""
    return tmp_path / "out/patches/one.h5"


def _no_pixel(*args, **kwargs):
    raise AssertionError("pixels were read")


def test_it_is_published_with_the_features_in_one_file(embed, path, bags):
    result = embed(["nominal", "pool"])
    assert states(result) == ["done"]
    with h5py.File(path) as file:
        features = file["features/mean"][:]
        assert set(file["slide_features"]) == {"nominal", "pool-mean"}
        embedding = file["slide_features/nominal"][:]
        np.testing.assert_array_equal(embedding, features.sum(0, dtype=np.float64).astype("f4"))
        assert file["slide_attention/nominal"].shape == (len(features),)
        assert "slide_latents" not in file
        told = dict(file["slide_features/nominal"].attrs)
    assert told["source_patch_encoder"] == "mean"
    assert told["num_patches"] == len(features)
    assert told["patch_size"] == 128
    assert told["patch_size_level0"] == told["tile_size_level0"] == 256
    (promise,) = json.loads(told["identity_fields"])["contract"]
    needed = {"encoder": "mean", "dim": 3, "patch_size": 128, "magnification": 20}
    assert promise == needed | {"coords": "level0"}


def test_the_bag_is_in_level_0_pixels_and_a_grid(embed, path, bags):
    embed(["nominal"])
    (bag,) = bags
    with h5py.File(path) as file:
        np.testing.assert_array_equal(bag.coords, file["coords"][:, :2])
    assert bag.coords.dtype == np.int64
    assert bag.tile_size_level0 == 256
    assert not (bag.coords % 256).any()
    assert bag.size == 128
    assert bag.mpp == pytest.approx(0.5, rel=0.02)
    assert bag.slide_size == (2048, 1536)
    assert bag.only.shape == (len(bag), 3)


def test_a_second_run_computes_nothing(embed, bags):
    embed(["nominal"])
    assert states(embed(["nominal"])) == ["reused"]
    assert len(bags) == 1


def test_another_slide_encoder_reads_no_pixel(embed, path, bags, monkeypatch):
    embed(["nominal"], writer=["hdf5", "zarr"])
    with h5py.File(path) as file:
        before = file["features/mean"][:]
    monkeypatch.setattr(pixels.PixelPass, "run", _no_pixel)
    assert states(embed(["nominal", "pool"], writer=["hdf5", "zarr"])) == ["done"]
    assert [bag.features["mean"].shape for bag in bags] == [before.shape] * 2
    stored = zarr.open_group(path.with_suffix(".zarr"), mode="r")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["features/mean"][:], before)
        pooled = file["slide_features/pool-mean"][:]
    np.testing.assert_array_equal(stored["slide_features/pool-mean"][:], pooled)
    np.testing.assert_array_equal(stored["slide_features/nominal"][:], pooled)


def test_missing_weights_are_told_before_any_slide_unless_all_is_there(
    embed, tmp_path, monkeypatch
):
    def load(self, device, precision):
        raise EncoderError("no such weights")

    with monkeypatch.context() as patched:
        patched.setattr(bag_standins.Sum, "load", load)
        with pytest.raises(EncoderError, match="Slide encoder nominal: no such weights"):
            embed(["nominal"])
    assert not (tmp_path / "out/status").exists()
    embed(["nominal"])
    monkeypatch.setattr(bag_standins.Sum, "load", load)
    assert states(embed(["nominal"])) == ["reused"]
    with pytest.raises(EncoderError, match="no such weights"):
        embed(["nominal", "pool"])


def test_latents_are_kept_on_request_and_can_come_later(embed, path, bags):
    embed(["nominal"])
    assert states(embed(["nominal"], latents=True)) == ["done"]
    assert len(bags) == 2
    with h5py.File(path) as file:
        assert file["slide_latents/nominal"].shape == (2, 4)
    assert states(embed(["nominal"], latents=True)) == ["reused"]


def test_other_options_are_another_identity(embed):
    embed(["nominal"])
    result = embed({"nominal": {"times": 2.0}})
    assert states(result) == ["failed"]
    assert "slide_encoder.times was its default and is 2" in result.statuses[0].message
    assert "+slide_encoder@slide_encoder.KEY=NAME" in result.statuses[0].message
    keyed = {"nominal": {}, "twice": {"plugin": "nominal", "times": 2.0}}
    assert states(embed(keyed)) == ["done"]
    assert states(embed({"nominal": {"times": 2.0}}, force=True)) == ["done"]


def test_two_tilings_are_two_folders(embed, tmp_path):
    result = embed(["nominal", "coarse"])
    assert states(result) == ["done", "done"]
    for name, encoder in (("20x_128px_0px", "nominal"), ("10x_128px_0px", "coarse")):
        with h5py.File(tmp_path / "out" / name / "patches/one.h5") as file:
            assert set(file["slide_features"]) == {encoder}
    assert {p.parent.name for p in (tmp_path / "out/runs").rglob("run.json")} == {
        "20x_128px_0px",
        "10x_128px_0px",
    }
    assert sum("2 tilings" in note for note in result.notes) == 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nan", r"slide_features that are not finite, computed in fp32"),
        ("wide", r"shape \(4,\), where floating point of shape \(3,\)"),
        ("raises", r"no such layer"),
        ("greedy", r"1.02e\+03 GiB for \d+ tiles in a box of \d+ × \d+"),
    ],
)
def test_what_fails_fails_the_slide(embed, name, told):
    (status,) = embed([name]).statuses
    assert (status.state, status.stage) == ("failed", "slide")
    assert re.search(told, status.message)


def test_features_outlive_a_slide_encoder_that_fails(embed, path, monkeypatch):
    assert states(embed(["raises"])) == ["failed"]
    with h5py.File(path) as file:
        assert set(file["features"]) == {"mean"}
        assert "slide_features" not in file
    monkeypatch.setattr(pixels.PixelPass, "run", _no_pixel)
    assert states(embed(["nominal"])) == ["done"]
    with h5py.File(path) as file:
        assert set(file["slide_features"]) == {"nominal"}


def test_one_that_fails_leaves_the_others_theirs(embed, path, bags, monkeypatch):
    (status,) = embed(["raises", "nominal", "greedy", "mean"]).statuses
    assert (status.state, status.stage) == ("failed", "slide")
    assert re.search(
        r"greedy would take about .* Failed: slide_encoder=\[greedy,raises\]\.", status.message
    )
    assert any("raises failed: no such layer" in warning for warning in status.warnings)
    with h5py.File(path) as file:
        assert set(file["features"]) == {"mean"}
        assert set(file["slide_features"]) == {"nominal", "mean-mean"}
    monkeypatch.setattr(pixels.PixelPass, "run", _no_pixel)
    bags.clear()
    (again,) = embed(["raises", "nominal", "mean"]).statuses
    assert "no such layer. Failed: slide_encoder=[raises]" in again.message
    assert "no such layer" in again.error["traceback"]
    assert len(bags) == 1


def test_tile_images_outlive_a_slide_encoder_that_fails(embed, tmp_path):
    assert states(embed(["raises"], writer=["hdf5", "png"])) == ["failed"]
    assert list((tmp_path / "out/images/one").glob("*.png"))


def test_verify_misses_an_embedding_that_the_record_names(embed, path, tmp_path):
    embed(["nominal", "mean"])
    status = read_status(tmp_path / "out/status/one.json")
    assert status.slide_encoders == ("nominal", "mean-mean")
    embed(["nominal", "mean"])
    assert not verify_output(tmp_path / "out", get_registry()).faults
    with h5py.File(path, "r+") as file:
        del file["slide_features/nominal"]
    told = [fault.message for fault in verify_output(tmp_path / "out", get_registry()).faults]
    assert any("slide_features/nominal is missing, its slide's record" in text for text in told)


def test_force_tells_which_embeddings_it_drops(embed, path):
    embed(["nominal", "mean"])
    (status,) = embed(["nominal"], feature_dtype="float16", force=True).statuses
    assert status.warnings == (
        f"slide_features/mean-mean of another configuration dropped from {path}",
    )


def test_too_large_a_bag_is_refused_before_any_pixel_is_read(embed, path, monkeypatch):
    monkeypatch.setattr(pixels.PixelPass, "run", _no_pixel)
    result = embed(["greedy"])
    assert states(result) == ["failed"]
    assert "are free on cpu" in result.statuses[0].message
    assert not path.exists()
    capped = embed(["nominal"], bag_memory_gb=1e-9)
    assert "bag_memory_gb allows" in capped.statuses[0].message


def test_too_large_a_bag_is_refused_before_any_feature_is_read(embed, monkeypatch):
    embed(["nominal"])
    monkeypatch.setattr(embedding.SlideStage, "_features", _no_pixel)
    (status,) = embed(["nominal", "mean"], bag_memory_gb=1e-9).statuses
    assert (status.state, status.stage) == ("failed", "slide")
    assert "mean-mean would take about" in status.message


def test_a_filter_refuses_once_the_tiles_are_counted(embed, monkeypatch):
    monkeypatch.setattr(embedding.SlideStage, "_features", _no_pixel)
    (status,) = embed(
        ["mean"], encoder="mean", filter={"enabled": True}, bag_memory_gb=1e-9
    ).statuses
    assert "mean-mean would take about" in status.message
    assert status.tiles is None
    assert "features/mean" in status.identities


def test_the_features_count_in_main_memory_and_the_rest_on_the_device(monkeypatch):
    free = {"cpu": 3 << 30, "cuda:0": 1 << 30}
    monkeypatch.setattr(bagging, "free_memory", free.get)

    def refuse(device, gib, estimate, cap=None):
        model = SimpleNamespace(memory=lambda tiles, extent: int(estimate * (1 << 30)))
        choice = SimpleNamespace(name="x")
        planned = SimpleNamespace(
            name="x", kind="slide_encoder", device=device, model=model,
            made=SimpleNamespace(choice=choice),
        )  # fmt: skip
        row_bytes = int(gib * (1 << 30))
        bagging.refuse_large(planned, 1, (1, 1), row_bytes=row_bytes, cap=cap)

    refuse("cuda:0", 2.5, 0.9)
    refuse("cpu", 2.0, 0.9)
    for device, gib, estimate, told in (
        ("cuda:0", 3.5, 0.5, "3 GiB are free on cpu"),
        ("cuda:0", 0.1, 1.5, "1 GiB are free on cuda:0"),
        ("cpu", 2.5, 0.9, "3.4 GiB for 1 tiles"),
    ):
        with pytest.raises(EncoderError, match=told):
            refuse(device, gib, estimate)
    with pytest.raises(EncoderError, match="2 GiB bag_memory_gb allows"):
        refuse("cuda:0", 1.5, 0.9, cap=2)


def test_memory_that_is_free_is_measured():
    assert 1 << 20 < free_memory("cpu") < 1 << 50


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_grants_less_than_the_machine_has(tmp_path, monkeypatch, version):
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    group = tmp_path / ("memory" if version == 1 else ".")
    group.mkdir(exist_ok=True)
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:    800 kB\n")
    monkeypatch.setattr(memory, "PROC", tmp_path)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_memory("cpu") == 800 * 1024
    for name, text in zip(names, ("1000", "400", ""), strict=True):
        (group / name).write_text(text)
    (group / "memory.stat").write_text(f"anon 7\n{names[2]} 150\n")
    assert free_memory("cpu") == 1000 - 400 + 150
    (group / names[0]).write_text("max")
    assert free_memory("cpu") == 800 * 1024


def test_an_empty_slide_stays_finished_without_an_embedding(embed, path):
    for state in ("empty", "empty"):
        result = embed(["nominal"], segmenter="nothing")
        assert states(result) == [state]
    with h5py.File(path) as file:
        assert "slide_features" not in file
    assert not any("nominal" in warning for warning in result.statuses[0].warnings)


def test_its_first_run_says_that_an_empty_slide_has_none(embed, tmp_path):
    (status,) = embed(["nominal"], segmenter="nothing").statuses
    assert "without tiles it has no embedding by nominal" in status.warnings
    assert read_status(tmp_path / "out/status/one.json").state == "empty"


def test_a_nominal_magnification_that_misnames_the_slide_is_told(embed):
    (status,) = embed(["nominal"], mpp=0.3).statuses
    assert status.state == "done"
    assert any("0.5 µm/px" in w and "tiler.mpp=0.5" in w for w in status.warnings)


def test_stored_tiles_that_do_not_fit_are_refused_before_any_pixel_is_read(
    embed, tmp_path, monkeypatch
):
    embed(["nominal"], output=tmp_path / "tiles")
    monkeypatch.setattr(pixels.PixelPass, "run", _no_pixel)
    stored = {"tiler": {"stored": {"folder": str(tmp_path / "tiles/patches")}}}
    (status,) = embed(["coarse"], **stored).statuses
    assert status.state == "failed"
    assert re.search(r"coarse needs mean .* at 10x .* 20x by name", status.message)


def test_what_is_refused_leaves_nothing(embed, tmp_path):
    with pytest.raises(ConfigError, match=r"tiler\.size=256"):
        embed(["nominal"], tiler={"grid": {"size": 256}})
    with pytest.raises(PluginError):
        embed(["nothing_like_it"])
    assert not (tmp_path / "out").exists()


def test_workers_of_their_own_give_the_same(embed, path, tmp_path):
    embed(["mean"], encoder=["handcrafted"], tiler={"grid": {"magnification": 20}})
    with h5py.File(path) as file:
        one = file["slide_features/mean-handcrafted"][:]
    shutil.rmtree(tmp_path / "out")
    result = embed(
        ["mean"],
        encoder=["handcrafted"],
        tiler={"grid": {"magnification": 20}},
        engine={"local": {"workers": 1}},
    )
    assert states(result) == ["done"]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["slide_features/mean-handcrafted"][:], one)


@pytest.mark.parametrize(("pitch", "side"), [(512.0, 512), (511.87, 511), (512.13, 512)])
def test_no_two_columns_merge_whatever_the_pitch(pitch, side):
    xs = np.round(np.arange(3000) * pitch).astype(np.int64)
    coords = np.stack([xs, np.zeros_like(xs)], axis=1)
    attributes = {
        "patch_size": 256,
        "step": 256,
        "step_level0_exact": [pitch, pitch],
        "patch_size_level0": round(pitch),
        "level0_width": 1,
        "level0_height": 1,
        "effective_mpp": "None",
    }
    bag = bagging.make_bag("s", coords, {}, attributes)
    assert bag.tile_size_level0 == side
    assert len(np.unique(bag.coords[:, 0] // side)) == len(xs)
    assert bag.mpp is None
