"""Patch stores: four formats of the same labelled tiles, and who else reads them."""

from __future__ import annotations

import io
import json
import multiprocessing
import operator
import os
import pickle
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pytest
from PIL import Image
from writers.patch_runs import (
    IDS,
    STORES,
    draw,
    labels_of,
    open_patches,
    outline,
    place,
    run,
)

from microtome.__main__ import main
from microtome.errors import ConfigError, StoreError
from microtome.store.patches import flat_id, labelled_tiles, tile_key
from microtome.testing import make_slide


@pytest.mark.parametrize("slide_id", IDS)
def test_all_stores_hold_the_same_tiles_labels_and_pixels(written, slide_id):
    labels = labels_of(written / "out", slide_id)
    wanted = {place: label for place, label in labels.items() if label >= 0}
    assert set(wanted.values()) == ({0, 1} if slide_id == "a.svs" else {0, 2})
    assert (len(wanted) < len(labels)) == (slide_id == "a.svs")  # a part of it is excluded
    for store in STORES:
        with open_patches(written / "out", store, slide_id) as patches:
            assert list(patches.keys) == [tile_key(slide_id, x, y) for x, y in wanted]
            assert [tuple(row) for row in patches.coords[:, :2].tolist()] == list(wanted)
            assert patches.labels.tolist() == list(wanted.values())
            assert patches.classes == ("normal", "tumor", "necrosis")
            pixels = patches.read(slice(None))
        stem = slide_id.rpartition("/")[2]
        for (x, y), tile in zip(wanted, pixels, strict=True):
            png = written / f"out/images/{slide_id}/{stem}_x{x}_y{y}.png"
            assert np.array_equal(tile, np.asarray(Image.open(png))), (store, x, y)


def test_torchvision_reads_the_folders_as_they_are(written):
    datasets = pytest.importorskip("torchvision.datasets")
    found = datasets.ImageFolder(written / "out/imagefolder/images")
    assert found.classes == ["necrosis", "normal", "tumor"]
    wanted = {}
    for slide_id in IDS:
        with open_patches(written / "out", "imagefolder", slide_id) as patches:
            names = [patches.classes[label] for label in patches.labels]
            wanted |= dict(zip(patches.keys, names, strict=True))
    assert {Path(path).stem: found.classes[label] for path, label in found.samples} == wanted
    with open_patches(written / "out", "webdataset") as patches:
        image, label = found[[Path(path).stem for path, _ in found.samples].index(patches.keys[3])]
        assert found.classes[label] == patches.classes[patches.labels[3]]
        assert np.array_equal(np.asarray(image), patches.read([3])[0])


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves a shard to the collector
def test_webdataset_reads_the_shards(written):
    webdataset = pytest.importorskip("webdataset")
    shards = [str(place(written / "out", "webdataset", slide_id)) for slide_id in IDS]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    keys = []
    for slide_id in IDS:
        with open_patches(written / "out", "patches", slide_id) as patches:
            keys += patches.keys
            some = [s for s in samples if s["json"]["slide_id"] == slide_id]
            assert [s["cls"] for s in some] == patches.labels.tolist()
            assert [s["json"]["class"] for s in some] == [patches.classes[s["cls"]] for s in some]
            assert np.array_equal(np.stack([s["png"] for s in some]), patches.read(slice(None)))
    assert [s["json"]["key"] for s in samples] == keys
    assert [s["__key__"] for s in samples] == [key.replace(".", "_") for key in keys]


def test_lmdb_and_hdf5_are_read_without_microtome(written):
    with h5py.File(place(written / "out", "patches", IDS[1])) as file:
        keys = [key.decode() for key in file["keys"]]
        labels, images = file["labels"][...].tolist(), file["images"][...]
        assert file["images"].dtype == np.uint8
        assert file["coords"].shape == (len(keys), 5)
        assert json.loads(file.attrs["classes"]) == ["normal", "tumor", "necrosis"]
    path = str(place(written / "out", "lmdb", IDS[1]))
    with (
        lmdb.open(path, subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as view,
    ):
        told = json.loads(view.get(b"__microtome__"))
        assert view.stat()["entries"] == len(keys) + 1
        assert (told["keys"], told["labels"]) == (keys, labels)
        for key, image in zip(keys, images, strict=True):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(view.get(key.encode())))), image)
    files = [path.name for path in (written / "out/lmdb").rglob("*") if path.is_file()]
    assert sorted(files) == ["a.svs.lmdb", "b.1.svs.lmdb"]  # and no lock


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_patches_are_read_in_workers_of_either_kind(written, how):
    patches = [open_patches(written / "out", store) for store in STORES]
    # Has the files open, as when a training looks at a sample first.
    here = [each.read([3, 1]) for each in patches]
    with multiprocessing.get_context(how).Pool(2) as workers:
        there = workers.map(operator.methodcaller("read", [3, 1]), patches, chunksize=1)
    assert len(there) == len(STORES)
    assert all(np.array_equal(each, here[0]) for each in there)


def test_what_is_open_can_be_read_after_a_fork(written):
    """A child has the files of its parent open, and reads others than the parent goes on with."""
    patches = [open_patches(written / "out", store) for store in STORES]
    here = [each.read([0, 1, 2]) for each in patches]
    pid = os.fork()
    if pid == 0:
        same = all(np.array_equal(p.read([1]), h[1:2]) for p, h in zip(patches, here, strict=True))
        os._exit(0 if same else 1)
    again = [each.read([0, 1, 2]) for each in patches]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert all(np.array_equal(one, other) for one, other in zip(again, here, strict=True))


def test_jpeg_where_it_is_asked_for(slide):
    stores = ("imagefolder", "lmdb", "webdataset")
    words = [f"writer.{store}.format=jpeg" for store in stores]
    assert run(slide, slide / "out", *words) == 0
    with open_patches(slide / "out", "patches") as patches:
        exact = patches.read(slice(None)).astype(float)
    found = [open_patches(slide / "out", store).read(slice(None)) for store in stores]
    assert 0 < np.abs(found[0] - exact).mean() < 8
    assert all(np.array_equal(each, found[0]) for each in found)
    assert {p.suffix for p in (slide / "out/imagefolder/images/normal/a.svs").iterdir()} == {".jpg"}
    assert main(["verify", str(slide / "out")]) == 0


@pytest.mark.parametrize("store", ["imagefolder", "lmdb", "webdataset"])
def test_options_that_make_no_sense(make_writer, store):
    with pytest.raises(ConfigError, match=f"writer.{store}.compression_level=10 is not between"):
        make_writer(store, compression_level=10)


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "a\\b"])
def test_a_class_that_is_no_name_of_a_folder(make_writer, tmp_path, name):
    with pytest.raises(StoreError, match="cannot be the name of a folder"):
        make_writer("imagefolder").open(tmp_path / "x", "a", {"classes": ["normal", name]})
    assert list(tmp_path.rglob("*")) == [tmp_path / "x"]


def test_a_shard_is_read_in_place_of_its_slide(written, tmp_path):
    shard = place(written / "out", "webdataset")
    words = [f"output={tmp_path / 'out'}", "engine=inline", "preset=archive", "encoder=[]"]
    assert main([str(shard), *words, "writer=[hdf5,png]"]) == 0
    with open_patches(written / "out", "webdataset") as patches:
        pixels = patches.read(slice(None))
        for (x, y), tile in zip(patches.coords[:, :2].tolist(), pixels, strict=True):
            name = f"{shard.stem}/{shard.stem}_x{x}_y{y}.png"
            assert np.array_equal(np.asarray(Image.open(tmp_path / "out/images" / name)), tile)
        assert len(list((tmp_path / "out/images").rglob("*.png"))) == len(patches)


def test_the_same_tiles_give_the_same_bytes(make_writer, coords, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    labels = np.array([0, 1, 0, 1, 1, 0], np.int16)
    attributes = {"slide_id": "a", "patch_size": 16, "classes": ["n", "t"]}
    for store in ("lmdb", "patches", "webdataset"):
        data = []
        for order in (np.arange(6), np.array([5, 3, 1, 0, 2, 4])):
            path = tmp_path / f"{store}-{len(data)}"
            sink = make_writer(store).open(path, "a", attributes)
            sink.write(coords[order], pixels[order], labels[order])
            sink.record({**attributes, **labelled_tiles(coords, labels)})
            sink.close()
            data.append(path.read_bytes())
        assert data[0] == data[1], store
    assert len(list(tmp_path.iterdir())) == 6


def test_an_environment_larger_than_a_transaction(make_writer, coords, tmp_path, monkeypatch):
    monkeypatch.setattr("microtome_writers.lmdb._COMMIT_BYTES", 1000)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)
    attributes = {"slide_id": "a", "patch_size": 64, "classes": ["n"]}
    writer, path = make_writer("lmdb"), tmp_path / "a.lmdb"
    sink = writer.open(path, "a", attributes)
    sink.write(coords, pixels, np.zeros(6, np.int16))
    sink.record({**attributes, **labelled_tiles(coords, np.zeros(6, np.int16))})
    sink.close()
    assert list(writer.damage(path, deep=True)) == []
    patches = writer.open_patches(path)
    assert np.array_equal(patches.read(slice(None)), pixels)
    os.replace(path, tmp_path / "moved")  # noqa: PTH105
    with pytest.raises(StoreError, match=r"a\.lmdb"):
        pickle.loads(pickle.dumps(patches)).read([0])


@pytest.mark.parametrize(
    "ids",
    [
        ("a/b", "a__b", "a_/b", "a/_b", "a___b", "a%2Fb", "a%5F%5Fb", "a%b", "a%25b"),
        ("x/_/y", "x___/y", "x/__y", "x_/_y", "x//y", "x____y", "x_y", "x-y"),
    ],
)
def test_no_two_ids_have_a_key_in_common(ids):
    assert len({flat_id(each) for each in ids}) == len(ids)
    assert not any("/" in flat_id(each) for each in ids)
    assert flat_id("TCGA-1_2/b.svs") == "TCGA-1_2__b.svs"
    assert tile_key("a/b", 1, 2) != tile_key("a__b", 1, 2) == "a%5F%5Fb_x1_y2"


def test_slides_of_like_ids_have_folders_of_their_own(tmp_path, capsys):
    for slide_id, seed in (("a/b.svs", 1), ("a__b.svs", 2)):
        path = tmp_path / f"slides/{slide_id}"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_slide(path, size=(256, 192), seed=seed)
    draw(tmp_path / "drawn", "a/b.svs", outline("Tumor", 0, 0, 128, 128))
    draw(tmp_path / "drawn", "a__b.svs", outline("Necrosis", 0, 0, 128, 128))
    assert run(tmp_path, tmp_path / "out", writer="writer=imagefolder") == 0
    assert "2 done" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "out")]) == 0
    images = tmp_path / "out/imagefolder/images"
    assert [p.name for p in (images / "tumor").iterdir()] == ["a__b.svs"]
    assert [p.name for p in (images / "necrosis").iterdir()] == ["a%5F%5Fb.svs"]
