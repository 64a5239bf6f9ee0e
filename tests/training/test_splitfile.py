"""What a slide was to a training goes by its content, and not by its name."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from tile_tables import make_tiles, tiled

from microtome.__main__ import main
from microtome.plugin.specs import Transform
from microtome.store.identity import fingerprint
from microtome.testing import make_slide
from microtome_training.classifier import Description, Takes, save_classifier
from microtome_training.predictions import read_predictions
from microtome_training.splitfile import read_split, write_split
from microtome_training.stores import read_tiles
from microtome_training.training.models import Architecture


def table(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_slide_that_is_split(labelled, make_job, cohort, tmp_path):
    tiles = read_tiles(make_job(labelled, cohort.manifest))
    splits = {"slide_01": "train", "test_01": "test"}
    write_split(tmp_path / "split.csv", tiles, np.zeros(len(tiles), np.int64), splits)
    first, second = table(tmp_path / "split.csv")
    assert list(first) == ["slide_id", "patient_id", "split", "normal", "tumor", "fingerprint"]
    assert (first["slide_id"], first["split"], first["tumor"]) == ("slide_01", "train", "0")
    assert second["patient_id"] == cohort["test_01"].patient_id
    assert second["fingerprint"] == fingerprint(cohort["test_01"].path)


@pytest.fixture
def known(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text(
        "slide_id,patient_id,split,normal,fingerprint\na,,train,3,AA\nb,,val,3,BB\nc,,test,3,\n"
    )
    return read_split(path)


@pytest.mark.parametrize(
    ("name", "content", "split"),
    [
        ("a", "AA", "train"),
        ("a", "ZZ", ""),  # another slide of that name
        ("renamed", "AA", "train"),
        ("b", "AA", "train"),  # a, under the name of b
        ("a", "", "train"),  # nothing says which it is
        ("c", "ZZ", "test"),  # likewise
        ("d", "", ""),
        ("d", "ZZ", ""),
    ],
)
def test_content_says_which_slide_it_is_and_where_it_is_unknown_its_name(
    known, name, content, split
):
    assert known.find(tiled(name, fingerprint=content)) == split


def test_a_table_without_fingerprints_goes_by_names(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("slide_id,patient_id,split\na,p,train\n")
    assert read_split(path).find(tiled("a", fingerprint="AA")) == "train"
    assert read_split(path).find(tiled("b", fingerprint="AA")) == ""
    assert read_split(tmp_path / "none.csv").find(tiled("a")) == ""


def test_a_name_that_is_no_utf8_is_read_as_it_was_written(tmp_path):
    name = b"sl\xffide".decode("utf-8", "surrogateescape")
    tiles = make_tiles({name: (1, 1)})
    write_split(tmp_path / "split.csv", tiles, tiles.label.astype(np.int64), {name: "val"})
    assert read_split(tmp_path / "split.csv").find(tiles.slides[0]) == "val"


def predict(slides, output, model):
    words = ("heatmap.kind=none", "heatmap.png=false", "engine=inline", "device=cpu")
    assert (
        main([str(slides), f"output={output}", "task=predict", f"checkpoint={model}", *words]) == 0
    )
    found = read_predictions(output / "predictions/model/predictions.parquet")
    return dict(zip(found.slide_ids, found.splits, strict=True))


def test_predictions_of_another_cohort_with_the_same_names_are_of_no_split(tmp_path):
    for number, name in enumerate(("theirs/a", "ours/a", "ours/b")):
        path = tmp_path / f"{name}.svs"
        make_slide(path, size=(400, 300), mpp=0.5, magnification=20, seed=number)
    trained_on = {"a": tmp_path / "theirs/a.svs", "b": tmp_path / "ours/a.svs"}
    model = tmp_path / "training/model/checkpoints/best.pt"
    model.parent.mkdir(parents=True)
    torch.manual_seed(0)
    architecture = Architecture(model="small_cnn", classes=2)
    takes = Takes(kind="pixels", size=128, mpp=0.5, transform=Transform(crop=None))
    description = Description(architecture=architecture, classes=("normal", "tumor"), takes=takes)
    save_classifier(model, architecture.build(), description)
    rows = [f"{name},,train,{fingerprint(path)}" for name, path in trained_on.items()]
    lines = ["slide_id,patient_id,split,fingerprint", *rows]
    Path(model.parents[1] / "split.csv").write_text("\n".join(lines))
    # Theirs was trained on as a, and ours, which is a here, as b; b here was not seen.
    assert predict(tmp_path / "ours", tmp_path / "out", model) == {"a": "train", "b": ""}
    assert predict(tmp_path / "theirs", tmp_path / "again", model) == {"a": "train"}
