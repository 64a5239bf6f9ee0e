"""Tile archives: written by a run, checked, and read in place of their slides."""

from __future__ import annotations

import io
import json
import re
import tarfile

import h5py
import numpy as np
import pytest
from PIL import Image

from microtome.__main__ import main
from microtome.errors import ConfigError, StoreError
from microtome.store.archives import INDEX, is_archive, read_archive
from microtome.testing import make_slide

TILES = ["tiler.size=128", "tiler.magnification=20"]
RESNET = [
    "encoder=[handcrafted,timm]",
    "encoder.timm.model=resnet18",
    "encoder.timm.weights=random",
]


def run(slide, out, *words):
    return main([str(slide), f"output={out}", "engine=inline", *words])


def stored(out, name="a"):
    with h5py.File(out / f"patches/{name}.h5") as file:
        return {
            "coords": file["coords"][...],
            "features": {n: d[...] for n, d in file["features"].items()},
            "attributes": dict(file.attrs),
        }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Tiles at half the resolution of level 0, archived in one pass with features."""
    folder = tmp_path_factory.mktemp("archive")
    slide = make_slide(folder / "a.svs", size=(1200, 900)).path
    assert run(slide, folder / "out", *TILES, *RESNET, "writer=[hdf5,png,tar]") == 0
    return folder


@pytest.fixture
def archive(written, tmp_path):
    (tmp_path / "a.tar").write_bytes((written / "out/tiles/a.tar").read_bytes())
    return tmp_path / "a.tar"


def read_back(archive, out, *words):
    return run(archive, out, "+preset=archive", *words)


def test_an_archive_is_a_tar_file_of_the_same_images(written):
    coords = stored(written / "out")["coords"]
    with tarfile.open(written / "out/tiles/a.tar") as tar:
        index, *members = tar.getmembers()
        images = [np.array(Image.open(tar.extractfile(m))) for m in members]
        told = json.load(tar.extractfile(index))
    assert [m.name for m in members] == [f"a_{x}_{y}.png" for x, y in coords[:, :2]]
    for (x, y), image in zip(coords[:, :2], images, strict=True):
        png = Image.open(written / f"out/images/a/a_x{x}_y{y}.png")
        assert np.array_equal(image, np.array(png))
    assert index.name == INDEX
    # WebDataset: what it passes over, and what it takes for a sample
    assert re.match(r"__[^/]*__($|/)", index.name)
    assert all(m.name.count(".") == 1 for m in members)
    assert told["coords"] == coords.tolist()
    assert (told["format"], told["version"]) == ("microtome tile archive", 1)
    assert told["attributes"]["patch_size"] == 128
    assert told["attributes"]["mpp_x"] == 0.25


def test_features_of_an_archive_are_those_of_the_slide_to_the_bit(written, archive, tmp_path):
    assert read_back(archive, tmp_path / "new", *RESNET) == 0
    old, new = stored(written / "out"), stored(tmp_path / "new")
    assert np.array_equal(new["coords"][:, :2], old["coords"][:, :2])
    assert set(new["features"]) == {"handcrafted", "timm"}
    for name, features in new["features"].items():
        assert np.array_equal(features, old["features"][name]), name
    same = ("patch_size", "patch_size_level0", "step", "level0_width", "level0_height", "mpp")
    same += ("target_magnification", "level0_magnification", "effective_mpp")
    for name in same:
        assert np.array_equal(new["attributes"][name], old["attributes"][name]), name


@pytest.mark.parametrize(
    "words",
    [
        ["tiler.size=256", "tiler.magnification=40", "tiler.edge=pad"],
        ["tiler.size=100", "tiler.mpp=0.6", "tiler.edge=pad", "tiler.step=70"],
        ["tiler.size=128", "tiler.mpp=0.245"],
    ],
    ids=["as they lie at level 0", "of an odd ratio, overlapping", "finer than level 0"],
)
def test_whatever_the_tiles_were_their_pixels_come_back(tmp_path, words):
    slide = make_slide(tmp_path / "a.svs", size=(1200, 900)).path
    common = ["segmenter=none", *words, "writer=[hdf5,tar]"]
    assert run(slide, tmp_path / "out", *common) == 0
    assert read_back(tmp_path / "out/tiles/a.tar", tmp_path / "new", "writer=[hdf5,tar]") == 0
    one, two = stored(tmp_path / "out"), stored(tmp_path / "new")
    assert len(one["coords"])
    assert np.array_equal(one["features"]["handcrafted"], two["features"]["handcrafted"])
    images = [read_images(tmp_path / f"{name}/tiles/a.tar") for name in ("out", "new")]
    assert images[0] == images[1]


def read_images(path):
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()[1:]}


def test_jpeg_is_smaller_and_its_pixels_are_what_is_read(tmp_path):
    slide = make_slide(tmp_path / "a.svs", size=(1024, 768)).path
    jpeg = ["writer=[tar]", "encoder=[]", "writer.tar.format=jpeg", "writer.tar.quality=80"]
    assert run(slide, tmp_path / "out", *TILES, *jpeg) == 0
    images = read_images(tmp_path / "out/tiles/a.tar")
    assert {name.rpartition(".")[2] for name in images} == {"jpg"}
    assert (
        read_back(tmp_path / "out/tiles/a.tar", tmp_path / "new", "writer=png", "encoder=[]") == 0
    )
    for name, data in images.items():
        x, y = name.removesuffix(".jpg").split("_")[1:]
        png = Image.open(tmp_path / f"new/images/a/a_x{x}_y{y}.png")
        assert np.array_equal(np.array(png), np.array(Image.open(io.BytesIO(data))))


def test_it_is_reused_and_replaced_like_a_folder_of_images(tmp_path, capsys):
    slide = make_slide(tmp_path / "a.svs", size=(1024, 768)).path
    words = [*TILES, "writer=[tar]", "encoder=[]"]
    path = tmp_path / "out/tiles/a.tar"
    assert run(slide, tmp_path / "out", *words) == 0
    before = path.stat().st_mtime_ns
    capsys.readouterr()
    assert run(slide, tmp_path / "out", *words) == 0
    assert "1 reused" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before
    assert run(slide, tmp_path / "out", *words, "writer.tar.format=jpeg") == 3
    assert "writer.format was its default and is 'jpeg'" in capsys.readouterr().err
    assert run(slide, tmp_path / "out", *words, "writer.tar.format=jpeg", "force=true") == 0
    assert all(name.endswith(".jpg") for name in read_images(path))
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.tar"]


def test_dropped_tiles_and_slides_without_tiles(tmp_path):
    slide = make_slide(tmp_path / "a.svs", size=(1024, 768)).path
    every = ["segmenter=none", *TILES, "writer=[hdf5,tar]", "encoder=[]"]
    assert run(slide, tmp_path / "some", *every, "filter.enabled=true") == 0
    kept = stored(tmp_path / "some")
    found = read_archive(tmp_path / "some/tiles/a.tar")
    assert 0 < len(found.coords) < 12
    assert np.array_equal(found.coords, kept["coords"])
    drop = ["filter.enabled=true", "filter.white_saturation_below=256", "filter.white_value_from=0"]
    assert run(slide, tmp_path / "none", *every, *drop) == 0
    assert main(["verify", str(tmp_path / "none")]) == 0
    assert read_back(tmp_path / "none/tiles/a.tar", tmp_path / "again") == 0
    assert stored(tmp_path / "again")["coords"].shape == (0, 5)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_verify_finds_what_is_wrong(tmp_path, capsys):
    slide = make_slide(tmp_path / "a.svs", size=(1024, 768)).path
    out, path = tmp_path / "out", tmp_path / "out/tiles/a.tar"
    assert run(slide, out, *TILES, "writer=[tar]", "encoder=[]") == 0
    whole = path.read_bytes()
    assert main(["verify", str(out)]) == 0
    found = read_archive(path)

    def told(*words):
        capsys.readouterr()
        assert main(["verify", str(out), *words]) == 1
        return capsys.readouterr().out

    flip(path, int(found.offsets[1]) + 40)
    assert "png: it is damaged, its content and its checksum differ" in told()
    path.write_bytes(whole[: len(whole) // 2])
    assert "is cut short: it has" in told()
    path.write_bytes(whole[:700])
    assert "its index cannot be read" in told()
    path.write_bytes(b"nothing" * 200)
    assert "is no tile archive of microtome" in told()
    with tarfile.open(path, "w") as tar, tarfile.open(fileobj=io.BytesIO(whole)) as old:
        index, *others = old.getmembers()
        for member in (index, *reversed(others)):
            tar.addfile(member, old.extractfile(member))
    assert "images are not those that its index tells of" in told()
    path.write_bytes(whole.replace(b'"target_magnification": 20', b'"target_magnification": 10'))
    assert "its attributes or columns are not those that were written" in told()
    path.write_bytes(whole)
    assert main(["verify", str(out)]) == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data, at: data[: at + 40], "is cut short"),
        (lambda data, at: data[:600], "its index cannot be read"),
        (lambda data, at: b"nothing" * 200, "no tile archive of microtome, nor of slide2vec"),
        (lambda data, at: data[: at + 40] + b"\0" + data[at + 41 :], "is not what was written"),
    ],
    ids=["cut", "cut in the index", "something else", "flipped"],
)
def test_a_damaged_archive_fails_its_slide_with_a_sentence(archive, tmp_path, capsys, change, told):
    at = int(read_archive(archive).offsets[-1])
    archive.write_bytes(change(archive.read_bytes(), at))
    assert read_back(archive, tmp_path / "new") == 3
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err
    assert not (tmp_path / "new/patches/a.h5").exists()


def test_other_archives_of_a_folder_are_no_slides(archive, tmp_path, capsys):
    with tarfile.open(tmp_path / "backup.tar", "w") as tar:
        tar.add(archive, "a.tar")
    assert read_back(tmp_path, tmp_path / "new", "encoder=[]") == 0
    said = capsys.readouterr()
    assert "backup.tar: no archive of tiles" in said.out + said.err
    assert read_back(tmp_path / "backup.tar", tmp_path / "named", "encoder=[]") == 3
    said = capsys.readouterr()
    assert "it is no tile archive of microtome" in said.out + said.err


def test_between_its_tiles_an_archive_is_transparent(archive, tmp_path):
    """So a grid on it gets background there, and says so."""
    grid = ["segmenter=none", *TILES, "encoder=handcrafted"]
    assert run(archive, tmp_path / "new", *grid) == 0
    held = {tuple(row) for row in read_archive(archive).coords[:, :2].tolist()}
    with h5py.File(tmp_path / "new/patches/a.h5") as file:
        places, marked = file["coords"][:, :2].tolist(), file["columns/has_background"][...]
    assert 0 < len(held) < len(places) == 12
    assert [not mark for mark in marked] == [tuple(place) in held for place in places]


def test_what_is_no_archive_or_wants_more_of_one(archive, synthetic, tmp_path, capsys):
    finer = ["segmenter=none", "tiler.size=128", "tiler.magnification=40"]
    assert run(archive, tmp_path / "finer", *finer) == 3
    assert "holds tiles at a downsample of 2 alone" in capsys.readouterr().err
    assert read_back(synthetic.path, tmp_path / "new") == 3
    assert "is no tile archive: tiler=archive takes the tiles of .tar files" in (
        capsys.readouterr().err
    )


def test_it_is_looked_at_as_far_as_it_goes(written, tmp_path):
    """An overlay shows the tiles that are there, and nothing between them."""
    slide = make_slide(tmp_path / "a.svs", size=(3000, 2200)).path
    assert run(slide, tmp_path / "out", *TILES, "writer=[tar]", "encoder=[]") == 0
    words = ["task=coords", "visualize=mask"]
    assert read_back(tmp_path / "out/tiles/a.tar", tmp_path / "new", *words) == 0
    assert (tmp_path / "new/visualization/a_mask.png").exists()


def test_options_that_make_no_sense(make_writer):
    with pytest.raises(ConfigError, match="compression_level=10 is not between"):
        make_writer("tar", compression_level=10)
    with pytest.raises(ConfigError, match="quality=0 is not between"):
        make_writer("tar", quality=0)


def test_names_are_samples_of_webdataset_whatever_the_slide(make_writer, coords, tmp_path):
    path = tmp_path / "x.tar"
    sink = make_writer("tar").open(path, f"q/{'s' * 150}.切.svs", {})
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    sink.write(coords[::-1], pixels[::-1])
    sink.record({"coords": coords.tolist(), "slide": "naïve"})
    sink.close()
    assert is_archive(path)
    with tarfile.open(path) as tar:
        _, *members = tar.getmembers()
        images = [np.array(Image.open(tar.extractfile(m))) for m in members]
    assert [m.name for m in members] == [
        f"{'s' * 150}_切_svs_{x}_{y}.png" for x, y in coords[:, :2]
    ]
    assert np.array_equal(images, pixels)
    assert list(make_writer("tar").damage(path, deep=True)) == []
    record = make_writer("tar").read_record(path)
    assert record == {"coords": json.dumps(coords.tolist()), "slide": "naïve"}


def test_tiles_that_never_came(make_writer, coords, tmp_path):
    sink = make_writer("tar").open(tmp_path / "x.tar", "a", {})
    sink.record({"coords": coords.tolist()})
    with pytest.raises(StoreError, match=r"6 tiles came without pixels, the first at \(0, 0\)"):
        sink.close()
    assert list(tmp_path.iterdir()) == []


def test_slide2vecs_archive_with_its_coordinates_beside(tmp_path, capsys):
    """JPEG members by number, coordinates by hs2p, ordered by x and then y."""
    rng = np.random.default_rng(0)
    points = np.array([[x, y] for x in (0, 444) for y in (444, 888)])
    low = rng.integers(0, 256, (4, 28, 28, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    data = []
    for tile in low:
        buffer = io.BytesIO()
        Image.fromarray(tile).save(buffer, "JPEG", quality=90)
        data.append(buffer.getvalue())
    folder = tmp_path / "tiles"
    folder.mkdir()
    with tarfile.open(folder / "s.tiles.tar", "w") as tar:
        for number in (2, 0, 1, 3):
            info = tarfile.TarInfo(f"{number:06d}.jpg")
            info.size = len(data[number])
            tar.addfile(info, io.BytesIO(data[number]))
    assert read_back(folder / "s.tiles.tar", tmp_path / "early") == 3
    assert "nor of slide2vec with s.coordinates.meta.json" in capsys.readouterr().err

    tiling = {
        "requested_tile_size_px": 224,
        "requested_spacing_um": 0.5,
        "tile_size_lv0": 444,
        "step_px_lv0": 444,
    }
    slide = {"base_spacing_um": 0.252, "dimensions": [1000, 1500]}
    meta = json.dumps({"tiling": tiling, "slide": slide})
    (folder / "s.coordinates.meta.json").write_text(meta)
    np.savez(folder / "s.coordinates.npz", x=points[:, 0], y=points[:, 1])
    assert read_back(folder / "s.tiles.tar", tmp_path / "new", "writer=[hdf5,png]") == 0
    found = stored(tmp_path / "new", "s.tiles")
    assert found["coords"][:, :2].tolist() == [[0, 444], [444, 444], [0, 888], [444, 888]]
    assert found["attributes"]["patch_size_level0"] == 444
    assert found["attributes"]["mpp"] == 0.252
    for (x, y), jpeg in zip(points, data, strict=True):
        png = Image.open(tmp_path / f"new/images/s.tiles/s.tiles_x{x}_y{y}.png")
        assert np.array_equal(np.array(png), np.array(Image.open(io.BytesIO(jpeg))))

    np.savez(folder / "s.coordinates.npz", x=points[:3, 0], y=points[:3, 1])
    assert read_back(folder / "s.tiles.tar", tmp_path / "other") == 3
    assert "holds 4 images, and s.coordinates.npz beside it 3 tiles" in capsys.readouterr().err
