"""Ours into every layout and back: coordinates, features, geometry, and what a rerun does."""

from __future__ import annotations

import errno
import hashlib
import json
import os

import h5py
import numpy as np
import pytest
import zarr
from layouts.stores import LAYOUTS, content
from run_checks import leftovers

from microtome.__main__ import main
from microtome.run.exchange import exporting
from microtome.store.exchange import ENCODER, GEOMETRY

NAMES = [name for name in ENCODER if name not in ("identity", "weights")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_exported_comes_back(layout, output, exported, imported):
    back, ours = content(imported(exported(layout), layout)), content(output)
    assert len(ours["coords"]) > 10
    assert np.array_equal(back["coords"], ours["coords"])
    expected = ours["features"]["handcrafted"]
    if layout == "stamp":
        expected = expected.astype(np.float16)
    assert np.array_equal(back["features"]["handcrafted"], expected)
    for name in GEOMETRY:
        assert back["attributes"].get(name) == ours["attributes"].get(name), name
    of_ours, of_back = (each["of_features"]["handcrafted"] for each in (ours, back))
    assert {n: of_back[n] for n in NAMES} == {n: of_ours[n] for n in NAMES}
    assert of_back["original_identity"] == of_ours["identity"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_imported_slide_is_whole_and_says_where_it_came_from(layout, exported, imported, capsys):
    folder = exported(layout)
    output = imported(folder, layout)
    capsys.readouterr()
    assert main(["verify", str(output)]) == 0
    assert "0 faults" in capsys.readouterr().out
    attributes = content(output)["attributes"]
    fields = json.loads(attributes["identity_fields"])["imported"]
    assert fields["layout"]["plugin"] == layout
    hashes = {
        hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*") if p.is_file()
    }
    assert hashes & {*json.loads(attributes["imported_files"]).values()}
    status = json.loads((output / "status/a.json").read_text("utf-8"))
    assert (status["state"], status["task"]) == ("done", "import")


def test_into_zarr(output, exported, imported):
    back = content(imported(exported("trident"), "trident", "--writer=zarr"), suffix=".zarr")
    assert np.array_equal(back["coords"], content(output)["coords"])
    assert np.array_equal(
        back["features"]["handcrafted"], content(output)["features"]["handcrafted"]
    )


def test_out_of_zarr(exported, imported, output, tmp_path):
    store = imported(exported("trident"), "trident", "--writer=zarr")
    assert main(["export", str(store), "--to", "atlaspatch", str(tmp_path / "ap")]) == 0
    with h5py.File(tmp_path / "ap/patches/a.h5") as file:
        assert np.array_equal(file["coords"][:], content(output)["coords"])
        assert file["features/handcrafted"].dtype == np.float32


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "lazyslide"])
def test_a_slide_without_tiles_has_no_row_and_all_columns(layout, output, tmp_path, imported):
    assert main(["export", str(output), "--to", layout, str(tmp_path / layout)]) == 0
    back = content(imported(tmp_path / layout, layout), "empty")
    assert back["coords"].shape == (0, 5)
    assert back["features"]["handcrafted"].shape == (0, 67)


def test_what_a_layout_cannot_hold_fails_that_slide_alone(output, tmp_path, capsys):
    assert main(["export", str(output), "--to", "lazyslide", str(tmp_path / "ls")]) == 3
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith(" tiles, handcrafted")
    assert told[1].startswith("empty\tfailed\tempty has no tile")
    assert told[2] == "2 slides, 1 failed."


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_time_nothing_is_written(layout, lone, exported, imported, capsys):
    folder = exported(layout)
    output = imported(folder, layout)
    before = {p: p.stat().st_mtime_ns for top in (folder, output) for p in top.rglob("*")}
    capsys.readouterr()
    exported(layout)
    imported(folder, layout)
    told = capsys.readouterr().out
    assert told.count("reused") == 2
    assert before == {p: p.stat().st_mtime_ns for top in (folder, output) for p in top.rglob("*")}


def test_another_slide_of_the_name_is_refused_and_replaced_with_force(exported, lone, capsys):
    folder = exported("clam")
    path = lone / "patches/a.h5"
    with h5py.File(path, "r+") as file:
        file.attrs["identity"] = "0" * 64
    words = ["export", str(lone), "--to", "clam", str(folder)]
    assert main(words) == 3
    told = capsys.readouterr().out
    assert "patches/a.h5 was exported from something else: coords changed" in told
    assert "--force" in told
    assert main([*words, "--force"]) == 0
    assert main(words) == 0


def test_a_file_that_somebody_else_left_is_refused(lone, tmp_path, capsys):
    (tmp_path / "clam/patches").mkdir(parents=True)
    (tmp_path / "clam/patches/a.h5").write_bytes(b"CLAM's own")
    assert main(["export", str(lone), "--to", "clam", str(tmp_path / "clam")]) == 3
    assert "was not exported by microtome" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "clam").iterdir()] == ["patches"]
    assert (tmp_path / "clam/patches/a.h5").read_bytes() == b"CLAM's own"


def test_an_export_that_was_interrupted_goes_on(lone, tmp_path, monkeypatch, imported):
    folder, publish = tmp_path / "s2", exporting.publish
    words = ["export", str(lone), "--to", "slide2vec", str(folder)]

    def interrupt(path, **more):
        if path.name == "a.npz":
            raise KeyboardInterrupt
        return publish(path, **more)

    monkeypatch.setattr(exporting, "publish", interrupt)
    assert main(words) == 130
    assert not (folder / "handcrafted").exists() or not list((folder / "handcrafted").rglob("a.*"))
    monkeypatch.undo()
    assert main(words) == 0
    assert leftovers(folder) == []
    assert content(imported(folder, "slide2vec"))["features"]["handcrafted"].shape[1] == 67


def test_features_that_are_chosen(exported, imported, capsys):
    folder = exported("trident", "--features=none")
    assert not list(folder.rglob("features_*"))
    output = imported(folder, "trident")
    assert content(output)["features"] == {}
    exported("trident")
    assert "handcrafted" in content(imported(folder, "trident"))["features"]
    capsys.readouterr()
    assert main(["import", str(folder), "--from", "trident", str(output), "--features=uni"]) == 3
    assert "no features uni; there are handcrafted" in capsys.readouterr().out


def test_a_tiling_is_named_where_there_are_several(lone, tmp_path, capsys):
    (lone / "fine/status").mkdir(parents=True)
    words = ["export", str(lone), "--to", "clam", str(tmp_path / "clam")]
    assert main(words) == 1
    assert "holds several tilings. Name one with --tiling: ., fine" in capsys.readouterr().err
    assert main([*words, "--tiling=."]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["export", "out", "--to", "calm", "there"],
            "no layout named 'calm'. Did you mean 'clam'?",
        ),
        (["export", "out", "--to", "clam", "there"], "out is not an output of microtome"),
        (["import", "nowhere", "--from", "clam", "out"], "nowhere is no folder"),
        (["import", ".", "--from", "clam", "out"], "holds no slide in the layout of CLAM"),
        (["import", ".", "--from", "clam", "out", "--mpp=0"], "no number of µm above 0"),
        (["import", ".", "--from", "clam", "out", "--mpp=abc"], "'abc' is no number of µm above 0"),
        (
            ["import", ".", "--from", "clam", "out", "step=7"],
            "no option of layout clam named 'step'",
        ),
        (["import", ".", "--from", "clam", "out", "step_size=x"], "step_size=x does not fit"),
    ],
)
def test_lines_that_cannot_begin(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) in (1, 2)
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_zarr_stores_of_lazyslide_hold_plain_attributes(exported):
    store = zarr.open_group(exported("lazyslide") / "a.zarr", mode="r")
    spec = store.attrs["spatialdata_attrs"] if "tile_spec" not in store.attrs else store.attrs
    assert spec["tile_spec"]["tiles"]["base_downsample"] == 2.0
    assert spec["slide_properties"]["shape"] == [768, 1024]


@pytest.mark.parametrize("verb", ["export", "import"])
def test_a_full_disk_ends_it(verb, lone, exported, tmp_path, monkeypatch, capsys):
    folder = exported("trident") if verb == "import" else tmp_path / "trident"
    words = {
        "export": ["export", str(lone), "--to", "trident", str(folder)],
        "import": ["import", str(folder), "--from", "trident", str(tmp_path / "out")],
    }

    def refuse(*names):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", refuse)
    assert main(words[verb]) == 1
    told = capsys.readouterr().err
    assert "No space left on device; free some space" in told
    assert told.count("\n") == 1
