"""Code that reads AtlasPatch's files reads ours, as it stands."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import openslide
import pytest
import zarr
from migration.parity import drive
from PIL import Image

from microtome.__main__ import main
from microtome.run.slides.attributes import find_said
from microtome.testing import make_slide

LINES = ["preset=atlaspatch", "segmenter=none", "engine=inline", "tiler.size=256"]

SNIPPETS = """
import h5py
import numpy as np
import openslide
from PIL import Image

with h5py.File("out/patches/sample.h5", "r") as f:
    coords = f["coords"][...]
    patch_size = int(f.attrs["patch_size"])
    names = list(f["features"].keys())
    feats = {name: f["features"][name][...] for name in names}
    wsi_path = f.attrs["wsi_path"]
    alibi_unit = int(f.attrs["patch_size_level0"])

tiles = []
with openslide.OpenSlide(wsi_path) as wsi:
    for x, y, read_w, read_h, level in coords:
        img = wsi.read_region(
            (int(x), int(y)), int(level), (int(read_w), int(read_h))
        ).convert("RGB")
        if img.size != (patch_size, patch_size):
            img = img.resize((patch_size, patch_size), resample=Image.BILINEAR)
        tiles.append(np.array(img))
"""
"""The documented ways to read coordinates, features and pixels back."""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    slide = make_slide(folder / "sample.svs", size=(2048, 1536)).path
    code = main(
        [
            str(slide),
            f"output={folder / 'out'}",
            *LINES,
            "tiler.magnification=15",
            "encoder=[Handcrafted]",
            "writer=[hdf5,png,zarr]",
            "writer.hdf5.passports=true",
            "writer.zarr.passports=true",
        ]
    )
    assert code == 0
    return folder


def test_the_documented_snippets_give_what_encoders_saw(out, monkeypatch):
    monkeypatch.chdir(out)
    found = {}
    exec(SNIPPETS, found)
    assert found["coords"].dtype == np.int32
    assert found["names"] == ["handcrafted"]
    assert found["feats"]["handcrafted"].dtype == np.float32
    assert len(found["feats"]["handcrafted"]) == len(found["coords"]) == len(found["tiles"]) > 0
    assert found["alibi_unit"] == 683
    whole = 0
    for (x, y, width, height, level), tile in zip(
        found["coords"].tolist(), found["tiles"], strict=True
    ):
        with openslide.OpenSlide("sample.svs") as slide:
            down = slide.level_downsamples[level]
            if x + width * down > slide.dimensions[0] or y + height * down > slide.dimensions[1]:
                continue  # what overhangs is white here, black there
        with Image.open(f"out/images/sample/sample_x{x}_y{y}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), tile)
        whole += 1
    assert whole


def test_the_installed_package_reads_our_file(out, tmp_path):
    path = out / "out" / "patches" / "sample.h5"
    answer = drive("read", {"path": str(path), "encoder": "handcrafted"}, tmp_path)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(answer["coords"], file["coords"][:])
        np.testing.assert_array_equal(answer["features"], file["features/handcrafted"][:])
        assert answer["summary"].tolist() == [len(file["coords"]), 256, 683, 15]
        assert str(answer["wsi_path"]) == file.attrs["wsi_path"]
    assert answer["existing"].tolist() == ["handcrafted"]
    assert answer["missing"].tolist() == []


def test_passports_of_both_stores_are_the_same(out):
    with h5py.File(out / "out" / "patches" / "sample.h5") as file:
        rows, coords = file["passports"][:], file["coords"][:]
        assert file["passports"].dtype == "S160"
    stored = zarr.open_group(out / "out" / "patches" / "sample.zarr", mode="r")["passports"][:]
    assert stored.shape == (len(coords), 160)
    np.testing.assert_array_equal(np.ascontiguousarray(stored).view("S160")[:, 0], rows)
    x, y, width, height, level = coords[-1].tolist()
    named = f"sample__x{x}_y{y}_rw{width}_rh{height}_lv{level}_mag40_tmag15_total{len(coords)}"
    assert rows[-1] == named.encode()


def test_verify_compares_passports_with_coordinates(out, tmp_path, capsys):
    assert main(["verify", str(out / "out")]) == 0
    copy = tmp_path / "out"
    shutil.copytree(out / "out", copy)
    with h5py.File(copy / "patches" / "sample.h5", "r+") as file:
        file["passports"][0] = b"sample__x1_y1"
    shutil.rmtree(copy / "patches" / "sample.zarr" / "passports")
    capsys.readouterr()
    assert main(["verify", str(copy)]) == 1
    said = capsys.readouterr().out
    assert "passports are not those of its coordinates" in said
    assert "passports are missing" in said


@pytest.mark.parametrize(
    ("properties", "what", "wanted"),
    [
        ({"aperio.Stain": " H&E ", "b.StainDescription": "x"}, "stain", "H&E"),
        ({"dicom.InstitutionName": "A clinic"}, "institution", "A clinic"),
        ({"aperio.Institution": "  "}, "institution", None),
        ({"stain.of": "x"}, "stain", None),
    ],
)
def test_what_a_scanner_wrote_of_the_slide_is_kept(properties, what, wanted):
    assert find_said(properties, what) == wanted


def test_a_slide_without_tiles_has_no_passport(tmp_path):
    slide = make_slide(tmp_path / "a.svs", size=(512, 512)).path
    words = [str(slide), f"output={tmp_path / 'out'}", "segmenter=none", "engine=inline"]
    more = ["tiler.size=600", "tiler.magnification=20", "writer=zarr", "writer.zarr.passports=true"]
    assert main([*words, *more]) == 0
    stored = zarr.open_group(tmp_path / "out" / "patches" / "a.zarr", mode="r")["passports"]
    assert stored.shape == (0, 160)
    assert main(["verify", str(tmp_path / "out")]) == 0
