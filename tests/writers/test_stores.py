"""What both stores promise, read back by plain h5py and zarr."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import zarr

from microtome.errors import StoreError
from microtome.store.features import ArraySource

# What a run writes on a slide: requirements C3 and C6 and more, in every type there is.
ATTRIBUTES = {
    "patch_size": 256,
    "patch_size_level0": 512,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 0,
    "level0_width": 2000,
    "level0_height": 1100,
    "wsi_path": "/slides/naïve 切片 (1).svs",
    "passport_version": 2,
    "creation_date": "2026-01-01T00:00:00+00:00",
    "num_patches": 6,
    "filename": "naïve 切片 (1).svs",
    "mpp": 0.25,
    "stain": None,
    "patch_size_level0_exact": (512.0, 512.0),
    "background": [255, 255, 255],
    "mpp_assumed": False,
    "identity_fields": {"tiler": {"step": 256}},
}
CARD = {"encoder": "uni", "dim": 3, "revision": None, "card": {"mean": (0.5, 0.5, 0.5)}}
FEATURES = np.arange(18, dtype=np.float32).reshape(6, 3)
COLUMNS = {
    "tissue_fraction": np.linspace(0, 1, 6, dtype=np.float32),
    "has_background": np.arange(6) > 3,
}


def open_plain(name, path):
    return h5py.File(path) if name == "hdf5" else zarr.open_group(path, mode="r")


@pytest.fixture(params=["hdf5", "zarr"])
def name(request):
    return request.param


@pytest.fixture
def path(name, make_writer, coords, tmp_path):
    writer, path = make_writer(name), tmp_path / "slide"
    writer.create(path, coords, COLUMNS, ATTRIBUTES)
    writer.add_features(path, "uni", ArraySource(FEATURES), CARD)
    writer.add_features(path, "half", ArraySource(FEATURES.astype(np.float16)), {})
    return path


def test_plain_libraries_read_it(name, path, coords):
    root = open_plain(name, path)
    np.testing.assert_array_equal(root["coords"][:], coords)
    assert root["coords"].dtype == np.int32
    assert sorted(root["features"].keys()) == ["half", "uni"]
    np.testing.assert_array_equal(root["features/uni"][:], FEATURES)
    assert root["features/uni"].dtype == np.float32
    assert root["features/half"].dtype == np.float16
    for column, values in COLUMNS.items():
        np.testing.assert_array_equal(root[f"columns/{column}"][:], values)
        assert root[f"columns/{column}"].dtype == values.dtype


def test_attributes_have_their_plain_types(name, path):
    attributes = open_plain(name, path).attrs
    assert set(attributes) == set(ATTRIBUTES)
    for key in ("patch_size", "patch_size_level0", "num_patches", "mpp", "wsi_path", "filename"):
        assert attributes[key] == ATTRIBUTES[key]
    assert isinstance(attributes["wsi_path"], str)
    assert int(attributes["patch_size_level0"]) == 512
    assert attributes["stain"] == "None"
    assert not attributes["mpp_assumed"]
    assert list(attributes["patch_size_level0_exact"]) == [512.0, 512.0]
    assert json.loads(attributes["identity_fields"]) == ATTRIBUTES["identity_fields"]


def test_an_encoder_s_card_lies_on_its_features(name, path):
    attributes = open_plain(name, path)["features/uni"].attrs
    assert attributes["encoder"] == "uni"
    assert attributes["revision"] == "None"
    assert json.loads(attributes["card"]) == {"mean": [0.5, 0.5, 0.5]}


def test_both_stores_say_the_same(make_writer, coords, tmp_path):
    said = []
    for name in ("hdf5", "zarr"):
        writer, path = make_writer(name), tmp_path / name
        writer.create(path, coords, COLUMNS, ATTRIBUTES)
        writer.add_features(path, "uni", ArraySource(FEATURES), CARD)
        with writer.open_stored(path) as stored:
            said.append((dict(stored.attributes), dict(stored.feature_attributes("uni"))))
    assert said[0] == said[1]


def test_it_is_read_back(name, make_writer, path, coords):
    with make_writer(name).open_stored(path) as stored:
        np.testing.assert_array_equal(stored.coords, coords)
        assert stored.columns.keys() == COLUMNS.keys()
        assert stored.feature_names() == ["half", "uni"]
        assert stored.feature_shape("uni") == (6, 3)
        np.testing.assert_array_equal(stored.features("uni"), FEATURES)
        np.testing.assert_array_equal(stored.features("uni", slice(2, 4)), FEATURES[2:4])


def test_readers_of_the_established_layout_find_their_way(name, path):
    """Requirement C2, C5 and C8: list the sets, count the rows, place each patch."""
    root = open_plain(name, path)
    for features in root["features"].keys():  # noqa: SIM118 - as those readers do
        assert root["features"][features].shape[0] == root.attrs["num_patches"]
    x, y, width, height, level = root["coords"][-1]
    assert (x, y) == (1024, 512)
    assert (width, height) == (root.attrs["patch_size_level0"],) * 2
    assert level == 0


def test_no_tile_is_stored_with_its_shape(name, make_writer, tmp_path):
    writer, path = make_writer(name), tmp_path / "empty"
    writer.create(path, np.empty((0, 5), np.int32), {"t": np.empty(0, np.float32)}, {})
    writer.add_features(path, "uni", ArraySource(np.empty((0, 512), np.float32)), {})
    root = open_plain(name, path)
    assert root["coords"].shape == (0, 5)
    assert root["features/uni"].shape == (0, 512)
    assert root["columns/t"].shape == (0,)


@pytest.mark.parametrize("compression", ["none", "gzip", "lzf", "zstd"])
def test_compression_changes_no_value(name, make_writer, tmp_path, compression, coords):
    if (name, compression) in {("hdf5", "zstd"), ("zarr", "lzf")}:
        pytest.skip(f"{name} has no {compression}")
    values = np.random.default_rng(0).integers(0, 4, (70_000, 9)).astype(np.float32)
    sizes = []
    for how in ("none", compression):
        writer, path = make_writer(name, compression=how), tmp_path / how
        writer.create(path, np.zeros((70_000, 5), np.int32), {}, {})
        writer.add_features(path, "uni", ArraySource(values), {})
        np.testing.assert_array_equal(open_plain(name, path)["features/uni"][:], values)
        files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
        sizes.append(sum(f.stat().st_size for f in files))
        if how == compression == "none":
            return
    assert sizes[1] < sizes[0] / 2


def test_chunks_are_about_a_mebibyte(name, make_writer, tmp_path):
    writer, path = make_writer(name), tmp_path / "slide"
    writer.create(path, np.zeros((3000, 5), np.int32), {}, {})
    writer.add_features(path, "uni", ArraySource(np.zeros((3000, 1024), np.float32)), {})
    root = open_plain(name, path)
    assert root["features/uni"].chunks == (256, 1024)
    assert root["coords"].chunks == (3000, 5)


# Keys as a run writes them, with a row of many chunks and one of several.
ARRAYS = {
    "slide_features/titan": np.linspace(0, 1, 768, dtype=np.float32),
    "regions/index": np.arange(24, dtype=np.int32).reshape(6, 4),
    "slide_attention/abmil": np.linspace(0, 1, 6, dtype=np.float32),
    "tokens/uni": np.arange(6 * 37 * 37 * 300, dtype=np.float32).reshape(6, 37, 37, 300),
}


@pytest.fixture
def with_arrays(name, make_writer, path):
    for key, array in ARRAYS.items():
        make_writer(name).add_array(path, key, ArraySource(array), {**CARD, "key": key})
    return path


def test_plain_libraries_read_arrays(name, with_arrays):
    root = open_plain(name, with_arrays)
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(root[key][:], array)
        assert root[key].dtype == array.dtype
        assert root[key].attrs["key"] == key
        assert root[key].attrs["revision"] == "None"
    assert sorted(root["features"].keys()) == ["half", "uni"]


def test_arrays_are_guarded_like_features(name, make_writer, with_arrays):
    with make_writer(name).open_stored(with_arrays) as stored:
        checksums = stored.checksums()
    assert ARRAYS.keys() < checksums.keys()
    assert len({checksums[key] for key in ("features/uni", *ARRAYS)} - {""}) == 1


def test_what_others_add_to_a_store_is_none_of_its_arrays(name, make_writer, with_arrays):
    """A dataset at the top, and a group in a group."""
    if name == "hdf5":
        with h5py.File(with_arrays, "r+") as file:
            file["foreign"] = np.ones((2, 2))
            file["tokens/deep/x"] = np.ones(2)
    else:
        root = zarr.open_group(with_arrays, mode="r+")
        root.create_array("foreign", data=np.ones((2, 2)))
        root.create_group("tokens/deep").create_array("x", data=np.ones(2))
    with make_writer(name).open_stored(with_arrays) as stored:
        assert stored.array_names() == sorted(ARRAYS)
        assert stored.array_names("tokens") == ["tokens/uni"]


@pytest.mark.parametrize("shape", [(5,), (0, 3), (3, 0), (7, 11, 13), (2, 300, 300, 8), (1, 10**6)])
@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.bool_])
def test_pieces_are_bounded_whatever_the_shape(name, make_writer, path, shape, dtype):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    make_writer(name).add_array(path, "x/y", ArraySource(array), {})
    root = open_plain(name, path)
    np.testing.assert_array_equal(root["x/y"][:], array)
    if array.size:
        chunk = np.prod(root["x/y"].chunks) * array.itemsize
        assert min(2**20, array.nbytes) / 4 < chunk <= 2**20
    if name == "hdf5":
        root.close()
    with make_writer(name).open_stored(path) as stored:
        np.testing.assert_array_equal(stored.array("x/y", slice(1, 2)), array[1:2])


def test_a_lost_file_of_an_array_is_noticed(make_writer, coords, tmp_path):
    writer, path = make_writer("zarr", shard_mb=1), tmp_path / "slide"
    writer.create(path, coords, {}, {})
    writer.add_array(path, "tokens/uni", ArraySource(ARRAYS["tokens/uni"]), {})
    files = sorted(f for f in (path / "tokens/uni/c").rglob("*") if f.is_file())
    assert len(files) == 6  # a file holds whole rows
    files[3].unlink()
    with writer.open_stored(path) as stored:
        assert stored.array("tokens/uni", slice(0, 3)).any()
        with pytest.raises(StoreError, match=r"tokens/uni cannot be read.* is missing"):
            stored.array("tokens/uni")


def test_what_is_no_slide_says_so(name, make_writer, tmp_path):
    writer, path = make_writer(name), tmp_path / "slide"
    with pytest.raises(StoreError, match="not a slide"):
        writer.open_stored(path)
    if name == "hdf5":
        path.write_bytes(b"no slide")
    else:
        path.mkdir()
    with pytest.raises(StoreError, match="not a slide"):
        writer.open_stored(path)
    path.unlink() if name == "hdf5" else path.rmdir()
    h5py.File(path, "w").close() if name == "hdf5" else zarr.create_group(path)
    with pytest.raises(StoreError, match="lacks coords"):
        writer.open_stored(path)


def test_another_tools_file_is_said_to_be_one(make_writer, tmp_path):
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file["coords"] = np.zeros((2, 5), np.int32)
        file["features/resnet50"] = np.zeros((2, 4), np.float32)
    with pytest.raises(StoreError, match=r"is another tool's.* `microtome import`"):
        make_writer("hdf5").open_stored(tmp_path / "slide.h5")


FULL_DISK = """
import importlib, os, sys
import numpy as np
from pathlib import Path
import microtome_writers
from microtome.errors import StoreError
from microtome.store.publish import ArraySource, FeatureSet, SlideContent, publish_slide
spec = next(s for s in microtome_writers.microtome_writers() if s.name == sys.argv[1])
module, _, target = spec.target.partition(":")
writer = getattr(importlib.import_module(module), target)(spec.config())
final = Path(sys.argv[2]) / "slide"
coords = np.zeros((6000, 5), np.int32)
small, large, deep = (
    FeatureSet(ArraySource(np.ones((6000, *row), np.float32))) for row in ((2,), (400,), (2, 2, 99))
)
def put(tokens=None, **features):
    arrays = {} if tokens is None else {"tokens/a": tokens}
    content = SlideContent(coords=coords, features=features, arrays=arrays)
    publish_slide(final, writer, spec, content, force=False)
for _ in range(2):
    try:
        put(a=small, large=large)
    except StoreError as error:
        print(error)
    print(os.listdir(final.parent))
put(a=small)
for more in ({"large": large}, {"tokens": deep}):
    try:
        put(**more)
    except StoreError as error:
        print(error)
with writer.open_stored(final) as stored:
    names = stored.feature_names() + stored.array_names()
    print(os.listdir(final.parent), names, stored.features("a").sum())
"""


def test_a_full_disk_is_one_sentence_and_no_more(name, tmp_path):
    """A real one: HDF5 kills the process at its end when it cannot close a file."""
    mount = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec "$@"'
    sandbox = ["unshare", "-Urm", "sh", "-c", mount, "sh"]
    if not shutil.which("unshare") or subprocess.run([*sandbox, "true"], check=False).returncode:
        pytest.skip("no private mounts here")
    command = [*sandbox, sys.executable, "-c", FULL_DISK, name, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = f"{tmp_path}/slide cannot be written: No space left on device; free some space"
    assert done.stdout.count(said) == 4
    assert done.stdout.count("\n[]\n") == 2
    assert done.stdout.endswith("['slide'] ['a'] 12000.0\n")
