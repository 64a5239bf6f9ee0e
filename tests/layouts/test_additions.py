"""Folders that grow after they were imported, and exports that meet."""

from __future__ import annotations

import json
import re
import shutil

import h5py
import numpy as np
import pytest
from layouts.stores import LAYOUTS, content
from run_checks import leftovers

from microtome.__main__ import main
from microtome.errors import LayoutError
from microtome.run.exchange import exporting
from microtome.store.identity import make_identity
from microtome.testing import make_slide

ONE_FILE = ("atlaspatch", "lazyslide")
"""Layouts that hold coordinates and all features together."""


def add_features(output, name):
    """Give slide ``a`` of an output another feature set."""
    with h5py.File(output / "patches/a.h5", "r+") as file:
        file.copy("features/handcrafted", file["features"], name=name)
        file[f"features/{name}"].attrs["identity"] = name.ljust(64, "0")


def make_other(output):
    """Have slide ``a`` of an output come from something else."""
    with h5py.File(output / "patches/a.h5", "r+") as file:
        file.attrs["identity"] = "0" * 64


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_that_are_added_later_are_imported_beside_the_others(
    layout, lone, exported, imported, capsys
):
    imported(exported(layout), layout)
    add_features(lone, "aaa")  # the first by name
    folder = exported(layout, *(["--force"] if layout in ONE_FILE else []))
    output = imported(folder, layout)
    back, expected = content(output), content(lone)["features"]["handcrafted"]
    assert [*back["features"]] == ["aaa", "handcrafted"]
    expected = expected.astype(back["features"]["aaa"].dtype)
    assert all(np.array_equal(each, expected) for each in back["features"].values())
    capsys.readouterr()
    imported(folder, layout)
    assert "a\treused\taaa, handcrafted" in capsys.readouterr().out


def test_files_of_stamps_own_beside_ours_change_nothing(lone, exported, imported):
    folder = exported("stamp")
    output = imported(folder, "stamp")
    (folder / "aaa").mkdir()
    shutil.copy(folder / "handcrafted/a.h5", folder / "aaa/a.h5")
    with h5py.File(folder / "aaa/a.h5", "r+") as file:
        file.attrs["extractor"] = "aaa"
        del file.attrs["microtome"], file["feats"].attrs["microtome"]
    imported(folder, "stamp")
    assert [*content(output)["features"]] == ["aaa", "handcrafted"]


def test_an_import_is_told_by_values_whatever_their_order(exported, imported, capsys):
    folder = exported("trident")
    imported(folder, "trident")
    top = folder / "20x_128px_32px_overlap"
    files = [top / "patches/a_patches.h5", top / "features_handcrafted/a.h5"]

    def turn(path, *names):
        with h5py.File(path, "r+") as file:
            for name in names:
                file[name][...] = file[name][...][::-1]

    turn(files[0], "coords")
    turn(files[1], "coords", "features")
    capsys.readouterr()
    imported(folder, "trident")
    assert "a\treused" in capsys.readouterr().out
    turn(files[1], "features")
    output = imported(folder, "trident", code=3)
    told = capsys.readouterr().out
    assert "features/handcrafted in " in told
    assert "was made from something else: imported.values changed" in told
    assert "--tiling NAME, or replace it with --force" in told
    before = content(output)["features"]["handcrafted"]
    imported(folder, "trident", "--force")
    after = content(output)["features"]["handcrafted"]
    assert np.array_equal(after, before[::-1])


def test_another_resolution_is_another_import(exported, imported, tmp_path, capsys):
    folder = exported("trident")
    with h5py.File(folder / "20x_128px_32px_overlap/patches/a_patches.h5", "r+") as file:
        del file["coords"].attrs["microtome"]  # TRIDENT's own, which say nothing of it
    slide = make_slide(tmp_path / "a.svs", size=(1024, 768)).path
    manifest = tmp_path / "slides.csv"
    words = ("trident", f"--slides={manifest}")
    for mpp, code in ((0.25, 0), (0.125, 3)):
        manifest.write_text(f"path,mpp\n{slide},{mpp}\n")
        output = imported(folder, *words, code=code)
        assert content(output)["attributes"]["mpp_x"] == 0.25
    assert "level0.mpp was [0.25, 0.25] and is [0.125, 0.125]" in capsys.readouterr().out
    assert content(imported(folder, *words, "--force"))["attributes"]["mpp_x"] == 0.125


def test_exports_of_one_slide_keep_each_others_record(lone, tmp_path, monkeypatch, capsys):
    add_features(lone, "two")
    words = ["export", str(lone), "--to", "trident", str(tmp_path / "there")]
    publish = exporting.publish

    def meanwhile(path, **more):
        monkeypatch.undo()
        assert main([*words, "--features=two"]) == 0
        return publish(path, **more)

    monkeypatch.setattr(exporting, "publish", meanwhile)
    assert main([*words, "--features=handcrafted"]) == 0
    capsys.readouterr()
    assert main(words) == 0
    assert "a\treused" in capsys.readouterr().out


def test_of_two_exports_of_different_slides_one_is_refused(lone, tmp_path, monkeypatch, capsys):
    shutil.copytree(lone, tmp_path / "other")
    make_other(tmp_path / "other")
    first, second = (
        ["export", str(each), "--to", "trident", str(tmp_path / "there")]
        for each in (lone, tmp_path / "other")
    )
    publish = exporting.publish

    def meanwhile(path, **more):
        monkeypatch.undo()
        assert main(second) == 0
        return publish(path, **more)

    monkeypatch.setattr(exporting, "publish", meanwhile)
    assert main(first) == 3
    assert "is being exported from something else at the same time" in capsys.readouterr().out
    assert main(second) == 0
    assert "a\treused" in capsys.readouterr().out
    assert leftovers(tmp_path / "there") == []


def test_features_too_large_for_a_layout_fail_their_slide(lone, tmp_path, capsys):
    with h5py.File(lone / "patches/a.h5", "r+") as file:
        file["features/handcrafted"][0, 0] = 1e6
    words = ["export", str(lone), "--to"]
    assert main([*words, "stamp", str(tmp_path / "stamp")]) == 3
    told = capsys.readouterr().out
    assert "a\tfailed\thandcrafted gave a feature of 1e+06, too large for the float16" in told
    assert not (tmp_path / "stamp/handcrafted/a.h5").exists()
    assert leftovers(tmp_path / "stamp") == []
    assert main([*words, "trident", str(tmp_path / "trident")]) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_name_that_leads_elsewhere_is_refused(layout, lone, tmp_path, capsys):
    with h5py.File(lone / "patches/a.h5", "r+") as file:
        values = file["features/handcrafted"][...]
        made = file["features"].create_dataset("..", data=values)
        made.attrs.update(file["features/handcrafted"].attrs)
    before = {*tmp_path.rglob("*")}
    assert main(["export", str(lone), "--to", layout, str(tmp_path / "deep/in")]) == 3
    assert "holds features named '..', which can name no file" in capsys.readouterr().out
    assert {*tmp_path.rglob("*")} == before


@pytest.mark.parametrize("path", ["../a.h5", "b/../../a.h5", "/a.h5", "", "a\0b"])
def test_a_layout_names_files_inside(path, tmp_path):
    with pytest.raises(LayoutError, match="does not name a file inside"):
        exporting._Record(tmp_path, path, make_identity("export", {}))


def test_a_damaged_record_says_what_to_do(exported, lone, capsys):
    folder = exported("clam")
    record = folder / ".microtome/patches/a.h5.json"
    assert json.loads(record.read_text("utf-8"))["whole"] is True
    record.write_text("{}", "utf-8")
    assert main(["export", str(lone), "--to", "clam", str(folder)]) == 3
    assert "is damaged. Delete it, and export with --force" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["", "OUTPUT"])
def test_an_export_has_a_folder_of_its_own(tmp_path, monkeypatch, capsys, where):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "OUTPUT"
    for name in ("patches", "status"):
        (output / name).mkdir(parents=True)
    (output / "patches/s.h5").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", str(output), "--to", "clam", where]) == 2
    assert re.search("empty text|is an output of runs", capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before
