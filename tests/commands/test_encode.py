"""`microtome encode-slides` and `encode-patients`: runs that choose a slide or patient encoder."""

from __future__ import annotations

import json
import shutil

import h5py
import pytest
import yaml

from microtome.__main__ import main

QUICK = ["engine=inline", "tiler.magnification=20"]


@pytest.fixture(autouse=True)
def slide(synthetic, tmp_path, monkeypatch):
    """Work in a folder with a slide and a manifest."""
    shutil.copy(synthetic.path, tmp_path / "one.svs")
    (tmp_path / "m.csv").write_text("case_id,slide_path\nP1,one.svs\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_slides_are_embedded_by_the_line_that_is_printed(slide, capsys):
    assert main(["encode-slides", "one.svs", "output=out", "slide_encoder=[mean,max]", *QUICK]) == 0
    said = capsys.readouterr()
    line = said.out.splitlines()[0]
    assert line.startswith("microtome one.svs output=out 'slide_encoder=[mean,max]' engine=inline")
    assert "Pooled is handcrafted, since no encoder was chosen." in said.err
    with h5py.File(slide / "out/patches/one.h5") as file:
        assert set(file["slide_features"]) == {"max-handcrafted", "mean-handcrafted"}
    (record,) = (slide / "out/runs").glob("*/run.json")
    assert "Pooled is handcrafted" in json.loads(record.read_text())["derived"][0]


def test_patients_are_embedded(slide, capsys):
    words = ["m.csv", "output=out", "patient_encoder=mean", "slide_encoder=mean", *QUICK]
    assert main(["encode-patients", *words]) == 0
    said = capsys.readouterr().out
    assert "1 patient: 1 done" in said
    assert (slide / "out/patient_embeddings/P1.h5").is_file()


@pytest.mark.parametrize(
    ("verb", "kind"), [("encode-slides", "slide_encoder"), ("encode-patients", "patient_encoder")]
)
def test_by_which_has_to_be_said(verb, kind, slide, capsys):
    assert main([verb, "one.svs", "output=out"]) == 2
    said = capsys.readouterr()
    assert f"{verb} needs to know by which: {kind}=NAME. Available:" in said.err
    assert said.out == ""
    assert main([verb, "--help"]) == 0
    assert f"{kind}=NAME" in capsys.readouterr().out


def test_slides_of_nobody_leave_no_output(slide, capsys):
    words = ["one.svs", "output=out", "patient_encoder=concat", *QUICK]
    assert main(["encode-patients", *words]) != 0
    assert "patient_id (or case_id)" in capsys.readouterr().err
    assert not (slide / "out/patches").exists()


def test_the_default_encoder_stays_in_what_is_composed_and_out_of_the_run(slide, capsys):
    """A pooling of named features alone: the encoder that nobody chose is not computed."""
    chosen = ["encoder=resnet18", "encoder.resnet18.weights=random"]
    for more, sets in (([], {"handcrafted"}), (chosen, {"resnet18"})):
        out = f"out{len(more)}"
        assert main(["one.svs", f"output={out}", "slide_encoder=mean", *QUICK, *more]) == 0
        with h5py.File(slide / out / "patches/one.h5") as file:
            assert set(file["features"]) == sets
    capsys.readouterr()
    assert main(["one.svs", "output=out", "slide_encoder=mean", "--cfg", "job"]) == 0
    composed = yaml.safe_load(capsys.readouterr().out)
    assert [*composed["encoder"]] == ["handcrafted"]
    assert [*composed["slide_encoder"]] == ["mean"]


def test_levels_are_listed_and_shown(capsys):
    assert main(["encoders", "list", "--level", "slide"]) == 0
    listed = capsys.readouterr().out
    assert "conch_v15 on tiles of 512 px at 20x without overlap" in listed
    assert "titan" in listed
    assert main(["encoders", "--level", "patient", "--json"]) == 0
    names = [record["name"] for record in json.loads(capsys.readouterr().out)]
    assert {"concat", "mean", "moozy"} <= set(names)
    assert main(["encoders", "show", "titan", "--json"]) == 0
    (need,) = json.loads(capsys.readouterr().out)["needs"]
    assert (need["encoder"], need["patch_size"]) == ("conch_v15", 512)
    assert main(["encoders", "show", "moozy"]) == 0
    assert "--level patient" in capsys.readouterr().out
    assert main(["encoders", "fetch", "mean"]) == 0
    assert "mean: needs nothing fetched" in capsys.readouterr().err
