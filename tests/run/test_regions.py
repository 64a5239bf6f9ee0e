"""Runs by regions: what is stored, that it is the tiles' own features, what is refused."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import openslide
import pytest
import zarr
from PIL import Image
from run_checks import states

import microtome
from microtome.errors import ConfigError, StoreError
from microtome.slide.regions import find_regions, group_tiles, view_regions
from microtome.store.features import ArraySource
from microtome.store.regions import RegionSource, read_regions

TILER = {"grid": {"magnification": 20, "size": 64, "region_tiles": 3}}
STORES = {"hdf5": "one.h5", "zarr": "one.zarr"}


def by_hand(path, name):
    """Regroup features by nothing but coordinates."""
    with microtome.open_result(path) as stored:
        features, coords = stored.features(name), stored.coords
        regions = read_regions(stored).coords
        side = int(stored.attributes["patch_size_level0"])
        count = int(stored.attributes["region_tiles"])
    row_of = {(x, y): row for row, (x, y) in enumerate(coords[:, :2].tolist())}
    return np.stack(
        [
            [
                features[row_of[x + column * side, y + row * side]]
                for row in range(count)
                for column in range(count)
            ]
            for x, y in regions[:, :2].tolist()
        ]
    )


@pytest.mark.parametrize("writer", STORES)
def test_a_run_by_regions_leaves_their_index_and_features(go, slide, tmp_path, writer):
    result = go(
        slide,
        tiler=TILER,
        writer=writer,
        encoder=["mean", "handcrafted"],
        region_features=True,
        batch_size=7,
    )
    assert states(result) == ["done"]
    path = tmp_path / "out/patches" / STORES[writer]
    opened = h5py.File(path, locking=False) if writer == "hdf5" else zarr.open_group(path, mode="r")
    index, coords = opened["regions/index"][:], opened["regions/coords"][:]
    tiles, column = opened["coords"][:], opened["columns/region"][:]
    attributes = dict(opened.attrs)
    assert len(index) > 3
    assert index.shape == (len(index), 9)
    assert index.dtype == coords.dtype == column.dtype == np.int32
    assert sorted(index.ravel().tolist()) == list(range(len(tiles)))
    np.testing.assert_array_equal(coords[:, :2], tiles[index[:, 0], :2])
    np.testing.assert_array_equal(coords[:, 2:4], 3 * tiles[index[:, 0], 2:4])
    np.testing.assert_array_equal(column[index], np.arange(len(index))[:, None].repeat(9, 1))
    sizes = [int(attributes[name]) for name in ("region_tiles", "region_size")]
    assert [*sizes, int(attributes["region_size_level0"])] == [3, 192, 384]
    for name in ("mean", "handcrafted"):
        expected = by_hand(path, name)
        np.testing.assert_array_equal(opened[f"region_features/{name}"][:], expected)
        with microtome.open_result(path) as stored:
            np.testing.assert_array_equal(microtome.region_features(stored, name), expected)
            some = microtome.region_features(stored, name, slice(1, 3))
            np.testing.assert_array_equal(some, expected[1:3])
            assert microtome.region_features(stored, name, slice(0, 0)).shape[0] == 0
        assert opened[f"region_features/{name}"].attrs["encoder"] == name


def test_features_by_region_are_of_the_pixels_there(go, slide, tmp_path):
    go(slide, tiler=TILER)
    with microtome.open_result(tmp_path / "out/patches/one.h5") as stored:
        found = microtome.region_features(stored, "mean")
        regions = read_regions(stored).coords
    with openslide.OpenSlide(slide) as wsi:
        for (x, y, *_), means in zip(regions[:4].tolist(), found, strict=False):
            for tile, mean in enumerate(means):
                at = (x + tile % 3 * 128, y + tile // 3 * 128)
                pixels = wsi.read_region(at, 0, (128, 128)).convert("RGB")
                pixels = pixels.resize((64, 64), Image.Resampling.BILINEAR)
                np.testing.assert_allclose(np.asarray(pixels).mean((0, 1)), mean, rtol=1e-6)


def test_an_open_slide_gives_the_same_regions(go, slide, tmp_path):
    go(slide, tiler=TILER, encoder="handcrafted")
    with microtome.open_slide(slide) as opened:
        grid = opened.tiles(**TILER["grid"])
        features = np.asarray(opened.encode(grid, "handcrafted"))
    grouped = group_tiles(features, find_regions(grid).index)
    with microtome.open_result(tmp_path / "out/patches/one.h5") as stored:
        np.testing.assert_array_equal(microtome.region_features(stored, "handcrafted"), grouped)


@pytest.mark.parametrize("writer", STORES)
def test_features_by_region_come_later_without_a_pixel(go, slide, tmp_path, writer, monkeypatch):
    options = {"tiler": TILER, "writer": writer}
    go(slide, **options)
    path = tmp_path / "out/patches" / STORES[writer]
    with microtome.open_result(path) as stored:
        before = stored.features("mean")
        assert "region_features/mean" not in stored.array_names()
    with monkeypatch.context() as patched:
        patched.setattr("microtome.run.slides.production.PixelPass", None)
        assert states(go(slide, region_features=True, **options)) == ["done"]
        assert states(go(slide, region_features=True, **options)) == ["reused"]
        assert states(go(slide, **options)) == ["reused"]
    with microtome.open_result(path) as stored:
        np.testing.assert_array_equal(stored.features("mean"), before)
        np.testing.assert_array_equal(stored.array("region_features/mean"), by_hand(path, "mean"))
        assert stored.array_attributes("region_features/mean")["dim"] == 3


@pytest.mark.parametrize("writer", STORES)
def test_another_encoder_later_is_grouped_too(go, slide, tmp_path, writer):
    options = {"tiler": TILER, "writer": writer, "region_features": True}
    go(slide, **options)
    assert states(go(slide, encoder=["mean", "handcrafted"], **options)) == ["done"]
    path = tmp_path / "out/patches" / STORES[writer]
    with microtome.open_result(path) as stored:
        for name in ("mean", "handcrafted"):
            grouped = stored.array(f"region_features/{name}")
            np.testing.assert_array_equal(grouped, by_hand(path, name))


def test_features_made_anew_are_grouped_anew(go, slide, tmp_path):
    def options(scale):
        return {"encoder": {"mean": {"scale": scale}}, "tiler": TILER, "region_features": True}

    go(slide, **options(1.0))
    refused = go(slide, **options(2.0))
    assert "scale was its default and is 2" in refused.statuses[0].error["message"]
    go(slide, force=True, **options(2.0))
    path = tmp_path / "out/patches/one.h5"
    with microtome.open_result(path) as stored:
        grouped = stored.array("region_features/mean")
        np.testing.assert_array_equal(grouped, by_hand(path, "mean"))


def test_two_stores_agree(go, slide, tmp_path):
    go(slide, tiler=TILER)
    go(slide, tiler=TILER, writer=["hdf5", "zarr"], region_features=True)
    found = []
    for name in STORES.values():
        with microtome.open_result(tmp_path / "out/patches" / name) as stored:
            found.append([stored.array(key) for key in sorted(stored.array_names())])
    assert len(found[0]) == 3
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_empty_slide_has_no_region(go, slide, tmp_path):
    result = go(slide, tiler=TILER, segmenter="nothing", region_features=True)
    assert states(result) == ["empty"]
    with microtome.open_result(tmp_path / "out/patches/one.h5") as stored:
        assert stored.array("regions/index").shape == (0, 9)
        assert stored.array("regions/coords").shape == (0, 5)
        assert microtome.region_features(stored, "mean").shape == (0, 9, 3)
        assert stored.array("region_features/mean").shape == (0, 9, 3)


def test_a_slide_smaller_than_a_region_says_so(go, slide):
    result = go(slide, tiler={"grid": {"magnification": 20, "size": 128, "region_tiles": 10}})
    assert states(result) == ["empty"]
    assert result.statuses[0].warnings == (
        "the slide is smaller than one region; tiler.edge=pad fills it up",
    )


def test_coordinates_alone_have_their_regions(go, slide, tmp_path):
    go(slide, tiler=TILER, task="coords")
    path = tmp_path / "out/patches/one.h5"
    with microtome.open_result(path) as stored:
        index = read_regions(stored).index
    assert states(go(slide, tiler=TILER)) == ["done"]
    with microtome.open_result(path) as stored:
        np.testing.assert_array_equal(read_regions(stored).index, index)
        assert microtome.region_features(stored, "mean").shape == (*index.shape, 3)


def test_padded_regions_hold_background_beyond_the_slide(go, slide, tmp_path):
    """One region of 2560 on 2048 × 1536: two columns and four rows of tiles have nothing."""
    grid = {"magnification": 20, "size": 128, "region_tiles": 10, "edge": "pad", "min_tissue": 0.0}
    tiler = {"grid": grid}
    assert states(go(slide, tiler=tiler)) == ["done"]
    with microtome.open_result(tmp_path / "out/patches/one.h5") as stored:
        found = microtome.region_features(stored, "mean")
        index = read_regions(stored).index
        outside = (stored.coords[:, :2] >= (2048, 1536)).any(axis=1)[index]
        filled = np.asarray(stored.columns["has_background"], bool)[index]
    assert index.shape == (1, 100)
    assert outside.sum() == 100 - 8 * 6
    assert filled[outside].all()
    assert (found[outside] == 255).all()
    assert not (found[~outside] == 255).all()
    stored_tiler = {"stored": {"folder": str(tmp_path / "out/patches")}}
    assert states(go(slide, tiler=stored_tiler, output=tmp_path / "again")) == ["done"]


def test_stored_tiles_keep_their_regions(go, slide, tmp_path):
    go(slide, tiler=TILER)
    folder = str(tmp_path / "out/patches")
    again = tmp_path / "again"
    stored_tiler = {"stored": {"folder": folder}}
    assert states(go(slide, tiler=stored_tiler, output=again, region_features=True)) == ["done"]
    path = again / "patches/one.h5"
    with (
        microtome.open_result(tmp_path / "out/patches/one.h5") as old,
        microtome.open_result(path) as new,
    ):
        np.testing.assert_array_equal(read_regions(old).index, read_regions(new).index)
        np.testing.assert_array_equal(new.array("region_features/mean"), by_hand(path, "mean"))
    with microtome.open_result(path) as new:
        assert (new.attributes["region_tiles"], new.attributes["region_size"]) == (3, 192)
    dropping = go(slide, tiler=stored_tiler, output=tmp_path / "third", filter={"enabled": True})
    assert "filter.enabled=true drops single tiles" in dropping.statuses[0].error["message"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tiler": TILER, "filter": {"enabled": True}}, r"filter\.enabled=true drops single"),
        (
            {"tiler": TILER, "inspector": "blur", "quality": {"drop": True}},
            r"quality\.drop=true drops single",
        ),
        ({"region_features": True}, r"give tiler\.region_tiles=6"),
    ],
    ids=str,
)
def test_what_does_not_go_with_regions_is_refused_before_any_slide(go, slide, options, told):
    with pytest.raises(ConfigError, match=told):
        go(slide, **options)


def test_inspectors_that_drop_nothing_go_with_regions(go, slide, tmp_path):
    assert states(go(slide, tiler=TILER, inspector="blur")) == ["done"]
    with microtome.open_result(tmp_path / "out/patches/one.h5") as stored:
        assert len(stored.columns["reason"]) == read_regions(stored).index.size


def test_a_folder_named_by_its_tiling_names_its_regions(go, slide, tmp_path):
    go(slide, tiler=TILER, tiling="auto", task="coords")
    assert (tmp_path / "out/20x_64px_0px_region_tiles3/patches/one.h5").exists()


def test_other_regions_are_another_tiling(go, slide):
    go(slide, tiler=TILER)
    other = {"grid": {"magnification": 20, "size": 64, "region_tiles": 2}}
    refused = go(slide, tiler=other)
    assert "region_tiles was 3 and is 2" in refused.statuses[0].error["message"]


def test_tiles_of_no_regions_say_so(go, slide, tmp_path):
    go(slide)
    with (
        microtome.open_result(tmp_path / "out/patches/one.h5") as stored,
        pytest.raises(StoreError, match=r"one holds no regions.*tiler\.region_tiles=6"),
    ):
        microtome.region_features(stored, "mean")


def test_the_overlay_of_regions_is_another(go, slide, tmp_path):
    picture = tmp_path / "out/visualization/one.png"
    go(slide, tiler=TILER, visualize="grid", output=tmp_path / "out")
    with Image.open(picture) as image:
        colours = {tuple(c) for c in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}
    assert (140, 20, 120) in colours
    assert (20, 90, 200) in colours


def test_a_real_slide_regrouped_by_hand(go, shared_data, tmp_path):
    slide = tmp_path / "real.svs"
    shutil.copy(shared_data / "slides/cmu-1-small-region.svs", slide)
    tiler = {"grid": {"magnification": 20, "size": 112, "region_tiles": 4}}
    assert states(go(slide, tiler=tiler, encoder="handcrafted", region_features=True)) == ["done"]
    path = tmp_path / "out/patches/real.h5"
    expected = by_hand(path, "handcrafted")
    with microtome.open_result(path) as stored:
        index, features = read_regions(stored).index, stored.features("handcrafted")
        np.testing.assert_array_equal(microtome.region_features(stored, "handcrafted"), expected)
        np.testing.assert_array_equal(stored.array("region_features/handcrafted"), expected)
    assert len(index) > 4
    np.testing.assert_array_equal(group_tiles(features, index), expected)
    view = view_regions(features, index)
    if view is not None:
        assert np.shares_memory(view, features)
        np.testing.assert_array_equal(view.reshape(expected.shape), expected)


def test_the_command_line_says_it_alike(slide, tmp_path):
    from microtome.__main__ import main

    words = ["tiler.region_tiles=3", "tiler.region_size=192", "region_features=true"]
    output = tmp_path / "out"
    assert main([str(slide), f"output={output}", "engine=inline", *words]) == 0
    with microtome.open_result(output / "patches/one.h5") as stored:
        assert stored.attributes["patch_size"] == 64
        assert stored.array_shape("region_features/handcrafted")[1] == 9
    record = json.loads((output / "status/one.json").read_text())
    assert record["state"] == "done"


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
@pytest.mark.parametrize("kept", [[[1, 1, 0], [0, 1, 0], [1, 1, 1]], [[1, 0], [0, 1]], [[0]]])
def test_a_source_by_regions_reads_tiles_once_and_in_order(rows, kept):
    keep = np.kron(np.array(kept), np.ones((2, 2))) > 0
    numbers = (np.cumsum(kept).reshape(np.shape(kept)) - 1).repeat(2, 0).repeat(2, 1)
    index = np.argsort(numbers[keep], kind="stable").astype(np.int32).reshape(-1, 4)
    features = np.random.default_rng(0).random((int(keep.sum()), 5), np.float32)
    source = RegionSource(ArraySource(features), index)
    chunks = list(source.chunks(rows))
    assert source.shape == (len(index), 4, 5)
    assert all(0 < len(chunk) <= rows for chunk in chunks)
    found = np.concatenate([np.empty((0, 4, 5), np.float32), *chunks])
    np.testing.assert_array_equal(found, features[index])


def test_a_source_by_regions_holds_one_row_of_them():
    """Forty rows of three regions of 2 × 2: the first are there after twelve tiles."""
    index = np.arange(480, dtype=np.int32).reshape(40, 2, 3, 2).swapaxes(1, 2).reshape(120, 4)
    read = []

    class Counting(ArraySource):
        def chunks(self, rows):
            for chunk in super().chunks(rows):
                read.append(len(chunk))
                yield chunk

    chunks = RegionSource(Counting(np.zeros((480, 5), np.float32)), index).chunks(1)
    for done, _ in enumerate(chunks, 1):
        assert sum(read) <= 12 * -(-done // 3)
    assert (done, sum(read)) == (120, 480)
