"""What each writer does in its own way."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import zarr
from PIL import Image

from microtome.errors import ConfigError
from microtome.store.features import ArraySource


def test_passports_are_an_option(make_writer, coords, tmp_path):
    attributes = {"filename": "a.b.svs", "level0_magnification": 40, "target_magnification": 20}
    for passports in (False, True):
        writer = make_writer("hdf5", passports=passports)
        writer.create(tmp_path / f"{passports}", coords, {}, attributes)
    with h5py.File(tmp_path / "False") as file:
        assert "passports" not in file
    with h5py.File(tmp_path / "True") as file:
        assert file["passports"].dtype == "S160"
        assert file["passports"][4] == b"a.b__x512_y512_rw512_rh512_lv0_mag40_tmag20_total6"


def test_hdf5_of_many_chunks_is_whole(make_writer, tmp_path):
    values = np.random.default_rng(0).random((5000, 300), dtype=np.float32)
    writer, path = make_writer("hdf5"), tmp_path / "slide"
    writer.create(path, np.zeros((5000, 5), np.int32), {}, {})
    writer.add_features(path, "uni", ArraySource(values), {})
    with h5py.File(path) as file:
        assert file["features/uni"].id.get_num_chunks() == -(-5000 // (2**20 // 1200))
        np.testing.assert_array_equal(file["features/uni"][:], values)


def test_an_error_while_writing_closes_the_hdf5(make_writer, coords, tmp_path):
    class Broken(ArraySource):
        def chunks(self, rows):
            raise ZeroDivisionError

    writer, path = make_writer("hdf5"), tmp_path / "slide"
    writer.create(path, coords, {}, {})
    with pytest.raises(ZeroDivisionError):
        writer.add_features(path, "uni", Broken(np.zeros((6, 2))), {})
    path.unlink()
    writer.create(path, coords, {}, {})
    assert writer.open_stored(path).coords.shape == (6, 5)


def test_zarr_is_version_3_sharded_and_not_consolidated(make_writer, tmp_path):
    values = np.random.default_rng(0).random((2500, 1024), dtype=np.float32)
    writer, path = make_writer("zarr", shard_mb=4), tmp_path / "slide"
    writer.create(path, np.zeros((2500, 5), np.int32), {}, {"mpp": 0.25})
    writer.add_features(path, "uni", ArraySource(values), {"dim": 1024})
    meta = json.loads((path / "zarr.json").read_text())
    assert meta["zarr_format"] == 3
    assert meta["attributes"] == {"mpp": 0.25}
    assert "consolidated_metadata" not in meta or meta["consolidated_metadata"] is None
    array = zarr.open_group(path, mode="r")["features/uni"]
    assert (array.chunks, array.shards) == ((256, 1024), (1024, 1024))
    assert len([f for f in (path / "features/uni/c").rglob("*") if f.is_file()]) == 3
    np.testing.assert_array_equal(array[:], values)


def test_zarr_writes_chunks_of_zeros_too(make_writer, coords, tmp_path):
    writer, path = make_writer("zarr"), tmp_path / "slide"
    writer.create(path, coords * 0, {}, {})
    assert (path / "coords/c/0/0").is_file()


def test_zarr_attributes_do_not_depend_on_consolidated_metadata(make_writer, coords, tmp_path):
    """A feature set that is renamed in must be seen, so nothing may cache the list."""
    writer, path, other = make_writer("zarr"), tmp_path / "slide", tmp_path / "other"
    for place in (path, other):
        writer.create(place, coords, {}, {})
    writer.add_features(other, "uni", ArraySource(np.ones((6, 2), np.float32)), {"a": 1})
    (other / "features/uni").rename(path / "features/uni")
    assert list(zarr.open_group(path, mode="r")["features"].array_keys()) == ["uni"]


def test_a_shard_of_nothing_is_refused(make_writer):
    with pytest.raises(ConfigError, match="shard_mb=0"):
        make_writer("zarr", shard_mb=0)


@pytest.mark.parametrize("level", [0, 6, 9])
def test_png_tiles_are_named_by_place_and_lossless(make_writer, coords, tmp_path, level):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    folder = tmp_path / "images"
    sink = make_writer("png", compression_level=level).open(folder, "case 1/naïve 切片", {})
    sink.write(coords[:4], pixels[:4])
    sink.write(coords[4:], pixels[4:])
    sink.close()
    assert len(list(folder.iterdir())) == 6
    for (x, y, *_), tile in zip(coords.tolist(), pixels, strict=True):
        with Image.open(folder / f"naïve 切片_x{x}_y{y}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), tile)


def test_png_of_no_tile_is_an_empty_folder(make_writer, tmp_path):
    make_writer("png").open(tmp_path / "images", "a", {}).close()
    assert list((tmp_path / "images").iterdir()) == []


def test_a_level_that_png_does_not_have_is_refused(make_writer):
    with pytest.raises(ConfigError, match="between 0 and 9"):
        make_writer("png", compression_level=10)
