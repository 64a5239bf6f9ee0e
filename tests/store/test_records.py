"""Layout, status records, masks and folder records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import microtome_writers
from microtome.errors import ConfigError, StoreError
from microtome.slide.types import TissueMask
from microtome.store.attributes import read_folder_record, write_folder_record
from microtome.store.identity import make_identity
from microtome.store.layout import OutputLayout
from microtome.store.masks import load_mask, save_mask
from microtome.store.status import SlideStatus, iterate_statuses, read_status, write_status

SPECS = {spec.name: spec for spec in microtome_writers.microtome_writers()}
OUT = Path("out")


@pytest.mark.parametrize(
    ("tiling", "place", "expected"),
    [
        ("", lambda o: o.slide(SPECS["hdf5"], "a.b"), "patches/a.b.h5"),
        ("20x", lambda o: o.slide(SPECS["zarr"], "a.b"), "20x/patches/a.b.zarr"),
        ("20x", lambda o: o.slide(SPECS["png"], "case/a"), "20x/images/case/a"),
        ("20x", lambda o: o.tissue("a", "0123456789abcdef"), "tissue/a.0123456789ab.png"),
        ("", lambda o: o.tissue("a", "0" * 64, ".geojson"), "tissue/a.000000000000.geojson"),
        ("20x", lambda o: o.status("a"), "20x/status/a.json"),
        ("", lambda o: o.visualization("a", "grid"), "visualization/a.png"),
        ("", lambda o: o.visualization("a", "mask"), "visualization/a_mask.png"),
        ("", lambda o: o.visualization("a", "contours"), "visualization/a_contours.png"),
    ],
)
def test_every_output_has_its_place(tiling, place, expected):
    layout = OutputLayout(OUT, tiling)
    assert place(layout) == OUT / expected
    assert layout.relative(place(layout)) == expected


@pytest.mark.parametrize("name", ["..", "a/../../b", "/etc/a", "", "a//b", "a/", ".", "a\0"])
def test_no_name_leads_out(name):
    with pytest.raises(ConfigError, match="inside the output"):
        OutputLayout(OUT).status(name)
    if name:
        with pytest.raises(ConfigError, match=r"tiler\.name"):
            OutputLayout(OUT, name)


@pytest.mark.parametrize("name", ["...", "..a", "a..b", "007", "naïve 切片", "a b,(1)={}"])
def test_harmless_names_are_taken_as_they_are(name):
    assert OutputLayout(OUT).status(name) == OUT / "status" / f"{name}.json"


def test_an_unknown_overlay_lists_those_there_are():
    with pytest.raises(ConfigError, match="grid, mask, contours"):
        OutputLayout(OUT).visualization("a", "heat")


STATUS = SlideStatus(
    slide_id="007",
    path="slides/切片.svs",
    state="failed",
    stage="encode",
    error={"type": "EncoderError", "message": "not finite"},
    encoders=("uni", "resnet50"),
    seconds={"open": 0.5},
    outputs={"hdf5": "patches/007.h5"},
    warnings=("faint",),
)


def test_a_status_survives_its_file(tmp_path):
    path = tmp_path / "status" / "007.json"
    write_status(path, STATUS)
    assert read_status(path) == STATUS
    assert json.loads(path.read_text("utf-8"))["encoders"] == ["uni", "resnet50"]


def test_statuses_are_listed_in_order_below_folders(tmp_path):
    for name in ("b", "a", "case/c"):
        write_status(tmp_path / f"{name}.json", SlideStatus(slide_id=name, path="", state="done"))
    assert [status.slide_id for status in iterate_statuses(tmp_path)] == ["a", "b", "case/c"]
    assert list(iterate_statuses(tmp_path / "none")) == []


def test_a_later_version_s_fields_are_left_aside(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(STATUS.record() | {"mood": "fine"}))
    assert read_status(path) == STATUS


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"slide_id": "a", "path": "b"}'])
def test_a_damaged_status_says_so(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(StoreError, match=r"a\.json is not a status record"):
        read_status(tmp_path / "a.json")


def test_a_state_that_does_not_exist_is_refused():
    with pytest.raises(StoreError, match="done, reused, empty, failed"):
        SlideStatus(slide_id="a", path="a", state="fine")


IDENTITY = make_identity("tissue", {"segmenter": {"plugin": "classic", "threshold": 0.1}})


def test_a_mask_survives_its_file_and_any_viewer_shows_it(tmp_path):
    array = np.random.default_rng(0).random((37, 53)) > 0.5
    mask = TissueMask(array=array, downsample=(32.125, 32.0))
    path = tmp_path / "tissue" / "a.png"
    save_mask(path, mask, identity=IDENTITY, extra={"note": "切片"})
    stored = load_mask(path)
    np.testing.assert_array_equal(stored.mask.array, array)
    assert stored.mask.downsample == (32.125, 32.0)
    assert stored.identity == IDENTITY
    assert stored.extra == {"note": "切片"}
    with Image.open(path) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), array * np.uint8(255))
        assert json.loads(image.text["microtome"])["identity"] == IDENTITY.digest


def test_a_mask_of_no_pixel_is_refused(tmp_path):
    mask = TissueMask(array=np.zeros((0, 5), bool), downsample=(1, 1))
    with pytest.raises(StoreError, match="no pixel"):
        save_mask(tmp_path / "a.png", mask, identity=IDENTITY)


def test_what_is_no_mask_of_ours_says_so(tmp_path):
    path = tmp_path / "a.png"
    for make in (
        lambda: path.write_bytes(b"no png"),
        lambda: Image.new("L", (4, 4)).save(path),
    ):
        make()
        with pytest.raises(StoreError, match=r"a\.png is not a tissue mask"):
            load_mask(path)
    mask = TissueMask(array=np.ones((99, 99), bool), downsample=(1, 1))
    save_mask(path, mask, identity=IDENTITY)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StoreError, match="damaged"):
        load_mask(path)


def test_a_folder_s_record_survives(tmp_path):
    write_folder_record(tmp_path, {"identity": "a", "mpp": None, "name": "切片"})
    assert read_folder_record(tmp_path) == {"identity": "a", "mpp": "None", "name": "切片"}
    assert read_folder_record(tmp_path / "none") is None


def test_a_folder_without_record_is_not_ours(tmp_path):
    with pytest.raises(StoreError, match="not a folder of tile images"):
        read_folder_record(tmp_path)
