"""Patch stores: four formats of the same labelled tiles, written by runs and read by others."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import operator
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pytest
from PIL import Image

from microtome.__main__ import main
from microtome.errors import ConfigError, StoreError
from microtome.plugin.registry import get_registry
from microtome.store.layout import OutputLayout
from microtome.store.patches import labelled_tiles, tile_key
from microtome.testing import make_slide

STORES = ("imagefolder", "lmdb", "patches", "webdataset")
ALL = "writer=[hdf5,imagefolder,lmdb,patches,webdataset]"
IDS = ["a.svs", "block/b.1.svs"]
TILING = ["tiler.size=64", "tiler.magnification=20", "segmenter=none", "encoder=[]"]
CLASSES = [
    "labels.classes.tumor=[Tumor]",
    "labels.classes.necrosis=[Necrosis]",
    "labels.exclude=[Exclusion]",
]


def outline(group, x, y, w, h):
    corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {"objectType": "annotation", "classification": {"name": group}},
    }


def draw(folder, slide_id, *outlines):
    path = folder / f"{slide_id.removesuffix('.svs')}.geojson"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(outlines)}))


DRAWN = {
    "a.svs": [outline("Tumor", 120, 120, 300, 300), outline("Exclusion", 500, 0, 140, 200)],
    "block/b.1.svs": [outline("Necrosis", 0, 0, 256, 256)],
}


def run(folder, out, *words, writer=ALL):
    slides = folder / "slides"
    given = [f"annotations={folder / 'drawn'}", *CLASSES, "slide_id=relpath", "recursive=true"]
    return main([str(slides), f"output={out}", "engine=inline", *given, *TILING, writer, *words])


def make(folder):
    """Make two slides, one in a folder, and draw on both."""
    for slide_id in IDS:
        path = folder / f"slides/{slide_id}"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_slide(path, size=(640, 512), seed=len(slide_id))
        draw(folder / "drawn", slide_id, *DRAWN[slide_id])
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("patches"))
    assert (
        run(folder, folder / "out", "writer.png.compression_level=1", writer=f"{ALL[:-1]},png]")
        == 0
    )
    return folder


@pytest.fixture
def slide(tmp_path):
    """One slide with two outlines."""
    make_slide(tmp_path / "slides/a.svs", size=(640, 512))
    draw(tmp_path / "drawn", "a.svs", *DRAWN["a.svs"])
    return tmp_path


def place(out, store, slide_id="a.svs"):
    return OutputLayout(out).slide(get_registry().find("writer", store).spec, slide_id)


def open_patches(out, store, slide_id="a.svs"):
    return get_registry().create("writer", store).open_patches(place(out, store, slide_id))


def labels_of(out, slide_id):
    """Give labels by place, as the store of tiles has them."""
    with h5py.File(out / f"patches/{slide_id}.h5") as file:
        rows = zip(file["coords"][:, :2].tolist(), file["columns/label"][...].tolist(), strict=True)
        return {tuple(xy): label for xy, label in rows}


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


def test_a_second_run_reuses_all_and_verify_finds_nothing(written, capsys):
    before = {path: path.stat().st_mtime_ns for path in (written / "out").rglob("*.*")}
    assert run(written, written / "out", writer=f"{ALL[:-1]},png]") == 0
    assert "2 reused" in capsys.readouterr().out
    kept = {
        path: time for path, time in before.items() if path.is_file() and "status" not in path.parts
    }
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert main(["verify", str(written / "out")]) == 0


@pytest.mark.parametrize("store", STORES)
def test_it_is_known_again_without_the_other_writers(slide, store, capsys):
    words = {"writer": f"writer={store}"}
    for state in ("done", "reused"):
        assert run(slide, slide / "out", **words) == 0
        said = capsys.readouterr()
        assert f"1 {state}" in said.out
    assert "have no label" not in said.err
    record = json.loads((slide / "out/status/a.svs.json").read_text())
    assert record["tiles"] == len(open_patches(slide / "out", store)) + 2  # two are excluded
    assert main(["verify", str(slide / "out")]) == 0


def test_tiles_without_a_label_are_left_out_and_told(slide, capsys):
    assert run(slide, slide / "out") == 0
    assert "tiles have no label and are not in imagefolder, lmdb, patches, webdataset" in (
        capsys.readouterr().err
    )


def test_an_edited_annotation_renews_the_stores(slide, capsys):
    out = slide / "out"
    assert run(slide, out) == 0
    assert (out / "imagefolder/images/tumor/a.svs").is_dir()
    draw(slide / "drawn", "a.svs", outline("Necrosis", 120, 120, 200, 100))
    capsys.readouterr()
    assert run(slide, out) == 0
    assert "1 done" in capsys.readouterr().out
    labels = labels_of(out, "a.svs")
    for store in STORES:
        patches = open_patches(out, store)
        assert patches.labels.tolist() == list(labels.values())
        assert set(labels.values()) == {0, 2}
    assert sorted(p.name for p in (out / "imagefolder/images").iterdir()) == ["necrosis", "normal"]
    assert main(["verify", str(out)]) == 0


def test_an_annotation_that_labels_no_tile_otherwise_renews_nothing(slide):
    out = slide / "out"
    assert run(slide, out) == 0
    before = {store: place(out, store).stat().st_mtime_ns for store in STORES}
    draw(slide / "drawn", "a.svs", *DRAWN["a.svs"], outline("Tumor", 130, 130, 9, 9))
    assert run(slide, out) == 0
    assert {store: place(out, store).stat().st_mtime_ns for store in STORES} == before


def test_another_tiling_is_refused_as_ever_and_replaced_by_force(slide, capsys):
    out, words = slide / "out", {"writer": "writer=imagefolder"}
    assert run(slide, out, **words) == 0
    assert run(slide, out, "tiler.step=32", **words) == 3
    assert "was made by another configuration: " in capsys.readouterr().err
    assert run(slide, out, "tiler.size=128", "force=true", **words) == 0
    with open_patches(out, "imagefolder") as patches:
        assert patches.read([0]).shape == (1, 128, 128, 3)
        there = list((out / "imagefolder/images").rglob("*.png"))
        assert len(there) == len(patches)
    assert main(["verify", str(out)]) == 0


def test_without_labels_it_is_refused_before_any_work(slide, capsys):
    words = [str(slide / "slides"), f"output={slide / 'out'}", "engine=inline", *TILING]
    assert main([*words, "writer=lmdb"]) == 2
    assert "writer=lmdb stores tiles with their labels, and nothing labels them" in (
        capsys.readouterr().err
    )
    assert not (slide / "out").exists()
    assert main([*words, *CLASSES, "writer=lmdb"]) == 2
    assert "annotations=FOLDER" in capsys.readouterr().err


def test_tiles_that_were_stored_without_labels_fail_their_slide(slide, capsys):
    assert main([str(slide / "slides"), f"output={slide / 'out'}", "engine=inline", *TILING]) == 0
    again = ["tiler=stored", f"tiler.folder={slide / 'out/patches'}", "encoder=[]", "writer=lmdb"]
    words = [str(slide / "slides"), f"output={slide / 'new'}", "engine=inline", *again]
    assert main(words) == 3
    assert "nothing labels those of a" in capsys.readouterr().err
    assert not (slide / "new/lmdb/a.lmdb").exists()


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


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def first_image(out):
    return sorted((out / "imagefolder/images/normal/a.svs").iterdir())[0]


DAMAGE = {
    "an image of a class": (lambda o: flip(first_image(o), 60), "it is damaged: its content"),
    "an image gone": (lambda o: first_image(o).unlink(), "images are missing, "),
    "an image of nobody": (
        lambda o: first_image(o).with_name("x.png").write_bytes(b""),
        "1 images belong to no tile",
    ),
    "lmdb cut": (lambda o: cut(place(o, "lmdb")), "it does not end as one"),
    "lmdb's tree": (
        lambda o: flip(place(o, "lmdb"), 5 * 4096 + 21),
        "its pages and their checksum",
    ),
    "hdf5": (lambda o: flip(place(o, "patches"), -5000), "images cannot be read, it is damaged"),
    "hdf5 cut": (lambda o: cut(place(o, "patches")), "cannot be opened as HDF5"),
    "tar": (lambda o: flip(place(o, "webdataset"), -4000), "is damaged"),
    "tar cut": (lambda o: cut(place(o, "webdataset")), "is cut short"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_verify_finds_what_is_wrong(written, tmp_path, capsys, what):
    spoil, told = DAMAGE[what]
    out = tmp_path / "out"
    subprocess.run(["cp", "-a", str(written / "out"), str(out)], check=True)
    spoil(out)
    assert main(["verify", str(out)]) == 1
    said = capsys.readouterr().out
    assert told in said
    assert "1 fault" in said


def test_reading_a_damaged_image_is_an_error(written, tmp_path):
    out = tmp_path / "out"
    subprocess.run(["cp", "-a", str(written / "out"), str(out)], check=True)
    with tarfile.open(place(out, "webdataset")) as tar:
        at = next(m for m in tar if m.name.endswith(".png")).offset_data + 100
    flip(place(out, "webdataset"), at)
    cut(first_image(out))
    for store in ("webdataset", "imagefolder"):
        with open_patches(out, store) as patches, pytest.raises(StoreError, match="is damaged"):
            patches.read(slice(None))


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


@pytest.mark.parametrize(("free", "told"), [(False, errno.ENOSPC), (True, errno.EIO)])
def test_a_short_write_is_told_as_what_it_is(
    make_writer, coords, tmp_path, monkeypatch, free, told
):
    """LMDB says "Input/output error" of a full disk, which would not end the run."""

    def fail(*_):
        raise lmdb.Error("mdb_txn_commit: Input/output error")

    def allocate(*_):
        if not free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("microtome_writers.lmdb._write_pages", fail)
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    attributes = {"slide_id": "a", "patch_size": 16, "classes": ["n"]}
    sink = make_writer("lmdb").open(tmp_path / "a.lmdb", "a", attributes)
    sink.write(coords, np.zeros((6, 16, 16, 3), np.uint8), np.zeros(6, np.int16))
    sink.record({**attributes, **labelled_tiles(coords, np.zeros(6, np.int16))})
    with pytest.raises(OSError, match=os.strerror(told)[:12]) as caught:
        sink.close()
    assert caught.value.errno == told


@pytest.mark.parametrize("store", ["imagefolder", "lmdb"])
@pytest.mark.skipif(sys.platform != "linux", reason="it forks")
def test_killed_anywhere_each_folder_is_whole_and_the_next_run_completes(store, tmp_path):
    script = Path(__file__).with_name("kill_patches.py")
    done = subprocess.run(
        [sys.executable, str(script), store, str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > {"imagefolder": 24, "lmdb": 8}[store]
